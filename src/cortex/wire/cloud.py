"""
Which variables lead a process to its clouds: what a deploy hands over, and what handlers get of it.

They reach a replica as secrets do (`wire.secrecy`), and only so: no process of ours passes its own on.
"""

from __future__ import annotations

from collections.abc import Mapping

CLOUD_PREFIXES = ("AWS_", "GOOGLE_", "CLOUDSDK_", "AZURE_", "GCE_METADATA_")
_HANDLERS_NAMES = frozenset(("GCLOUD_PROJECT", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET"))
_CONFIDENTIAL = ("KEY", "SECRET", "TOKEN", "PASSWORD", "CONNECTION_STRING", "SAS", "HEADER")
_PLACE = ("FILE", "PATH", "ENDPOINT", "URI", "URL")


def leads_to_clouds(name: str) -> bool:
    """Whether a variable is one of those."""
    return name in _HANDLERS_NAMES or name.startswith(CLOUD_PREFIXES)


def for_handlers(variables: Mapping[str, str]) -> dict[str, str]:
    """Of what a deploy hands over, what its handlers get."""
    return {name: value for name, value in sorted(variables.items()) if leads_to_clouds(name)}


def without_clouds(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process of ours."""
    return {name: value for name, value in environ.items() if not leads_to_clouds(name)}


def is_confidential(name: str) -> bool:
    """Whether a variable's value is to be kept out of logs; of those that lead to clouds, a region is not."""
    if not leads_to_clouds(name):
        return True
    return any(word in name for word in _CONFIDENTIAL) and not name.endswith(_PLACE)
