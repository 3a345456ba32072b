"""Cortex for Python users: deploy, look, predict, as plain calls."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec

from cortex.client import prediction
from cortex.client.addressing import deployment_here, find_api
from cortex.client.environments import open_environment, settings_of
from cortex.client.follow import Outcome, follow
from cortex.client.operator import OperatorClient
from cortex.client.project import locate, prepare, upload
from cortex.client.reconnection import Reconnecting
from cortex.clock import Clock, SystemClock
from cortex.errors import Problems
from cortex.settings import LOCAL
from cortex.wire.operator import ApiStatus, DeployResult, Watched

WAIT_S = 600.0


class Client:
    """
    An environment: the one that `cortex` on the command line talks to.

    >>> client = Client()
    >>> client.deploy("examples/iris")
    >>> client.predict("sklearn", {"sepal_length": 5.2, "sepal_width": 3.6, "petal_length": 1.4, "petal_width": 0.3})
    'setosa'

    Args:
        home: folder of the environment; None means `CORTEX_HOME`, or `~/.cortex`.
        environ: settings and what a started control plane inherits; None means the environment of this process.
    """

    def __init__(
        self,
        *,
        home: str | PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self._environ = environ
        self._settings = settings_of(environ, home=os.fspath(home) if home is not None else None)
        self._clock = clock or SystemClock()
        self._environment = open_environment(self._settings, environ=environ, clock=self._clock)

    def deploy(
        self,
        path: str | PathLike[str] = ".",
        *,
        wait: bool = True,
        timeout_s: float = WAIT_S,
        force: bool = False,
        prune: bool = False,
    ) -> tuple[ApiStatus, ...]:
        """
        Deploy a folder with a cortex.yaml, or a yaml file; starts Cortex if it does not run.

        Args:
            wait: until every api is live; else return as soon as the deploy is accepted.
            timeout_s: how long nothing may move while waiting.

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
        if wait:
            self._wait(operator, result, deployment, timeout_s)
        return operator.apis(deployment)

    def get(self, api: str | None = None) -> tuple[ApiStatus, ...]:
        """All apis, or the one that `NAME` or `DEPLOYMENT/NAME` means, with everything that is known of it."""
        operator = self._environment.ensure()
        return operator.apis() if api is None else (self._find(operator, api),)

    def predict(self, api: str, sample: Any, *, content_type: str | None = None) -> Any:
        """
        Send one sample and return the answer.

        Args:
            api: `NAME` or `DEPLOYMENT/NAME`.
            sample: bytes, a `Path` of a file, a numpy array, or anything that JSON can express.
            content_type: overrides the one that follows from the sample.

        Returns:
            The decoded JSON; bytes when the api answers something else.

        Raises:
            PredictionRefused: with the api's own error.
        """
        endpoint = self._find(self._environment.ensure(), api).endpoint
        body, found_type = _encoded(sample)
        answer = prediction.post(endpoint, body, content_type or found_type)
        return msgspec.json.decode(answer.body) if "json" in answer.content_type else answer.body

    def _find(self, operator: OperatorClient, api: str) -> ApiStatus:
        return find_api(operator, api, deployment_here(Path.cwd()))

    def _wait(self, operator: OperatorClient, result: DeployResult, deployment: str, timeout_s: float) -> None:
        calls = Reconnecting(self._environment, operator, clock=self._clock)

        def watch(token: str, wait_s: float) -> Watched:
            return calls.call(lambda client: client.watch(token, timeout_s=wait_s, deployment=deployment))

        seen = [
            (),
            *follow(watch, result.changes, deployment=deployment, patience_s=timeout_s, clock=self._clock),
        ]
        problems = [row.problem() for row in seen[-1] if row.outcome is not Outcome.LIVE]
        if problems:
            raise Problems(problems)


def _encoded(sample: Any) -> tuple[bytes, str]:
    if isinstance(sample, bytes | bytearray | memoryview):
        return bytes(sample), prediction.OTHER_CONTENT_TYPE
    if isinstance(sample, PathLike):
        return prediction.read_sample(Path(sample))
    if hasattr(sample, "__array__"):
        import numpy as np

        stream = io.BytesIO()
        np.save(stream, np.asarray(sample), allow_pickle=False)
        return stream.getvalue(), "application/x-npy"
    return msgspec.json.encode(sample), "application/json"
