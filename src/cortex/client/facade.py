"""Cortex for Python users: deploy, look, predict, as plain calls."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from cortex.client.addressing import deployment_here, find, find_api
from cortex.client.connections import Connections
from cortex.client.described import Classes, Values, picture_of, table_of, tracked
from cortex.client.environments import open_environment, settings_of
from cortex.client.follow import Outcome, follow
from cortex.client.operator import ALL_LINES, WATCH_S, OperatorClient
from cortex.client.prediction import Answer, PredictionRefused
from cortex.client.project import locate, prepare, upload
from cortex.client.reconnection import Reconnecting
from cortex.client.samples import decoded, encoded
from cortex.clock import Clock, SystemClock
from cortex.errors import CortexError, Problems
from cortex.settings import LOCAL
from cortex.wire.agent import LogLine
from cortex.wire.operator import (
    MOST_EVENTS,
    ApiChange,
    ApiStatus,
    DeployResult,
    EventLine,
    HistoryLine,
    Latency,
    ReplicaCounts,
    RequestCounts,
    RollbackRequest,
    Status,
    Watched,
)

WAIT_S = 600.0
CONCURRENCY = 16
LOOKED_UP_FOR_S = 30.0
"""Where an api answers is asked for again after so long: it may be another one's name by then."""


class Apis(tuple[ApiStatus, ...]):
    """Apis, one after another; a table in a notebook."""

    __slots__ = ()

    @property
    def html(self) -> str:
        """A table, as notebooks show it."""
        return table_of(self)

    def _repr_html_(self) -> str:
        return self.html


class Api:
    """
    One api as it was when this was asked for, and what can be done with it; in a notebook a table and a picture of
    what it predicts. `Client.api` makes one.
    """

    def __init__(self, client: Client, described: ApiStatus) -> None:
        self._client = client
        self.described = described
        """Everything that is known of it, as `cortex get API -o json` shows it."""

    @property
    def name(self) -> str:
        """`DEPLOYMENT/NAME`."""
        return f"{self.described.deployment}/{self.described.name}"

    @property
    def status(self) -> Status:
        return self.described.status

    @property
    def version(self) -> str:
        """8 hex digits."""
        return self.described.version

    @property
    def endpoint(self) -> str:
        """URL to POST to."""
        return self.described.endpoint

    @property
    def replicas(self) -> ReplicaCounts:
        return self.described.replicas

    @property
    def requests(self) -> RequestCounts:
        """Of the wanted version, over the last 14 days."""
        return self.described.requests

    @property
    def latency_ms(self) -> Latency:
        return self.described.requests.latency_ms

    @property
    def tracker(self) -> Classes | Values | None:
        """What it predicts; None without a tracker."""
        return tracked(self.described)

    def predict(self, sample: Any, *, content_type: str | None = None, debug: bool = False) -> Any:
        """As `Client.predict`."""
        return self._client.predict(self.name, sample, content_type=content_type, debug=debug)

    def predict_many(self, samples: Iterable[Any], **options: Any) -> list[Any]:
        """As `Client.predict_many`."""
        return self._client.predict_many(self.name, samples, **options)

    def logs(self, **options: Any) -> Iterator[LogLine]:
        """As `Client.logs`."""
        return self._client.logs(self.name, **options)

    def events(self, **options: Any) -> Iterator[EventLine]:
        """As `Client.events`."""
        return self._client.events(self.name, **options)

    def history(self) -> tuple[HistoryLine, ...]:
        """As `Client.history`."""
        return self._client.history(self.name)

    def rollback(self, version: str = "", **options: Any) -> Api:
        """As `Client.rollback`."""
        return self._client.rollback(self.name, version, **options)

    def __repr__(self) -> str:
        ready = f"{self.replicas.ready} of {self.replicas.requested} replicas ready"
        return f"<Api {self.name} {self.version[:8]}: {self.status.value}, {ready}, {self.endpoint}>"

    @property
    def html(self) -> str:
        """A table and what it predicts, as notebooks show it."""
        return picture_of(self.described)

    def _repr_html_(self) -> str:
        return self.html


