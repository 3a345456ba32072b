"""Secrets as deploys use them: each build is pinned to one value of each; and what the API says about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from cortex.clock import Clock
from cortex.errors import CortexError, Problem, Problems
from cortex.ids import ApiKey
from cortex.planning import happenings
from cortex.state.base import ApiRecord
from cortex.state.secrets import (
    SecretFacts,
    SecretMissing,
    SecretStore,
    cloud_entry,
    packed_cloud,
    unpacked_cloud,
)
from cortex.wire.build import BuildSpec, SecretPin
from cortex.wire.cloud import for_handlers
from cortex.wire.events import TellEvent, told_to_nobody
from cortex.wire.launch import IMPORT_TIME_VARIABLES
from cortex.wire.operator import CloudVariables, SecretStatus, rfc3339


class UnknownSecret(CortexError):
    """There is no secret of this name."""

    reference = "unknown-secret"
    hint = "`cortex secret list` shows those there are"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f'there is no secret "{name}"')


class SecretInUse(CortexError):
    """A secret that deployed apis get cannot be deleted just so."""

    reference = "secret-in-use"
    hint = (
        "take it out of `env` in cortex.yaml and deploy, then delete it;\n"
        "or delete it with --force: replicas that run keep their value, and none can be started any more"
    )

    def __init__(self, name: str, apis: Sequence[str]) -> None:
        self.name = name
        self.apis = tuple(apis)
        super().__init__(f'the secret "{name}" is in use: {", ".join(apis)}')


class Secrets:
    """
    What the API calls.

    Args:
        known: all apis that are stored.
    """

    def __init__(
        self,
        *,
        store: SecretStore,
        known: Callable[[], Iterable[ApiRecord]],
        clock: Clock,
        tell: TellEvent = told_to_nobody,
    ) -> None:
        self._store = store
        self._tell = tell
        self._known = known
        self._clock = clock

    def set(self, name: str, value: str) -> SecretStatus:
        """Keep a value for new versions. Raises SecretRefused, SecretsUnusable."""
        status = self._status(self._store.set(name, value, wall_s=self._clock.wall_s()))
        self._tell(happenings.secret_set(name, outdated_in=status.outdated_in))
        return status

    def all(self) -> tuple[SecretStatus, ...]:
        """Every secret, by name. Raises SecretsUnusable."""
        return tuple(self._status(facts) for facts in self._store.all())

    def delete(self, name: str, *, force: bool) -> None:
        """Forget a secret. Raises UnknownSecret, SecretInUse unless forced, SecretsUnusable."""
        users = sorted({record.wanted.api for record, _ in self._pins(name)})
        if users and not force:
            raise SecretInUse(name, users)
        if not self._store.delete(name):
            raise UnknownSecret(name)
        self._tell(happenings.secret_deleted(name, users=users))

    def _status(self, facts: SecretFacts) -> SecretStatus:
        pins = list(self._pins(facts.name))
        outdated = {
            record.wanted.api
            for record, pin in pins
            if pin.generation != facts.generation and pin in record.wanted.build.secrets.values()
        }
        return SecretStatus(
            name=facts.name,
            updated=rfc3339(facts.set_wall_s),
            used_by=tuple(sorted({record.wanted.api for record, _ in pins})),
            outdated_in=tuple(sorted(outdated)),
        )

    def _pins(self, name: str) -> Iterable[tuple[ApiRecord, SecretPin]]:
        for record in self._known():
            for build in record.wanted.builds:
                for pin in build.secrets.values():
                    if pin.name == name:
                        yield record, pin


class CloudKeys:
    """
    What the last deploy of each api handed over to reach its clouds, as its handler gets it.

    Args:
        store: apart from that of users' secrets, one entry an api.
    """

    def __init__(self, store: SecretStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def pinned(self, api: ApiKey, cloud: CloudVariables | None, before: BuildSpec | None) -> SecretPin | None:
        """
        The variables that a build gets: what is handed over now, or where nobody says, what the build before has.

        Raises:
            SecretsUnusable, SecretRefused
        """
        had = before.cloud if before is not None else None
        if cloud is None:
            return had
        variables = for_handlers(cloud.variables)
        if had is not None and self._store.has(had):
            if unpacked_cloud(self._store.value(had)) == variables:
                return had
        elif not variables:
            return None
        entry = cloud_entry(api)
        facts = self._store.set(entry, packed_cloud(variables), wall_s=self._clock.wall_s())
        return SecretPin(name=entry, generation=facts.generation)

    def forget(self, apis: Iterable[ApiKey]) -> None:
        """Of apis that are gone. Raises SecretsUnusable."""
        for api in apis:
            self._store.delete(cloud_entry(api))

    def prune(self, builds: Iterable[BuildSpec]) -> None:
        """Forget what was handed over before, but for what stored builds have. Raises SecretsUnusable."""
        pins = [build.cloud for build in builds if build.cloud is not None]
        self._store.prune(pins, wall_s=self._clock.wall_s())


def pinned(
    store: SecretStore, names: Mapping[str, str], before: Iterable[BuildSpec] = (), *, api: str
) -> dict[str, SecretPin]:
    """
    The values that a version gets: what its builds have already, or else the newest.

    Args:
        names: of secrets, by the variable that gets the value.
        before: stored builds of the same version.
        api: its name, for messages.

    Raises:
        Problems: every secret that there is not; paths lead into the api's spec.
        SecretsUnusable
    """
    before = tuple(before)
    problems: list[Problem] = []
    pins: dict[str, SecretPin] = {}
    for variable, name in names.items():
        if variable.startswith(IMPORT_TIME_VARIABLES):
            problems.append(_read_at_import(api, variable))
            continue
        had = next((pin for build in before if (pin := build.secrets.get(variable)) and store.has(pin)), None)
        facts = store.facts(name)
        if had is not None and had.name == name:
            pins[variable] = had
        elif facts is not None:
            pins[variable] = SecretPin(name=name, generation=facts.generation)
        else:
            missing = SecretMissing(name).problem()
            problems.append(
                Problem(
                    reference=missing.reference,
                    message=missing.message,
                    hint=f"{missing.hint}, which asks for its value; then deploy again",
                    subject=f'api "{api}": env: {variable}',
                    path=("env", variable),
                )
            )
    if problems:
        raise Problems(problems)
    return pins


def _read_at_import(api: str, variable: str) -> Problem:
    return Problem(
        reference="secret-read-at-import",
        message=f"{variable} cannot be a secret: libraries read it when they are imported, which replicas share",
        hint="write its value into cortex.yaml, or use a variable that the handler reads itself",
        subject=f'api "{api}": env: {variable}',
        path=("env", variable),
    )
