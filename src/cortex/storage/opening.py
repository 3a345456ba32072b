"""Which storage a name stands for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cortex.storage.base import InvalidStorage, Storage
from cortex.storage.credentials import CredentialSurroundings, access_to
from cortex.storage.directory import DirectoryStorage


def open_storage(named: str, environ: Mapping[str, str]) -> Storage:
    """
    Open what `storage:` of a cluster names: `s3://bucket/prefix`, `gs://`, `az://`, or the path of a directory.

    Args:
        environ: where credentials are looked for.

    Raises:
        InvalidStorage: it names neither.
        CredentialsUnusable: what the environment names cannot be used.
        StorageMissing: there is no such directory. Buckets are asked with the first call.
    """
    scheme, mark, rest = named.partition("://")
    scheme = scheme.lower() if mark else "file"
    if scheme in ("s3", "gs", "az"):
        from cortex.storage.cloud import CloudStorage  # obstore: takes a while to import

        return CloudStorage(f"{scheme}://{rest}", access_to(scheme, CredentialSurroundings(environ)))
    if scheme != "file":
        raise InvalidStorage(named, f"begins with {scheme}://, which none does")
    path = Path(rest if mark else named)
    if not path.is_absolute():
        raise InvalidStorage(named, "is no absolute path")
    return DirectoryStorage(path)
