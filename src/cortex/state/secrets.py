"""
Secrets: what `cortex secret set` was given. Kept apart from the wanted state, which only names them.

One file a secret, mode 0600, in a folder of mode 0700. A value gets a generation, drawn at random, each time that it is
set; a build is pinned to one, so that every process of a version gets the same value, whenever it starts. Older values
are kept for as long as a stored build needs them. One process writes (the control plane), others read.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from cortex.errors import CortexError
from cortex.ids import ApiKey
from cortex.processes import write_whole
from cortex.wire.build import SecretPin

MAX_VALUE_BYTES = 127 * 1024
"""What fits into an environment variable on Linux."""
REPLACED_GRACE_S = 3600.0
"""A replaced value is kept for this long although no stored build needs it: a deploy may be about to store one."""
_NAME = re.compile(r"[A-Za-z0-9_][-._A-Za-z0-9]{0,127}")


class SecretMissing(CortexError):
    """There is no such secret, or not the value of it that a build is pinned to."""

    reference = "secret-missing"

    def __init__(self, name: str, message: str = "") -> None:
        self.name = name
        self.hint = f"run `cortex secret set {name}`"
        if message:
            self.hint += ", then `cortex refresh`"
        super().__init__(message or f'there is no secret "{name}"')


class SecretRefused(CortexError):
    """A name or a value that no secret can have. Never tells the value."""

    reference = "bad-secret"


class SecretsUnusable(CortexError):
    """The folder of secrets, or a file in it, cannot be read or written."""

    reference = "secrets-unusable"

    def __init__(self, place: Path, error: Exception) -> None:
        self.place = place
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            self.hint = f"free space on the disk that holds {place}, then repeat the command; what runs goes on serving"
        super().__init__(f"{place} cannot be used: {reason}")


class SecretFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A secret without its value."""

    name: str
    generation: str
    set_wall_s: float


class _Value(msgspec.Struct, frozen=True, kw_only=True):
    value: str
    set_wall_s: float

    def __repr__(self) -> str:
        return "<a secret>"


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The file of a secret."""

    current: str
    """Generation of the value that new versions get."""
    values: dict[str, _Value]
    """By generation."""


class SecretStore:
    """
    Every secret of a home.

    Args:
        folder: made when a secret is first set.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writing = threading.Lock()

    def set(self, name: str, value: str, *, wall_s: float) -> SecretFacts:
        """
        Keep a value, which new versions get from now on.

        Raises:
            SecretRefused, SecretsUnusable
        """
        _check_value(value)
        file = self._file(name)
        with self._writing:
            generation = secrets.token_hex(8)
            older = self._read(name)
            values = {} if older is None else older.values
            stored = _Stored(current=generation, values={**values, generation: _Value(value=value, set_wall_s=wall_s)})
            self._write(file, stored)
        return SecretFacts(name=name, generation=generation, set_wall_s=wall_s)

    def all(self) -> tuple[SecretFacts, ...]:
        """All secrets, by name. Raises SecretsUnusable."""
        return tuple(facts for name in self._names() if (facts := self.facts(name)) is not None)

    def facts(self, name: str) -> SecretFacts | None:
        """What is known of a secret; None when there is none of that name. Raises SecretsUnusable."""
        stored = self._read(name)
        if stored is None:
            return None
        return SecretFacts(name=name, generation=stored.current, set_wall_s=stored.values[stored.current].set_wall_s)

    def has(self, pin: SecretPin) -> bool:
        """Whether the pinned value is still there. Raises SecretsUnusable."""
        stored = self._read(pin.name)
        return stored is not None and pin.generation in stored.values

    def facts_of(self, pin: SecretPin) -> SecretFacts | None:
        """When the pinned value was set; None when it is there no more. Raises SecretsUnusable."""
        stored = self._read(pin.name)
        found = stored.values.get(pin.generation) if stored is not None else None
        if found is None:
            return None
        return SecretFacts(name=pin.name, generation=pin.generation, set_wall_s=found.set_wall_s)

    def value(self, pin: SecretPin) -> str:
        """
        The value that a build is pinned to.

        Raises:
            SecretMissing, SecretsUnusable
        """
        stored = self._read(pin.name)
        if stored is None:
            raise SecretMissing(pin.name, f'the secret "{pin.name}" was deleted')
        found = stored.values.get(pin.generation)
        if found is None:
            raise SecretMissing(pin.name, f'the value of the secret "{pin.name}" that this version had was deleted')
        return found.value

    def delete(self, name: str) -> bool:
        """Forget a secret with all its values. False: there was none. Raises SecretsUnusable."""
        with self._writing:
            try:
                self._file(name).unlink()
            except FileNotFoundError:
                return False
            except OSError as error:
                raise SecretsUnusable(self._folder, error) from error
        return True

    def prune(self, needed: Collection[SecretPin], *, wall_s: float) -> None:
        """Forget replaced values that no stored build needs. Raises SecretsUnusable."""
        keep = {(pin.name, pin.generation) for pin in needed}
        for name in self._names():
            with self._writing:
                stored = self._read(name)
                if stored is None:
                    continue
                left = dict(_still_needed(name, stored, keep, wall_s))
                if left.keys() != stored.values.keys():
                    self._write(self._file(name), msgspec.structs.replace(stored, values=left))

    # ---- files --------------------------------------------------------------------------------------------------

    def _file(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            rule = "letters, digits, dots, dashes and underscores, at most 128, and neither dot nor dash first"
            raise SecretRefused(f"the name of a secret has {rule}")
        return self._folder / name

    def _names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._folder) if _NAME.fullmatch(name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SecretsUnusable(self._folder, error) from error

    def _read(self, name: str) -> _Stored | None:
        file = self._file(name)
        try:
            stored = msgspec.json.decode(file.read_bytes(), type=_Stored)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SecretsUnusable(file, error) from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SecretsUnusable(file, error) from None
        if stored.current not in stored.values:
            raise SecretsUnusable(file, ValueError())
        return stored

    def _write(self, file: Path, stored: _Stored) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(file, msgspec.json.encode(stored))
        except OSError as error:
            raise SecretsUnusable(self._folder, error) from None


# ---- what leads to clouds: one entry an api, all its variables together ----------------------------------------------


def cloud_entry(api: ApiKey) -> str:
    """The name under which an api's variables are kept, in a store of their own."""
    return api.replace("/", ".")


def packed_cloud(variables: Mapping[str, str]) -> str:
    """Variables as one value. The same ones give the same value."""
    return msgspec.json.encode(dict(variables), order="deterministic").decode()


def unpacked_cloud(value: str) -> dict[str, str]:
    """What `packed_cloud` packed."""
    return msgspec.json.decode(value, type=dict[str, str])


def _still_needed(name: str, stored: _Stored, keep: Collection[tuple[str, str]], wall_s: float) -> Mapping[str, _Value]:
    replaced_wall_s = stored.values[stored.current].set_wall_s
    recent = 0 <= wall_s - replaced_wall_s < REPLACED_GRACE_S
    return {
        generation: value
        for generation, value in stored.values.items()
        if generation == stored.current or recent or (name, generation) in keep
    }


def _check_value(value: str) -> None:
    if not value:
        raise SecretRefused("the value is empty")
    if "\0" in value:
        raise SecretRefused("the value has a NUL character, which no environment variable can hold")
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise SecretRefused("the value is not UTF-8 text") from None
    if size_bytes > MAX_VALUE_BYTES:
        raise SecretRefused(
            f"the value has {size_bytes} bytes; an environment variable holds at most {MAX_VALUE_BYTES}"
        )
