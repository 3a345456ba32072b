"""
Who may call the control plane: tokens with a role, kept as digests, and the home's own token, which may do everything.

A token is 32 random bytes, so its plain SHA-256 tells nothing about it, and looking one up by its digest takes no
longer for one that is nearly right.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from pathlib import Path

import msgspec

from cortex.clock import Clock
from cortex.errors import CortexError
from cortex.processes import write_whole
from cortex.wire.operator import CreatedToken, Role, TokenStatus, rfc3339

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME = 42
HOME = "home"
"""As whom the home's own token counts; no other has this name."""
PREFIX = "cortex_"
"""So that those who look for tokens in what was published find ours."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Whose token a call carries."""

    name: str
    role: Role


class UnknownToken(CortexError):
    """There is no operators' token of that name."""

    reference = "unknown-token"
    hint = "`cortex token list` shows them all"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f'there is no token "{name}"')


class TokenThere(CortexError):
    """There is an operators' token of that name already, and it is told only once."""

    reference = "token-there"

    def __init__(self, name: str) -> None:
        self.name = name
        self.hint = f"delete it first, and whoever uses it is turned away: cortex token delete {name}"
        super().__init__(f'there is a token "{name}" already')


class UnusableTokenName(CortexError):
    """A name that no operators' token can have."""

    reference = "unusable-token-name"

    def __init__(self, name: str) -> None:
        self.name = name
        self.hint = f"lower-case letters, digits and -, at most {LONGEST_NAME}, first a letter, last no -; not {HOME}"
        super().__init__(f"a token cannot be called {name!r}")


class TokensUnusable(CortexError):
    """The file of tokens cannot be read or written. Nobody but the home's own token is let in meanwhile."""

    reference = "tokens-unusable"

    def __init__(self, file: Path, reason: str) -> None:
        self.file = file
        self.hint = "put it right, or remove it and make new tokens"
        super().__init__(f"{file}: {reason}")


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    role: Role
    sha256: str
    """Of the token, hex."""
    created_wall_s: float


class _TokenFile(msgspec.Struct, frozen=True, kw_only=True):
    tokens: tuple[TokenRecord, ...] = ()


class Tokens:
    """
    The tokens of a home. Thread-safe.

    Args:
        file: where they are kept, mode 0600.
        home: the home's own token.
    """

    def __init__(self, *, file: Path, home: str, clock: Clock) -> None:
        self._file = file
        self._home_sha256 = _sha256(home)
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._known: dict[str, TokenRecord] = {}
        """By digest, as of `_stamp`."""

    def caller(self, token: str) -> Caller | None:
        """Whose token it is; None: nobody's, or that of one that was deleted."""
        digest = _sha256(token)
        if digest == self._home_sha256:
            return Caller(name=HOME, role=Role.ADMIN)
        with self._lock:
            try:
                record = self._read().get(digest)
            except TokensUnusable:
                return None
        return None if record is None else Caller(name=record.name, role=record.role)

    @staticmethod
    def is_same(given: str, kept: str) -> bool:
        """Whether two tokens are the same, in a time that tells nothing."""
        return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), kept.encode())

    def all(self) -> tuple[TokenStatus, ...]:
        """Every token but the home's own, by name. Raises TokensUnusable."""
        with self._lock:
            return tuple(sorted((_status(record) for record in self._read().values()), key=lambda one: one.name))

    def create(self, name: str, role: Role) -> CreatedToken:
        """
        Make a token; this is the only time that it is told.

        Raises:
            UnusableTokenName, TokenThere, TokensUnusable
        """
        if NAME.fullmatch(name) is None or len(name) > LONGEST_NAME or name == HOME:
            raise UnusableTokenName(name)
        token = PREFIX + secrets.token_urlsafe(32)
        with self._lock:
            known = self._read()
            if any(record.name == name for record in known.values()):
                raise TokenThere(name)
            record = TokenRecord(name=name, role=role, sha256=_sha256(token), created_wall_s=self._clock.wall_s())
            self._write((*known.values(), record))
        return CreatedToken(status=_status(record), token=token)

    def delete(self, name: str) -> None:
        """Whoever uses it is turned away from now on. Raises UnknownToken, TokensUnusable."""
        with self._lock:
            known = self._read()
            left = tuple(record for record in known.values() if record.name != name)
            if len(left) == len(known):
                raise UnknownToken(name)
            self._write(left)

    def _read(self) -> dict[str, TokenRecord]:
        """What the file says, read again when it is another one."""
        try:
            found = self._file.stat()
        except FileNotFoundError:
            self._stamp, self._known = None, {}
            return self._known
        except OSError as error:
            raise TokensUnusable(self._file, (error.strerror or str(error)).lower()) from error
        stamp = found.st_ino, found.st_mtime_ns
        if stamp != self._stamp:
            try:
                content = msgspec.json.decode(self._file.read_bytes(), type=_TokenFile)
            except OSError as error:
                raise TokensUnusable(self._file, (error.strerror or str(error)).lower()) from error
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise TokensUnusable(self._file, f"is no list of tokens ({error})") from error
            self._known = {record.sha256: record for record in content.tokens}
            self._stamp = stamp
        return self._known

    def _write(self, records: tuple[TokenRecord, ...]) -> None:
        content = msgspec.json.encode(_TokenFile(tokens=tuple(sorted(records, key=lambda record: record.name))))
        try:
            write_whole(self._file, msgspec.json.format(content, indent=2) + b"\n")
        except OSError as error:
            raise TokensUnusable(self._file, (error.strerror or str(error)).lower()) from error
        self._stamp = None


def _status(record: TokenRecord) -> TokenStatus:
    return TokenStatus(name=record.name, role=record.role, created=rfc3339(record.created_wall_s))


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
