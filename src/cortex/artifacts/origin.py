"""
Where remote models lie, through `obstore`: what is there, what it is now, and its bytes.

Only `artifacts.fetcher`'s process imports this, so that what a deploy's shell hands over is in no other one. What the
client says is turned into our errors here: its own texts hold whole URLs, and with them signatures.
"""

from __future__ import annotations

import posixpath
import re
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from cortex.artifacts.download import Interrupted, RangesUnsupported
from cortex.artifacts.errors import (
    BucketNotFound,
    InvalidLocation,
    ModelSourceError,
    NoModel,
    OriginChanged,
    OriginDenied,
    OriginUnreachable,
)
from cortex.artifacts.models import MAX_ENTRIES
from cortex.spec.locations import masked_model
from cortex.storage.answers import (
    NOT_FOUND,
    code_of,
    has_expired,
    in_words,
    is_refusal,
    names_no_bucket,
    refusal_in_words,
    region_hint,
    status_of,
)
from cortex.storage.credentials import Access
from cortex.wire.fetch import OriginObject, described

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

CONNECT_TIMEOUT = "10s"
READ_TIMEOUT = "30s"
"""Between two pieces of an answer; a slow store may take as long as it likes, a silent one is asked again."""
REQUEST_TIMEOUT = "1h"
RETRY: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}
"""Of one request that failed before its answer began (5xx, refused connections); the rest is up to `download`."""
CHUNK_BYTES = 2**16
"""Small, so that progress shows on slow links too."""
SIBLINGS_LOOKED_AT = 1000

_BUCKET = re.compile(r"\$?[A-Za-z0-9][A-Za-z0-9._-]*")
"""Any that some store allows, Azure's `$web` too; whether this one does, it says itself."""