class Client:
    """
    An environment: the one that `cortex` on the command line talks to. For any number of threads.

    >>> client = Client()
    >>> client.deploy("examples/iris")
    >>> client.predict("sklearn", {"sepal_length": 5.2, "sepal_width": 3.6, "petal_length": 1.4, "petal_width": 0.3})
    'iris-setosa'

    Args:
        env: name of an environment that `cortex configure` was told of; None means the chosen one.
        home: folder of the environment; None means `CORTEX_HOME`, or `~/.cortex`.
        environ: settings and what a started control plane inherits; None means the environment of this process.

    Raises:
        CortexError: each has `problem()`, with code, message and the next step, as the command line shows it.
    """

    def __init__(
        self,
        env: str | None = None,
        *,
        home: str | PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self._environ = environ
        self._settings = settings_of(environ, environment=env, home=os.fspath(home) if home is not None else None)
        self._clock = clock or SystemClock()
        self._environment = open_environment(self._settings, environ=environ, clock=self._clock)
        self.connections = Connections()
        """To the doors of apis that were asked for predictions."""
        weakref.finalize(self, self.connections.close)
        self._endpoints: dict[str, tuple[str, bool, float]] = {}
        """By name as it was given: the endpoint, whether a request may be sent again, and until when that is taken."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept. The client may be used on."""
        self.connections.close()

    # ---- changing -----------------------------------------------------------------------------------------------

    def deploy(
        self,
        path: str | PathLike[str] = ".",
        *,
        wait: bool = True,
        timeout_s: float = WAIT_S,
        force: bool = False,
        prune: bool = False,
    ) -> Apis:
        """
        Deploy a folder with a cortex.yaml, or a yaml file; starts Cortex if it does not run.

        Args:
            wait: until every api is live; else return as soon as the deploy is accepted.
            timeout_s: how long nothing may move while waiting.
            force: accept a gap where there is no room for one replica more.
            prune: take over a deployment that came from another folder.

        Returns:
            Every api of the deployment.

        Raises:
            Problems: something is wrong with the file, a model or a handler, and nothing was changed; or an api did
                not become live, with its reason and the handler's traceback.
        """
        file = locate(os.fspath(path), Path.cwd())
        with prepare(
            file,
            shown_file=str(file),
            home=self._settings.home,
            now_wall_s=self._clock.wall_s(),
            force=force,
            prune=prune,
            environ=self._environ if self._settings.environment == LOCAL else None,
        ) as package:
            operator = self._environment.ensure(even_if_down=True)
            upload(operator, package)
            *_, result = operator.deploy(package.request)
        assert isinstance(result, DeployResult)
        if result.problems:
            raise Problems(map(package.told, result.problems))
        deployment = package.request.deployment
        self._endpoints.clear()
        if wait:
            self._wait(operator, result.changes, deployment, timeout_s)
        return Apis(operator.apis(deployment))

    def rollback(
        self, api: str, version: str = "", *, wait: bool = True, timeout_s: float = WAIT_S, force: bool = False
    ) -> Api:
        """
        Have an older version of an api serve again.

        Args:
            version: its first digits; empty: the one that served before.
            wait: until every request gets it.

        Raises:
            OperatorFailed: there is none, or it cannot come back; says why.
            Problems: it did not become live.
        """
        operator = self._environment.look()
        found = self._find(operator, api)
        result = operator.roll_back(found.deployment, found.name, RollbackRequest(version=version, force=force))
        if wait:
            self._wait(operator, (result.change,), found.deployment, timeout_s)
        return Api(self, operator.api(found.deployment, found.name))

    def delete(self, name: str) -> tuple[str, ...]:
        """
        Remove an api (`NAME` or `DEPLOYMENT/NAME`) or a whole deployment; nobody is asked.

        Returns:
            `DEPLOYMENT/NAME` of each that is on its way out; no request reaches it any more.
        """
        operator = self._environment.look()
        found = find(operator, name, deployment_here(Path.cwd()))
        self._endpoints.clear()
        if isinstance(found, ApiStatus):
            return operator.remove(found.deployment, found.name).apis
        return operator.remove(found).apis

    # ---- looking ------------------------------------------------------------------------------------------------

    def apis(self, deployment: str | None = None) -> Apis:
        """All apis, or those of one deployment; a table in a notebook."""
        return Apis(self._environment.look().apis(deployment))

    def api(self, name: str) -> Api:
        """
        The api that `NAME` or `DEPLOYMENT/NAME` means, with everything that is known of it.

        Raises:
            ApiNotFound, AmbiguousApi: `candidates` are those that may be meant.
        """
        return Api(self, self._find(self._environment.look(), name))

    def logs(
        self,
        api: str,
        *,
        follow: bool = False,
        tail: int = ALL_LINES,
        since_wall_s: float | None = None,
        replica: str | None = None,
        version: str | None = None,
        request: str | None = None,
    ) -> Iterator[LogLine]:
        """
        What an api's replicas wrote, in time order.

        Args:
            follow: go on with what is written, until nobody asks for more; also across a restart of the control plane.
            tail: the last so many lines; all that are kept unless given.
            since_wall_s: seconds since the Unix epoch.
            version: first digits of one.
            request: id of one request.
        """
        operator = self._environment.look()
        found = self._find(operator, api)
        options: dict[str, Any] = {"replica": replica, "version": version, "request": request}
        page = operator.logs(found.deployment, found.name, since_wall_s=since_wall_s, tail=tail, **options)
        yield from page.lines
        calls = self._calls(operator)
        while follow:
            at = page.cursor
            page = calls.call(
                lambda client, at=at: client.logs(found.deployment, found.name, cursor=at, wait_s=WATCH_S, **options)  # type: ignore[misc]
            )
            yield from page.lines

    def events(self, api: str | None = None, *, follow: bool = False, limit: int = 100) -> Iterator[EventLine]:
        """
        What was decided and what happened, oldest first.

        Args:
            api: an api's or a deployment's only.
            follow: go on with what happens.
            limit: the last so many to begin with.
        """
        operator = self._environment.look()
        deployment, name = None, None
        if api is not None:
            found = find(operator, api, deployment_here(Path.cwd()))
            deployment, name = (found.deployment, found.name) if isinstance(found, ApiStatus) else (str(found), None)
        page = operator.events(deployment=deployment, api=name, limit=limit)
        yield from page.events
        calls = self._calls(operator)
        while follow:
            at = page.cursor
            page = calls.call(
                lambda client, at=at: client.events(  # type: ignore[misc]
                    deployment=deployment, api=name, limit=MOST_EVENTS, after=at, wait_s=WATCH_S
                )
            )
            yield from page.events

    def history(self, api: str) -> tuple[HistoryLine, ...]:
        """Versions of an api, newest first."""
        operator = self._environment.look()
        found = self._find(operator, api)
        return operator.history(found.deployment, found.name)

    # ---- predicting ---------------------------------------------------------------------------------------------

    def predict(self, api: str, sample: Any, *, content_type: str | None = None, debug: bool = False) -> Any:
        """
        Send one sample and return the answer. Connections are kept for the next one.

        Args:
            api: `NAME`, `DEPLOYMENT/NAME`, or the URL of an endpoint.
            sample: bytes, a `Path` of a file, a numpy array, a DataFrame, or anything that JSON can express.
            content_type: overrides the one that follows from the sample.
            debug: log the sample after each step; `client.logs(api, request=…)` reads them.

        Returns:
            The decoded JSON; bytes when the api answers something else.

        Raises:
            PredictionRefused: with the api's own error, its status, request id and facts.
            EndpointUnreachable: there was no answer.
        """
        answer = self._answer(api, *encoded(sample, content_type), debug=debug)
        return decoded(answer.body, answer.content_type)

    def predict_many(
        self,
        api: str,
        samples: Iterable[Any],
        *,
        concurrency: int = CONCURRENCY,
        content_type: str | None = None,
        progress: bool | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[Any]:
        """
        Send many samples, several at once, and return the answers in their order.

        Args:
            concurrency: how many are under way at once.
            progress: show a bar; None: if stderr is a terminal.
            errors: `raise` the first one, after which no further sample is sent; or `return` each in the place of its
                answer.

        Raises:
            ValueError: `concurrency` is below 1.
            PredictionRefused, EndpointUnreachable: as `predict`.
        """
        if concurrency < 1:
            raise ValueError("concurrency is at least 1")
        given = samples if isinstance(samples, Sequence) else list(samples)
        found: list[Any] = [None] * len(given)
        stop = False

        def one(number: int) -> None:
            nonlocal stop
            if stop:
                return
            try:
                answer = self._answer(api, *encoded(given[number], content_type))
                found[number] = decoded(answer.body, answer.content_type)
            except CortexError as error:
                if errors == "raise":
                    stop = True
                    raise
                found[number] = error

        workers = min(concurrency, len(given)) or 1
        with _bar(len(given), progress) as step, ThreadPoolExecutor(workers, "cortex-predict") as pool:
            try:
                for _ in pool.map(one, range(len(given))):
                    step()
            finally:
                stop = True  # also after Ctrl-C: what has not begun is not sent
        return found

    # ---- inside -------------------------------------------------------------------------------------------------

    def _answer(self, api: str, body: bytes, content_type: str, *, debug: bool = False) -> Answer:
        endpoint, again = self._endpoint(api)
        try:
            return self.connections.post(endpoint, body, content_type, debug=debug, again=again)
        except PredictionRefused as error:
            if error.status == 404:
                self._endpoints.pop(api, None)
            raise

    def _endpoint(self, api: str) -> tuple[str, bool]:
        """Where it answers, and whether a request may be sent again."""
        if api.startswith(("http://", "https://")):
            return api, True
        now_s = self._clock.monotonic_s()
        known = self._endpoints.get(api)
        if known is None or known[2] < now_s:
            found = self._find(self._environment.ensure(), api)
            known = found.endpoint, found.spec.get("retry", True) is not False, now_s + LOOKED_UP_FOR_S
            self._endpoints[api] = known
        return known[0], known[1]

    def _find(self, operator: OperatorClient, api: str) -> ApiStatus:
        return find_api(operator, api, deployment_here(Path.cwd()))

    def _calls(self, operator: OperatorClient) -> Reconnecting:
        return Reconnecting(self._environment, operator, clock=self._clock)

    def _wait(self, operator: OperatorClient, changes: Sequence[ApiChange], deployment: str, timeout_s: float) -> None:
        calls = self._calls(operator)

        def watch(token: str, wait_s: float) -> Watched:
            return calls.call(lambda client: client.watch(token, timeout_s=wait_s, deployment=deployment))

        seen = [
            (),
            *follow(watch, changes, deployment=deployment, patience_s=timeout_s, clock=self._clock),
        ]
        problems = [row.problem() for row in seen[-1] if row.outcome is not Outcome.LIVE]
        if problems:
            raise Problems(problems)


@contextmanager
def _bar(total: int, wanted: bool | None) -> Iterator[Callable[[], None]]:
    """Shows how many are done, if that is wanted."""
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("predicting", total=total)
        yield lambda: shown.advance(task)
