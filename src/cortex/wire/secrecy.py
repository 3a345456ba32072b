"""
Values of secrets on their way from the agent into a process: in a descriptor, never in a message.

A launcher passes the descriptor on without reading it: whatever a launcher has had in memory, every process that it
forks later has in memory too, of other apis as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

_PIECE_BYTES = 2**20


def packed(values: Mapping[str, str]) -> int:
    """
    A descriptor that holds values by the name of their variable. The caller closes it.

    Its content is in memory only, and gone with the last descriptor.
    """
    descriptor = os.memfd_create("cortex-secrets")
    try:
        data = memoryview(msgspec.json.encode(dict(values)))
        while data:
            data = data[os.write(descriptor, data) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def unpacked(descriptor: int) -> dict[str, str]:
    """What `packed` packed. Closes the descriptor."""
    try:
        content = b""
        while piece := os.pread(descriptor, _PIECE_BYTES, len(content)):
            content += piece
    finally:
        os.close(descriptor)
    return msgspec.json.decode(content, type=dict[str, str])