class ObjectOrigin:
    """
    One place in an object store, or one URL. May be used by several threads.

    Args:
        model: as cortex.yaml has it.

    Attributes:
        key: of the object or folder that is named; "" for a whole bucket.
        shown: how people know it.
    """

    def __init__(self, model: str, access: Access) -> None:
        self.shown = masked_model(model)
        self.key = ""
        self._model = model
        self._access = access
        self._scheme = model.partition("://")[0].lower()
        self._expected: dict[str, OriginObject] = {}

    @property
    def is_folder_named(self) -> bool:
        """Whether the name itself says that it is a folder."""
        return False

    def url_of(self, key: str) -> str:
        """How people know an object, and how it is recognised: without secrets."""
        raise NotImplementedError

    def find(self, key: str) -> OriginObject | None:
        """
        What an object is now; None when there is none. From now on only these bytes are read.

        Raises:
            OriginDenied, OriginUnreachable, BucketNotFound
        """
        store, path = self._at(key)
        try:
            meta = self._ask(store, path)
        except NOT_FOUND:
            return None
        except (BaseError, OSError, ValueError) as error:
            raise self._explained(error, key) from error
        return self.expect(key, meta)

    def expect(self, key: str, meta: Any) -> OriginObject:
        """Remember what an object is, for `read`."""
        found = _as_object(self.url_of(key), meta)
        self._expected[key] = found
        return found

    def below(self) -> dict[str, OriginObject]:
        """
        Every object of the folder, by its name relative to it; empty when there is no such folder.

        Raises:
            NoModel: more than are searched through.
            OriginDenied, OriginUnreachable, BucketNotFound
        """
        return {}

    def neighbours(self) -> list[str]:
        """Names beside the named object, to tell which one might be meant; empty when nobody knows."""
        return []

    def begins_with(self, key: str, start: bytes) -> bool:
        """Whether an object's first bytes are these. Raises as `read`, but nothing is tried again."""
        size = min(len(start), self._expected[key].size_bytes)
        found = b"".join(bytes(piece) for piece in self.read(key, 0, size))
        return found == start

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """
        See `download.Readable`. Names are keys that `find` or `below` have told of.

        Raises:
            OriginChanged: it is not any more what it was when it was found.
            OriginDenied, OriginUnreachable: asking again would not help.
            Interrupted, RangesUnsupported
        """
        expected = self._expected[name]
        if end <= start:
            return
        store, path = self._at(name)
        options: dict[str, Any] = {}
        is_whole = start == 0 and end == expected.size_bytes
        if not is_whole:
            options["range"] = (start, end)
        if expected.etag and not expected.etag.startswith("W/"):
            options["if_match"] = expected.etag
        elif expected.modified_wall_s is not None:
            options["if_unmodified_since"] = datetime.fromtimestamp(expected.modified_wall_s, UTC)
        try:
            result = obstore.get(store, path, options=options)  # type: ignore[arg-type]
        except PreconditionError as error:
            raise self._changed(name) from error
        except NOT_FOUND as error:
            raise self._changed(name) from error
        except NotSupportedError as error:
            if is_whole:
                raise self._explained(error, name) from error
            raise RangesUnsupported from error
        except (BaseError, OSError, ValueError) as error:
            raise self._interruption(error, name) from error
        found = _as_object(expected.url, result.meta)
        # Some stores do not know conditions, and answer with whatever they have.
        if not found.is_same(expected) and (expected.etag or expected.modified_wall_s is not None):
            raise self._changed(name, found)
        try:
            for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                yield memoryview(chunk)  # type: ignore[misc]
        except (BaseError, OSError, ValueError) as error:
            raise self._interruption(error, name) from error

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _at(self, key: str) -> tuple[Any, str]:
        """The client and the path in it that lead to an object."""
        raise NotImplementedError

    def _ask(self, store: Any, path: str) -> Any:
        return obstore.head(store, path)

    @property
    def _client(self) -> ClientConfig:
        options: ClientConfig = {
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": READ_TIMEOUT,
            "timeout": REQUEST_TIMEOUT,
            "allow_http": self._access.allow_http,
            "user_agent": "cortex",
        }
        if self._access.root_certificate is not None:
            options["root_certificate"] = self._access.root_certificate
        return options

    @property
    def _endpoint(self) -> str:
        usual = {"s3": "Amazon S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
        named = self._access.config.get("endpoint") or self._access.config.get("base_url")
        return masked_model(named) if named else usual.get(self._scheme, "")

    def _changed(self, key: str, found: OriginObject | None = None) -> ModelSourceError:
        expected = self._expected[key]
        if found is None:
            try:
                found = _as_object(expected.url, self._ask(*self._at(key)))
            except NOT_FOUND:
                return OriginChanged(self.shown, expected.url, described(expected), "gone")
            except (BaseError, OSError, ValueError):
                return OriginChanged(self.shown, expected.url, described(expected), "another one")
        return OriginChanged(self.shown, expected.url, described(expected), described(found))

    def _interruption(self, error: Exception, key: str) -> Exception:
        """What may pass when it is tried again, and what will not."""
        status = status_of(error)
        lasting = isinstance(error, PermissionDeniedError | UnauthenticatedError | InvalidPathError | ValueError)
        if lasting or (status is not None and 400 <= status < 500 and status not in (408, 429)):
            return self._explained(error, key)
        return Interrupted(in_words(error))

    def _explained(self, error: Exception, key: str) -> ModelSourceError:
        shown = self.url_of(key)
        if names_no_bucket(error):
            return BucketNotFound(self.shown, self._bucket, self._endpoint, hint=self._bucket_hint())
        if is_refusal(error):
            hint = self._access_hint(code_of(error), has_expired(error))
            return OriginDenied(self.shown, shown, refusal_in_words(error), source=self._access.source, hint=hint)
        if isinstance(error, InvalidPathError) or "Could not parse path" in str(error):
            return OriginUnreachable(self.shown, shown, in_words(error), hint="rename it: no empty parts, no `..`")
        return OriginUnreachable(self.shown, shown, self._from_where(in_words(error)), hint=region_hint(error))

    def _from_where(self, reason: str) -> str:
        return f"{self._endpoint}: {reason}" if self._endpoint else reason

    @property
    def _bucket(self) -> str:
        return ""

    def _bucket_hint(self) -> str:
        return "check its spelling"

    def _access_hint(self, code: str, stale: bool) -> str:
        return ""


class BucketOrigin(ObjectOrigin):
    """`s3://`, `gs://`, `az://`: a bucket, and a key or a folder in it."""

    def __init__(self, model: str, access: Access) -> None:
        super().__init__(model, access)
        bucket, _, key = model.partition("://")[2].partition("/")
        self._bucket_name = bucket
        self._named_as_folder = key.endswith("/") or not key
        self.key = key.strip("/")
        self._base = f"{self._scheme}://{bucket}"
        settings: dict[str, Any] = {
            "config": access.config,
            "client_options": self._client,
            "retry_config": RETRY,
        }
        kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
        try:
            self._store = kinds[self._scheme](bucket, **settings)
        except (BaseError, ValueError, OSError) as error:
            raise OriginUnreachable(
                self.shown, self.shown, in_words(error), hint="check the address and the credentials' settings"
            ) from error

    @property
    def is_folder_named(self) -> bool:
        return self._named_as_folder

    def url_of(self, key: str) -> str:
        return f"{self._base}/{key}" if key else self._base

    def below(self) -> dict[str, OriginObject]:
        found: dict[str, OriginObject] = {}
        try:
            for batch in obstore.list(self._store, prefix=self.key or None, chunk_size=1000):
                for meta in batch:
                    name = posixpath.relpath(meta["path"], self.key or ".")
                    found[name] = self.expect(meta["path"], meta)
                if len(found) > MAX_ENTRIES:
                    raise NoModel(
                        self.shown,
                        f"{self.shown} holds more than {MAX_ENTRIES} objects, so it was not searched through",
                        hint="name the model's own folder",
                    )
        except (BaseError, OSError, ValueError) as error:
            raise self._explained(error, self.key) from error
        # Consoles mark folders with empty objects of their name.
        folders = {parent for name in found for parent in _parents(name)}
        return {name: one for name, one in found.items() if one.size_bytes or name not in folders}

    def neighbours(self) -> list[str]:
        folder = posixpath.dirname(self.key)
        try:
            found = obstore.list_with_delimiter(self._store, folder or None)
        except (BaseError, OSError, ValueError):
            return []
        paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        return [posixpath.basename(path.rstrip("/")) for path in paths[:SIBLINGS_LOOKED_AT]]

    def _at(self, key: str) -> tuple[Any, str]:
        return self._store, key

    @property
    def _bucket(self) -> str:
        return self._bucket_name

    def _bucket_hint(self) -> str:
        if self._scheme == "s3" and "endpoint" not in self._access.config:
            return "check its spelling; for a store that is not Amazon's, set AWS_ENDPOINT_URL"
        return f"check its spelling, and whether {self._endpoint} is where it should be"

    def _access_hint(self, code: str, stale: bool) -> str:
        again = "then deploy again from that shell"
        if stale:
            return f"these credentials have expired: get new ones, {again}"
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
            return f"the key is not known there, or its secret is another one: correct it, {again}"
        if self._access.source.startswith("none"):
            return f"{_HOW_TO_GIVE[self._scheme]}, {again}"
        return f"{_NEEDED[self._scheme]} {self._base}; or use other credentials: {_HOW_TO_GIVE[self._scheme]}"


_HOW_TO_GIVE = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "az": "set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
_NEEDED = {
    "s3": "they need s3:GetObject and s3:ListBucket on",
    "gs": "they need the role Storage Object Viewer on",
    "az": "they need the role Storage Blob Data Reader on",
}


class UrlOrigin(ObjectOrigin):
    """
    `https://`: one file. Its query belongs to it alone, so that files beside it are only found without one.

    The key of the file itself is its last name, those of its neighbours are theirs.
    """

    def __init__(self, model: str, access: Access) -> None:
        super().__init__(model, access)
        address = model.partition("#")[0]
        self._address, mark, self._query = address.partition("?")
        self._is_signed = bool(mark)
        self.key = posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(self._address).path))

    def url_of(self, key: str) -> str:
        if key == self.key:
            return masked_model(self._address)
        return masked_model(self._beside(key))

    def find(self, key: str) -> OriginObject | None:
        if key != self.key and self._is_signed:
            return None
        return super().find(key)

    def _beside(self, key: str) -> str:
        return urllib.parse.urljoin(self._address, urllib.parse.quote(key))

    def _at(self, key: str) -> tuple[Any, str]:
        url = self._address if key == self.key else self._beside(key)
        if key == self.key and self._is_signed:
            url = f"{url}?{self._query}"
        # A path of its own would be put behind the query: the URL is passed whole and the path is empty.
        return HTTPStore(url, client_options=self._client, retry_config=RETRY), ""

    def _ask(self, store: Any, path: str) -> Any:
        try:
            return obstore.head(store, path)
        except NOT_FOUND:
            raise
        except (BaseError, OSError) as error:
            # URLs are signed for one method, and some servers know no HEAD: ask for the content and do not read it.
            if (status_of(error) or 0) not in (400, 401, 403, 405, 501):
                raise
            return obstore.get(store, path).meta

    def _access_hint(self, code: str, stale: bool) -> str:
        if self._is_signed:
            return "signed URLs are valid for a while only: make a new one, then deploy again"
        return "what lies behind a login needs a signed URL, or another source"


