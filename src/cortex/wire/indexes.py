"""
Where packages come from, as far as variables of a shell say it: handed over by whoever deploys, kept in a file of the
home with mode 0600, and given to installers alone. They may hold passwords.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

_NAMES = frozenset(
    {
        *("UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX_STRATEGY"),
        *(
            "UV_HTTP_TIMEOUT",
            "UV_HTTP_RETRIES",
            "UV_INSECURE_HOST",
            "UV_KEYRING_PROVIDER",
            "UV_NATIVE_TLS",
            "UV_SYSTEM_CERTS",
            "UV_OFFLINE",
        ),
        *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT", "REQUESTS_CA_BUNDLE", "NETRC"),
    }
)
_PATHS = {"UV_FIND_LINKS": ",", "PIP_FIND_LINKS": " "}
"""Those that may name folders, with what separates several."""
_PREFIX = "UV_INDEX"
"""`UV_INDEX`, `UV_INDEX_URL`, and user name and password of an index by its name."""
_PASSWORD = re.compile(r"UV_INDEX_\w+_PASSWORD")


def is_index_variable(name: str) -> bool:
    return name in _NAMES or name.startswith(_PREFIX)


def index_variables(environ: Mapping[str, str], folder: Path | None = None) -> dict[str, str]:
    """
    Those of a shell's variables that say where packages come from.

    Args:
        folder: relative paths are relative to it; None: there are none.
    """
    found = {name: value for name, value in environ.items() if is_index_variable(name)}
    if folder is not None:
        for name in found.keys() & _PATHS:
            found[name] = _PATHS[name].join(
                str(folder / path) if path and "://" not in path and path[0] not in "~/" else path
                for path in re.split(r"[,\s]" if name == "UV_FIND_LINKS" else r"\s", found[name])
            )
    return found


def with_handed_over(environ: Mapping[str, str], handed_over: Mapping[str, str] | None) -> dict[str, str]:
    """
    Variables of a process with those that were handed over in place of its own.

    Args:
        handed_over: None when nobody has handed anything over.
    """
    if handed_over is None:
        return dict(environ)
    own = {name: value for name, value in environ.items() if not is_index_variable(name)}
    return own | index_variables(handed_over)


def passwords(environ: Mapping[str, str]) -> Iterable[str]:
    """What must not be seen of them, as it stands there and as it is meant."""
    for name, value in environ.items():
        if not is_index_variable(name):
            continue
        if _PASSWORD.fullmatch(name):
            yield value
        for word in re.split(r"[\s,]+", value):
            try:
                password = urlsplit(word.partition("=")[2] if re.match(r"[\w-]+=\w+://", word) else word).password
            except ValueError:
                continue
            if password:
                yield from (password, unquote(password))


def read_handed_over(file: Path) -> dict[str, str] | None:
    """What the last deploy handed over; None when none has, or the file cannot be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError):
        return None
