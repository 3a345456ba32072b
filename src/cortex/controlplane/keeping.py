"""Files of the home that the control plane keeps beside its state."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import msgspec

from cortex.errors import CortexError
from cortex.processes import write_whole


class NotKept(CortexError):
    """A folder or a file of the home cannot be used; names it and says why."""

    reference = "unusable-home"

    def __init__(self, file: Path, error: OSError) -> None:
        self.hint = f"make {file} a file that Cortex may write"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self.reference = "disk-full"  # type: ignore[misc]
            self.hint = f"free space on the disk that holds {file.parent}, then repeat the command"
        super().__init__(f"{file} cannot be written: {error.strerror or error}")


def keep(file: Path, content: Any) -> None:
    """Replace a file of JSON, whole or not at all. Raises NotKept."""
    try:
        write_whole(file, msgspec.json.encode(content, order="deterministic"))
    except OSError as error:
        raise NotKept(file, error) from error
