"""
Remote models of deploys: each is fetched once into the artifact store, and replicas load it from there.

Fetching is done before a deploy takes its turn, so that a slow download holds nobody up but its own deploy. Whoever
needs the same model meanwhile waits for the same download; it ends when the last of them has left.
"""

from __future__ import annotations

import logging
import posixpath
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from cortex.artifacts.fetching import FetchDied, FetchStopped, fetch_in_process
from cortex.artifacts.pins import Pin
from cortex.artifacts.store import ArtifactStore
from cortex.artifacts.trees import tree_digest
from cortex.controlplane.keeping import keep
from cortex.errors import CortexError, Problem, Problems
from cortex.metrics.exposition import FetchCounts
from cortex.spec.locations import is_remote, masked_model
from cortex.state.base import ApiRecord
from cortex.wire.build import ModelFormat
from cortex.wire.fetch import Fetched, FetchProgress, FetchRequest, KnownModel
from cortex.wire.operator import CloudVariables, DeployProgress, DeployRequest, ModelUpload

if TYPE_CHECKING:
    from cortex.spec.models import ApiSpec

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Models of one deploy that are fetched side by side: each fills a link by itself, but some stores are slow."""
LOOK_EVERY_S = 0.1
MOST_REMEMBERED = 100

Emit = Callable[[DeployProgress], None]


class Run(Protocol):
    """Fetches one model; `artifacts.fetching.fetch_in_process` is it."""

    def __call__(
        self,
        request: FetchRequest,
        *,
        cloud: Mapping[str, str],
        environ: Mapping[str, str],
        tell: Callable[[FetchProgress], None],
        stop: threading.Event,
    ) -> Fetched: ...


class DeployLeft(CortexError):
    """Whoever wanted the deploy left before it was accepted: nothing was changed."""

    reference = "deploy-left"


class Models:
    """
    Fetches what deploys need.

    Args:
        known: all apis that are stored: what one of them was made from need not be read again.
        cloud_file: keeps what the last deploy handed over.
        environ: of this process; its own cloud variables are not used.
    """

    def __init__(
        self,
        *,
        store: ArtifactStore,
        known: Callable[[], Iterable[ApiRecord]],
        cloud_file: Path,
        environ: Mapping[str, str],
        run: Run = fetch_in_process,
    ) -> None:
        self._store = store
        self._known = known
        self._cloud_file = cloud_file
        self._environ = dict(environ)
        self._run = run
        self._remembered: dict[tuple[str, ModelFormat | None], KnownModel] = {}
        """Fetched for deploys that failed afterwards, or were dry runs."""
        self._flights: dict[object, _Flight] = {}
        self._guard = threading.Lock()
        self.counts = FetchCounts()

    def of_deploy(
        self, specs: Sequence[ApiSpec], request: DeployRequest, emit: Emit, left: threading.Event, pin: Pin
    ) -> dict[int, Fetched]:
        """
        The remote models of a deploy, by the index of their api.

        Args:
            left: set when nobody waits for the deploy any more.
            pin: keeps what was fetched from being collected.

        Raises:
            Problems: models that cannot be had; all that are wrong.
            DeployLeft
        """
        wanted: dict[tuple[str, ModelFormat | None], list[int]] = {}
        for index, (spec, upload) in enumerate(zip(specs, request.apis, strict=True)):
            if upload.model is None and is_remote(spec.model):
                wanted.setdefault((spec.model, spec.model_format), []).append(index)
        if not wanted:
            return {}
        cloud = self._cloud_of(request)
        shown = [masked_model(model) for model, _ in wanted]
        looking = shown[0] if len(shown) == 1 else f"{len(shown)} models"
        emit(DeployProgress(message=f"looking at {looking}", in_bytes=True))
        tally = _Tally([(name, specs[at[0]].name) for name, at in zip(shown, wanted.values(), strict=True)], emit)

        def one(number: int, model: str, model_format: ModelFormat | None) -> Fetched | CortexError:
            try:
                fetched = self._fetch(model, model_format, cloud, lambda told: tally.told(number, told), left)
                pin.add(tree_digest(fetched.model.files))
                return fetched
            except DeployLeft:
                raise
            except CortexError as error:
                return error

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool:
            futures = [pool.submit(one, number, *key) for number, key in enumerate(wanted)]
            results = [future.result() for future in futures]
        found: dict[int, Fetched] = {}
        problems: list[Problem] = []
        for result, at in zip(results, wanted.values(), strict=True):
            for index in at:
                if isinstance(result, CortexError):
                    problems.append(_placed(result.problem(), specs[index].name, index))
                else:
                    found[index] = result
        if problems:
            raise Problems(problems)
        if left.is_set():
            raise DeployLeft("whoever deployed left before the models were there")
        emit(DeployProgress(message="checking models and handlers"))
        return found

    def again(self, model: str, model_format: ModelFormat | None, left: threading.Event) -> Fetched:
        """
        Fetch a model whose stored bytes are damaged, with what the last deploy handed over.

        Raises:
            CortexError: it cannot be had.
        """
        return self._fetch(model, model_format, self._kept_cloud(), lambda _told: None, left)

    def keep_cloud(self, request: DeployRequest) -> None:
        """Let later deploys that bring nothing use what this one handed over. Raises NotKept."""
        if request.cloud is not None:
            keep(self._cloud_file, request.cloud)

    def forget_cloud(self) -> None:
        """Drop what was kept once no stored api has a model that might have to be fetched again. Raises OSError."""
        origins = (record.version.origin for record in self._known())
        if not any(origin is not None and is_remote(origin.url) for origin in origins):
            self._cloud_file.unlink(missing_ok=True)

    # ---- one model ------------------------------------------------------------------------------------------------

    def _fetch(
        self,
        model: str,
        model_format: ModelFormat | None,
        cloud: Mapping[str, str],
        tell: Callable[[FetchProgress], None],
        left: threading.Event,
    ) -> Fetched:
        key = (model, model_format, frozenset(cloud.items()))
        with self._guard:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight()
                threading.Thread(
                    target=self._fly, args=(flight, key, model, model_format, cloud), name="fetching", daemon=True
                ).start()
            flight.listeners.append(tell)
            if flight.newest is not None:
                tell(flight.newest)
        try:
            while not flight.done.wait(LOOK_EVERY_S):
                if left.is_set():
                    raise DeployLeft("whoever deployed left before the models were there")
        finally:
            with self._guard:
                flight.listeners.remove(tell)
                if not flight.listeners:
                    flight.stop.set()
                    if self._flights.get(key) is flight:  # who comes now begins anew
                        del self._flights[key]
        if flight.error is not None:
            raise flight.error
        assert flight.fetched is not None
        return flight.fetched

    def _fly(
        self,
        flight: _Flight,
        key: object,
        model: str,
        model_format: ModelFormat | None,
        cloud: Mapping[str, str],
    ) -> None:
        try:
            request = FetchRequest(
                model=model,
                store=str(self._store.root),
                model_format=model_format,
                known=tuple(self._known_near(masked_model(model))),
            )
            fetched = self._run(request, cloud=cloud, environ=self._environ, tell=flight.tell, stop=flight.stop)
            flight.fetched = fetched
            self._remember(masked_model(model), model_format, fetched)
        except CortexError as error:
            flight.error = error
            if isinstance(error, FetchDied):
                log.error("%s: %s\n%s", masked_model(model), error, error.output)
            elif not isinstance(error, FetchStopped):
                log.info("%s: %s", masked_model(model), error)
        except Exception:
            log.exception("a fault of ours while a model was fetched")
            flight.error = FetchDied("could not be started or understood", "")
        finally:
            with self._guard:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.done.set()

    def _known_near(self, shown: str) -> Iterable[KnownModel]:
        """What was fetched from the same bucket or host."""
        place = _place(shown)
        with self._guard:
            remembered = list(self._remembered.values())
        for known in remembered:
            if _place(known.origin.url) == place:
                yield known
        for record in self._known():
            version = record.version
            artifact = version.build.model
            if artifact is not None and version.origin is not None and _place(version.origin.url) == place:
                yield KnownModel(
                    origin=version.origin,
                    model=ModelUpload(
                        files=version.model_files,
                        entry=artifact.entry,
                        format=artifact.format,
                        note=version.origin.note,
                    ),
                )

    def _remember(self, shown: str, model_format: ModelFormat | None, fetched: Fetched) -> None:
        log.info(
            "%s: %d bytes of %d objects read, %d files in the store",
            shown,
            fetched.read_bytes,
            fetched.read_objects,
            len(fetched.model.files),
        )
        with self._guard:
            self._remembered.pop((shown, model_format), None)
            self._remembered[shown, model_format] = KnownModel(origin=fetched.origin, model=fetched.model)
            while len(self._remembered) > MOST_REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self.counts = FetchCounts(
                objects=self.counts.objects + fetched.read_objects,
                bytes=self.counts.bytes + fetched.read_bytes,
            )

    def _cloud_of(self, request: DeployRequest) -> Mapping[str, str]:
        return request.cloud.variables if request.cloud is not None else self._kept_cloud()

    def _kept_cloud(self) -> Mapping[str, str]:
        try:
            return msgspec.json.decode(self._cloud_file.read_bytes(), type=CloudVariables).variables
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be read: %s", self._cloud_file, type(error).__name__)
            return {}


class _Flight:
    """One download, and who waits for it."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[FetchProgress], None]] = []
        self.stop = threading.Event()
        self.done = threading.Event()
        self.newest: FetchProgress | None = None
        self.fetched: Fetched | None = None
        self.error: CortexError | None = None

    def tell(self, progress: FetchProgress) -> None:
        self.newest = progress
        for listener in tuple(self.listeners):
            listener(progress)


