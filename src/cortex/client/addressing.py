"""Which api is meant by `NAME` or `DEPLOYMENT/NAME`, and which deployment by nothing at all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from cortex.client.errors import OperatorFailed
from cortex.client.operator import OperatorClient
from cortex.errors import CortexError
from cortex.ids import DEFAULT_DEPLOYMENT, DeploymentName
from cortex.wire.operator import ApiStatus

FILE_NAME = "cortex.yaml"
MOST_CANDIDATES = 8
_ITEM_START = re.compile(r"^(?=- )", re.MULTILINE)
_COMMENT = re.compile(r"(?:^|\s)#.*$", re.MULTILINE)
_NAME = re.compile(r"""^(?:- | {2,})name: +(["']?)([a-z][-a-z0-9]*)\1 *$""", re.MULTILINE)
_DEPLOYMENT_KIND = re.compile(r"""^(?:- | {2,})kind: +(["']?)deployment\1 *$""", re.MULTILINE)


class ApiNotFound(CortexError):
    """No api is called so. `candidates` are those that may have been meant, as `DEPLOYMENT/NAME`."""

    reference = "api-not-found"

    def __init__(self, name: str, candidates: tuple[str, ...], *, meant: str | None = None) -> None:
        self.name = name
        self.candidates = candidates
        if meant is not None:
            self.hint = f'did you mean "{meant}"?'
        elif candidates:
            self.hint = f"there are: {_listed(candidates)}"
        else:
            self.hint = "nothing is deployed; `cortex deploy` in a folder with a cortex.yaml changes that"
        super().__init__(f'there is no api "{name}"')


class NotOneApi(CortexError):
    """A deployment's name where one api is wanted. `candidates` are its apis, as `DEPLOYMENT/NAME`."""

    reference = "not-one-api"

    def __init__(self, name: str, candidates: tuple[str, ...]) -> None:
        self.name = name
        self.candidates = candidates
        self.hint = f"say which: {_listed(candidates)}" if candidates else ""
        super().__init__(f'"{name}" is a deployment{"" if candidates else ", and has no apis"}')


class AmbiguousApi(CortexError):
    """Several deployments have an api of this name. `candidates` are all of them, as `DEPLOYMENT/NAME`."""

    reference = "ambiguous-api"

    def __init__(self, name: str, candidates: tuple[str, ...]) -> None:
        self.name = name
        self.candidates = candidates
        self.hint = f"say which: {_listed(candidates)}"
        super().__init__(f'{len(candidates)} deployments have an api "{name}"')


class DeploymentNotFound(CortexError):
    """No deployment is called so. `candidates` are those that exist."""

    reference = "deployment-not-found"

    def __init__(self, name: str, candidates: tuple[str, ...], *, hint: str = "") -> None:
        from cortex.spec.problems import nearest

        self.name = name
        self.candidates = candidates
        meant = nearest(name, candidates, by_parts=False)
        if hint:
            self.hint = hint
        elif meant is not None:
            self.hint = f'did you mean "{meant}"?'
        elif candidates:
            self.hint = f"deployed: {_listed(candidates)}"
        else:
            self.hint = "nothing is deployed"
        super().__init__(f'there is no deployment "{name}"')


def find_file(start: Path) -> Path | None:
    """The nearest cortex.yaml in a folder or above it."""
    for folder in (start, *start.parents):
        file = folder / FILE_NAME
        if file.is_file():
            return file
    return None


def deployment_here(start: Path) -> str | None:
    """
    The deployment that the nearest cortex.yaml is about; None when there is none.

    A file of the usual look is read with a regular expression, which takes no time; only another one is parsed. A file
    that cannot be parsed says nothing: commands that only look something up do not fail because of it.
    """
    file = find_file(start)
    if file is None:
        return None
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    plain = _COMMENT.sub("", text)
    if "deployment" not in plain:
        return DEFAULT_DEPLOYMENT
    for item in _ITEM_START.split(plain):
        if _DEPLOYMENT_KIND.search(item) and (name := _NAME.search(item)):
            return name[2]
    return _parsed_deployment(text)


def find_api(operator: OperatorClient, name: str, here: str | None) -> ApiStatus:
    """
    The api that `name` means, with everything that is known of it.

    Args:
        name: `NAME` or `DEPLOYMENT/NAME`.
        here: the deployment whose api is meant by NAME alone, if it has one of that name.

    Raises:
        ApiNotFound: there is none; names the nearest.
        AmbiguousApi: several deployments have one, and none of them is `here`.
        NotOneApi: it is the name of a deployment.
    """
    found = find(operator, name, here)
    if isinstance(found, ApiStatus):
        return found
    raise NotOneApi(name, tuple(sorted(full_name(api) for api in operator.apis(found))))


def find(operator: OperatorClient, name: str, here: str | None) -> ApiStatus | DeploymentName:
    """
    The api that `name` means, else the deployment of that name, for whatever makes sense of several apis.

    Raises as `find_api`, but for NotOneApi.
    """
    deployment, slash, api = name.rpartition("/")
    first = deployment if slash else here
    if first:
        try:
            return operator.api(first, api)
        except OperatorFailed as error:
            if error.status != 404:
                raise
    apis = operator.apis()
    deployments = tuple(found.name for found in operator.deployments())
    if name in deployments and not any(api.name == name for api in apis):
        return DeploymentName(name)
    match = select(name, apis, deployments)
    return operator.api(match.deployment, match.name)


def select(name: str, apis: Iterable[ApiStatus], deployments: Iterable[str] = ()) -> ApiStatus:
    """The only api that `NAME` or `DEPLOYMENT/NAME` fits. Raises as `find`; `deployments` may be meant as well."""
    apis = tuple(apis)
    matches = [api for api in apis if name in (api.name, full_name(api))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise AmbiguousApi(name, tuple(sorted(full_name(api) for api in matches)))
    candidates = tuple(sorted(full_name(api) for api in apis))
    raise ApiNotFound(name, candidates, meant=_meant(name, apis, tuple(deployments)))


def full_name(api: ApiStatus) -> str:
    return f"{api.deployment}/{api.name}"


def _meant(name: str, apis: tuple[ApiStatus, ...], deployments: tuple[str, ...]) -> str | None:
    from cortex.spec.problems import nearest

    names = {full_name(api) for api in apis}
    same_name = sorted(full for full in names if full.rpartition("/")[2] == name.rpartition("/")[2])
    if "/" in name:
        return same_name[0] if len(same_name) == 1 else nearest(name, names)
    close = nearest(name, {api.name for api in apis})
    if close is None:
        return nearest(name, deployments, by_parts=False)
    owners = sorted(full_name(api) for api in apis if api.name == close)
    return close if len(owners) == 1 else owners[0]


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - MOST_CANDIDATES
    return ", ".join(names[:MOST_CANDIDATES]) + (f" and {more} more" if more > 0 else "")


def _parsed_deployment(text: str) -> str | None:
    from cortex.spec import loading

    try:
        return str(loading.load(text, file=FILE_NAME).spec.deployment)
    except CortexError:
        return None