def open_origin(model: str, access: Access) -> ObjectOrigin:
    """
    Raises:
        InvalidLocation: the URL leads nowhere.
        OriginUnreachable: the settings are no good.
    """
    scheme = model.partition("://")[0].lower()
    _check_location(scheme, model)
    return UrlOrigin(model, access) if scheme in ("https", "http") else BucketOrigin(model, access)


def _check_location(scheme: str, model: str) -> None:
    place = model.partition("://")[2].partition("/")[0]
    if scheme in ("https", "http"):
        try:
            host = urllib.parse.urlsplit(model).hostname
        except ValueError:
            host = None
        if not host:
            raise InvalidLocation(masked_model(model), "names no host", hint="write https://host/path")
    elif not place:
        raise InvalidLocation(model, "names no bucket", hint=f"write {scheme}://bucket/path")
    elif not _BUCKET.fullmatch(place):
        hint = "names of buckets have letters, digits, dots, dashes and underscores"
        raise InvalidLocation(model, f"names the bucket {place!r}, which none can be called", hint=hint)


def _as_object(url: str, meta: Any) -> OriginObject:
    modified: datetime | None = meta["last_modified"]
    # A server that tells no date is given the epoch by the client.
    wall_s = modified.timestamp() if modified is not None and modified.timestamp() > 0 else None
    return OriginObject(url=url, size_bytes=meta["size"], etag=meta["e_tag"], modified_wall_s=wall_s)


def _parents(name: str) -> Iterator[str]:
    while name := posixpath.dirname(name):
        yield name
