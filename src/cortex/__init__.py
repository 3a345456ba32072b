"""
Cortex serves trained models as HTTP APIs.

Handlers may import `RequestError` and `Response` from here. Both are imported when they are asked for, so that
`import cortex` alone costs nothing: the command line has to be able to take Ctrl-C before anything is loaded.
"""

from typing import TYPE_CHECKING

from cortex.version import __version__

if TYPE_CHECKING:
    from cortex.errors import RequestError, Response

__all__ = ["RequestError", "Response", "__version__"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cortex import errors

    return getattr(errors, name)
