"""A storage in a bucket of S3, Google Cloud Storage or Azure, through `obstore`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, S3Store

from cortex.storage.answers import (
    NOT_FOUND,
    code_of,
    has_expired,
    in_words,
    is_refusal,
    names_no_bucket,
    refusal_in_words,
    region_hint,
)
from cortex.storage.base import (
    InvalidStorage,
    StorageDenied,
    StorageError,
    StorageMissing,
    StorageUnreachable,
    checked_key,
)
from cortex.storage.credentials import Access

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

CONNECT_TIMEOUT = "3s"
ANSWER_TIMEOUT = "4s"
"""For a whole answer to something small, and between two pieces of a large one."""
LARGE_BYTES = 2**18
LARGE_TIMEOUT = "120s"
FILE_TIMEOUT = "6h"
PIECE_TIMEOUT = "30s"
"""For a part of a file on its way there, 5 MiB, and between two pieces on its way back."""
RETRY: RetryConfig = {
    "max_retries": 1,
    "retry_timeout": timedelta(seconds=4),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=1), "base": 2},
}
"""Twice `ANSWER_TIMEOUT` is within `base.DEADLINE_S`. What creates is not asked again when its answer is lost."""

_BUCKET = re.compile(r"\$?[A-Za-z0-9][A-Za-z0-9._-]*")
_KINDS: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
_USUAL = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
_NEEDED = {
    "s3": "they need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on",
    "gs": "they need the role Storage Object User on",
    "az": "they need the role Storage Blob Data Contributor on",
}


class CloudStorage:
    """
    Args:
        url: `s3://bucket/prefix`, and likewise `gs://` and `az://`.
        access: as whom it is asked.

    Raises:
        InvalidStorage: it names no bucket.
        StorageError: the settings are no good.
    """

    def __init__(self, url: str, access: Access) -> None:
        self._scheme, _, rest = url.partition("://")
        self._bucket, _, prefix = rest.partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._access = access
        self.place = f"{self._scheme}://{self._bucket}/{self._prefix}".rstrip("/")
        if not _BUCKET.fullmatch(self._bucket):
            raise InvalidStorage(url, "names no bucket")
        try:
            self._small = self._opened({"timeout": ANSWER_TIMEOUT})
            self._reading = self._opened({"timeout": LARGE_TIMEOUT, "read_timeout": ANSWER_TIMEOUT})
            self._large = self._opened({"timeout": LARGE_TIMEOUT})
            self._files = self._opened({"timeout": FILE_TIMEOUT, "read_timeout": PIECE_TIMEOUT})
        except (BaseError, ValueError, OSError) as error:
            raise StorageError(
                self.place, in_words(error), hint="check the address and the settings of the credentials"
            ) from error

    def create(self, key: str, content: bytes) -> bool:
        store = self._small if len(content) <= LARGE_BYTES else self._large
        path = self._path(key)
        try:
            obstore.put(store, path, content, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        except (BaseError, OSError, ValueError) as error:
            raise self._explained(error) from error
        return True

    def read(self, key: str) -> bytes | None:
        path = self._path(key)
        try:
            return bytes(obstore.get(self._reading, path).bytes())
        except (BaseError, OSError, ValueError) as error:
            if isinstance(error, NOT_FOUND) and not names_no_bucket(error):
                return None
            raise self._explained(error) from error

    def upload(self, key: str, file: Path) -> None:
        path = self._path(key)
        try:
            obstore.put(self._files, path, file)
        except (BaseError, OSError, ValueError) as error:
            raise self._explained(error) from error

    def download(self, key: str) -> Iterator[bytes] | None:
        path = self._path(key)
        try:
            result = obstore.get(self._files, path)
        except (BaseError, OSError, ValueError) as error:
            if isinstance(error, NOT_FOUND) and not names_no_bucket(error):
                return None
            raise self._explained(error) from error
        return self._pieces(result)

    def size(self, key: str) -> int | None:
        path = self._path(key)
        try:
            return int(obstore.head(self._small, path)["size"])
        except (BaseError, OSError, ValueError) as error:
            if isinstance(error, NOT_FOUND) and not names_no_bucket(error):
                return None
            raise self._explained(error) from error

    def keys(self, folder: str) -> list[str]:
        path = self._path(folder)
        try:
            batches = obstore.list(self._small, prefix=path, chunk_size=1000)
            return sorted(meta["path"].removeprefix(self._prefix) for batch in batches for meta in batch)
        except (BaseError, OSError, ValueError) as error:
            raise self._explained(error) from error

    def delete(self, keys: Iterable[str]) -> None:
        for path in [self._path(key) for key in keys]:
            try:
                obstore.delete(self._small, path)
            except NOT_FOUND:
                pass
            except (BaseError, OSError, ValueError) as error:
                raise self._explained(error) from error

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _pieces(self, result: obstore.GetResult) -> Iterator[bytes]:
        try:
            for piece in result.stream():
                yield bytes(piece)
        except (BaseError, OSError, ValueError) as error:
            raise self._explained(error) from error

    def _path(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def _opened(self, timeouts: ClientConfig) -> Any:
        options: ClientConfig = {
            "connect_timeout": CONNECT_TIMEOUT,
            "allow_http": self._access.allow_http,
            "user_agent": "cortex",
        }
        if self._access.root_certificate is not None:
            options["root_certificate"] = self._access.root_certificate
        return _KINDS[self._scheme](
            self._bucket, config=self._access.config, client_options={**options, **timeouts}, retry_config=RETRY
        )

    @property
    def _endpoint(self) -> str:
        return str(self._access.config.get("endpoint") or self._access.config.get("base_url") or _USUAL[self._scheme])

    def _explained(self, error: Exception) -> StorageError:
        base = f"{self._scheme}://{self._bucket}"
        if names_no_bucket(error):
            reason = f'there is no bucket "{self._bucket}" at {self._endpoint}'
            return StorageMissing(
                self.place, reason, hint="make it, or check its spelling and the address of the store"
            )
        if is_refusal(error):
            unnamed = self._access.source.startswith("none")
            source = (
                "asked without credentials, as none were found" if unnamed else f"credentials: {self._access.source}"
            )
            hint = f"{_NEEDED[self._scheme]} {base}"
            if has_expired(error):
                hint = "these credentials have expired: get new ones"
            elif code_of(error) in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
                hint = "the key is not known there, or its secret is another one: correct it"
            elif unnamed:
                hint = f"give the head credentials: its machine's role, or variables where Cortex is started; {hint}"
            return StorageDenied(self.place, f"access denied ({refusal_in_words(error)}; {source})", hint=hint)
        hint = region_hint(error) or "check the address and the network; what runs goes on serving"
        return StorageUnreachable(self.place, f"{self._endpoint}: {in_words(error)}", hint=hint)
