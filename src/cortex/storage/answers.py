"""
What the client of object stores says when something is wrong, as facts and in words.

Its own texts are long, and hold whole URLs, and with them signatures: nothing of ours shows them as they are.
"""

from __future__ import annotations

import re

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

NOT_FOUND = FileNotFoundError
"""What `obstore` raises for 404."""
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist", "notFound: bucket")
_EXPIRED = (
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidAuthenticationInfo",
)
_ELSEWHERE = ("PermanentRedirect", "AuthorizationHeaderMalformed")
_REGION = re.compile(r"expecting '?([a-z]{2}(?:-[a-z]+)+-\d)")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")
_SAID = re.compile(r"<Message>([^<]{1,300})")
_PREFIX = re.compile(r"^.*?Error (?:performing|getting)[^\n]*? - ", re.DOTALL)
_DEEPEST = re.compile(r'message: "([^"]{1,200})"')
_QUERY = re.compile(r"(https?://[^\s?\"']*)\?[^\s\"']*")
_DEEP_CAUSES = (
    ("dns error", "the host is not known"),
    ("failed to lookup address", "the host is not known"),
    ("UnknownIssuer", "its certificate is signed by nobody who is trusted here; SSL_CERT_FILE may name an authority"),
    ("InvalidCertificate", "its certificate is not valid"),
    ("invalid peer certificate", "its certificate is not valid"),
    ("TimedOut", "no answer in time"),
    ("IncompleteMessage", "the connection ended in the middle of an answer"),
    ("UnexpectedEof", "the connection ended in the middle of an answer"),
    ("ConnectionReset", "the connection was reset"),
)


def status_of(error: Exception) -> int | None:
    """The HTTP status that was answered; None where nothing was, or it is not told."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def code_of(error: Exception) -> str:
    """The store's own word for what is wrong, such as `AccessDenied`; empty without one."""
    found = _CODE.search(str(error))
    return found[1] if found else ""


def names_no_bucket(error: Exception) -> bool:
    """Whether there is no such bucket, or container."""
    text = str(error)
    return any(sign in text for sign in _NO_BUCKET)


def has_expired(error: Exception) -> bool:
    """Whether the credentials were right once."""
    text = str(error)
    return any(sign in text for sign in _EXPIRED)


def is_refusal(error: Exception) -> bool:
    """Whether who asked may not. The client only makes some refusals errors of their own, not those of listings."""
    denied = isinstance(error, PermissionDeniedError | UnauthenticatedError) or status_of(error) in (401, 403)
    return denied or has_expired(error)


def refusal_in_words(error: Exception) -> str:
    """With what a refusal was explained: `AccessDenied: You may not`."""
    refused = code_of(error) or f"{status_of(error) or 'refused'}"
    return f"{refused}: {said}" if (said := _said_in(error)) else refused


def region_hint(error: Exception) -> str:
    """What to do where the bucket is in another region than we asked in; empty where it is not that."""
    text = str(error)
    if "region" not in text and code_of(error) not in _ELSEWHERE:
        return ""
    meant = _REGION.search(text)
    return f"the bucket is in another region: set AWS_REGION{f'={meant[1]}' if meant else ' to it'}"


def in_words(error: Exception) -> str:
    """The client's reason on one line, without its internals and without queries of URLs."""
    text = str(error)
    first, _, inside = text.partition("\n\nDebug source:")
    first = _QUERY.sub(r"\1?***", _PREFIX.sub("", first, count=1))
    if "HTTP error" in first or "request or response body" in first or "error decoding" in first:
        for sign, words in _DEEP_CAUSES:
            if sign in inside:
                return words
        if deepest := _DEEPEST.findall(inside):
            return str(deepest[-1]).lower()
    if (status := status_of(error)) is not None:
        said = _said_in(error)
        return f"status {status}{f' ({code_of(error)}: {said})' if said else ''}"
    return " ".join(first.split())[:300]


def _said_in(error: Exception) -> str:
    found = _SAID.search(str(error))
    return " ".join(found[1].split()).rstrip(".") if found else ""