class _Tally:
    """How far the models of one deploy are, as one line of progress."""

    def __init__(self, models: Sequence[tuple[str, str]], emit: Emit) -> None:
        self._models = models
        self._emit = emit
        self._guard = threading.Lock()
        self._done = [0] * len(models)
        self._total = [0] * len(models)

    def told(self, number: int, progress: FetchProgress) -> None:
        with self._guard:
            self._done[number], self._total[number] = progress.done_bytes, progress.total_bytes
            done, total = sum(self._done), sum(self._total)
        shown, api = self._models[number]
        if progress.note:
            message = f"{shown}: {progress.note}; trying again"
        elif not total:
            return
        elif len(self._models) > 1:
            message, api = f"fetching {len(self._models)} models", ""
        else:
            message = f"fetching {posixpath.basename(shown.rstrip('/?*'))}"  # the whole of it was told before
        self._emit(DeployProgress(message=message, api=api, done=done, total=total, in_bytes=True))


def _place(shown: str) -> str:
    """Scheme and bucket or host."""
    scheme, _, rest = shown.partition("://")
    return f"{scheme.lower()}://{rest.partition('/')[0]}"


def _placed(problem: Problem, api: str, index: int) -> Problem:
    subject = f'api "{api}": model'
    return msgspec.structs.replace(
        problem, subject=f"{subject}: {problem.subject}" if problem.subject else subject, path=("apis", index, "model")
    )
