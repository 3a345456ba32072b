"""
Cortex serves trained models as HTTP APIs.

Handlers may import `RequestError` and `Response` from here, programs `Client`, `AsyncClient` and the errors that they
raise. All are imported when they are asked for, so that `import cortex` alone costs nothing: the command line has to
be able to take Ctrl-C before anything is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from cortex.version import __version__

if TYPE_CHECKING:
    from cortex.client.asynchronous import AsyncClient
    from cortex.client.facade import Client
    from cortex.client.prediction import PredictionRefused
    from cortex.errors import CortexError, RequestError, Response

__all__ = ["AsyncClient", "Client", "CortexError", "PredictionRefused", "RequestError", "Response", "__version__"]

_HOMES = {
    "AsyncClient": "cortex.client.asynchronous",
    "Client": "cortex.client.facade",
    "CortexError": "cortex.errors",
    "PredictionRefused": "cortex.client.prediction",
    "RequestError": "cortex.errors",
    "Response": "cortex.errors",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
