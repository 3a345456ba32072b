"""
Doubles and builders for tests of what is built on Cortex, held to the same contract suites as the real parts.

`clock` is time you move, `builders` make wanted state with sane defaults, `fake_agent` pretends nodes with replicas
whose failures are settings (its sibling `engines.fake` does so for room), and `simulation` runs generated schedules
of faults against the real control plane and checks what is promised at every step.

For those who write handlers: `local_api`, one api of a folder as a function in this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cortex.testing.local import LocalApi, local_api

__all__ = ["LocalApi", "local_api"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cortex.testing import local

    return getattr(local, name)
