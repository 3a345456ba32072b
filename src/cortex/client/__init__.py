"""
HTTP client of the control plane, for the CLI and for Python users. No terminal here: nothing prints, nothing asks.

Only `http.client`, msgspec and the standard library, so that `cortex get` answers at once; what is heavier (psutil,
pydantic, ruamel.yaml) is imported inside the one function that needs it.

errors        what can go wrong between a command and the control plane
operator      one typed call for each line of `wire/operator.py`
environments  which environment is talked to, and what is known of those elsewhere
local         the environment on this machine: find it, start it, stop it, remove its files
ports         which ports it gets
environments  environments elsewhere: where their control planes answer, and which is talked to
project       a folder with a cortex.yaml → a deploy request and the files to upload
follow        from a committed deploy to live or failed
reconnection  going on across restarts of the control plane
addressing    `NAME` and `DEPLOYMENT/NAME` → one api
prediction    one sample to one endpoint
samples       what Python has as a body, and an answer as what Python has
connections   connections to endpoints, kept for the next request
described     an api's figures, typed, and its picture in a notebook
facade        `Client`, for Python users
asynchronous  `AsyncClient`, the same for an event loop
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cortex.client.asynchronous import AsyncClient
    from cortex.client.facade import Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> object:
    if name == "Client":  # imported on use: the CLI imports this package and needs no facade
        from cortex.client.facade import Client

        return Client
    if name == "AsyncClient":
        from cortex.client.asynchronous import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
