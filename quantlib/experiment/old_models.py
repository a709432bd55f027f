"""The old side of a comparison: the baseline's model, as it ran then, on this machine now."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quantlib
from quantlib import gate
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.rebuilding import CHECKOUT, package_of, rebuild
from quantlib.experiment.runtimes import python_with
from quantlib.experiment.work import Variant
from quantlib.machine.engines import DEFAULT_ENGINE, get_engine
from quantlib.measuring.latency import TimedProcess, orphan
from quantlib.measuring.latency.process import Feeds
from quantlib.support.cache import Cache
from quantlib.support.errors import InputError, Unavailable
from quantlib.support.progress import Steps
from quantlib.support.store import FileStore

STORE = "gate-models"
PACKAGE = Path(quantlib.__file__).resolve().parent

# Loads quantlib from one directory, whatever else the interpreter can see, and serves until its parent ends.
_SERVE = """
import importlib.util, runpy, sys
place, orphan = sys.argv[1:]
runpy.run_path(orphan)["end_with_parent"]()
spec = importlib.util.spec_from_file_location(
    "quantlib", place + "/__init__.py", submodule_search_locations=[place]
)
sys.modules["quantlib"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from quantlib.measuring.latency.worker import main
main()
"""


def worker_command(python: Path, package: Path) -> tuple[str, ...]:
    """The command of a timing process with this interpreter's packages and the quantlib in a directory."""
    return (str(python), "-B", "-P", "-c", _SERVE, str(package), orphan.__file__)


@dataclass(frozen=True)
class OldModel:
    """What the baseline timed: a file, the options of its session, and the command that timed it.

    words: where it came from. worker: None for this run's own. engine: what ran it.
    """

    path: Path
    session: Any
    words: str
    worker: tuple[str, ...] | None = None
    engine: str = DEFAULT_ENGINE

    def start(self, feeds: Feeds) -> AbstractContextManager[TimedProcess]:
        """Its timing process."""
        if self.worker is None:
            return TimedProcess(self.path, feeds, self.session, engine=self.engine)
        return TimedProcess(self.path, feeds, self.session, engine=self.engine, worker=self.worker)


class OldModels:
    """Finds the models of a baseline; what takes long is done once, and when it is first needed.

    Args:
        baseline: what the run is compared with.
        options: of this run: rows, cache and threads are the same for the old models.
        cache: keeps old code and old runtimes.
        store: has models by their hash; rebuilt ones are put there.
        steps: shows what takes long.
        checkout: of the code that runs.
    """

    def __init__(
        self,
        baseline: gate.GateRecord,
        options: ExperimentOptions,
        cache: Cache,
        store: FileStore,
        steps: Steps,
        checkout: Path = CHECKOUT,
    ) -> None:
        self.baseline, self.options = baseline, options
        self.cache, self.store, self.steps, self.checkout = cache, store, steps, checkout
        self._failure: str | None = None  # why not all could be built again; None before it was tried

    def find(self, variant: Variant, changes: gate.Changes, feeds: Feeds) -> OldModel:
        """The old model of a variant.

        Args:
            variant: of this run; the baseline has one of that name.
            changes: what differs between the two.
            feeds: on which it will be timed. One that needs another process than this run's is started once.

        Raises:
            Unavailable: it cannot be had, with all reasons.
        """
        if changes.unknown:
            raise Unavailable(changes.unknown)
        path, words = self._file(variant, changes)
        python, code = Path(sys.executable), PACKAGE
        if changes.runtime:
            package, version = self._runtime(variant.engine)
            with self.steps.step(f"install {package} {version} beside this one"):
                python = python_with(version, self.cache, package=package)
            words += f", with {package} {version}"
        if changes.worker:
            try:
                code = package_of(self._origin, self.checkout, self.cache)
                words += ", timed by the baseline's code"
            except Unavailable as error:
                if not (changes.model or changes.session or changes.runtime):
                    raise
                words += f", both timed by this run's code ({error})"
        own = not changes.runtime and code == PACKAGE
        session = self.options.session_on(variant.engine, stock=variant.stock_session)
        if changes.session:
            session = {**self._old_session(variant.engine), "threads": self.options.threads}
            words += ", with the baseline's session options"
        old = OldModel(
            path,
            session,
            words,
            None if own else worker_command(python, code),
            variant.engine,
        )
        if changes.session or not own:
            _try(old, feeds)
        return old

    def _runtime(self, engine: str) -> tuple[str, str]:
        """The package of an engine, and the version that the baseline was timed with.

        Raises:
            Unavailable: the baseline does not say.
        """
        package = get_engine(engine).package
        if engine == DEFAULT_ENGINE:
            return package, str(self.baseline.machine[package])
        if engine not in self._origin.engines:
            raise Unavailable(f"the baseline does not record which version of {package} it was timed with")
        return package, str(self._origin.engines[engine]["version"])

    def _old_session(self, engine: str) -> Mapping[str, Any]:
        """The options of an engine's sessions that the baseline was timed with."""
        if engine == DEFAULT_ENGINE:
            return self._origin.session
        session: Mapping[str, Any] = self._origin.engines[engine]["session"]
        return session

    def _file(self, variant: Variant, changes: gate.Changes) -> tuple[Path, str]:
        if not changes.model:
            return variant.path, "same model"
        sha256 = self.baseline.variants[variant.name].sha256
        try:
            return self.store.get(sha256), "old model from the store"
        except Unavailable as error:
            why = str(error)
        if self._failure is None:
            with self.steps.step(f"build the models of {self._commit} again") as step:
                self._failure = step.note = self._rebuild()
        try:
            return self.store.get(sha256), f"old model, rebuilt from {self._commit}"
        except Unavailable as error:
            raise Unavailable(f"{why}; {self._failure or error}") from error

    def _rebuild(self) -> str:
        """Put the models that the baseline's revision makes into the store; why some could not be."""
        try:
            models = rebuild(self._origin, self.options, self.checkout, self.cache)
        except Unavailable as error:
            return str(error)
        others = []
        for name, record in self.baseline.variants.items():
            try:
                self.store.put(models[name], record.sha256)
            except (KeyError, Unavailable):
                others.append(name)
        changed = ", whose code had been changed," if self._origin.changed else ""
        return f"{self._commit}{changed} makes other models of {', '.join(others)}" if others else ""

    @property
    def _commit(self) -> str:
        return self._origin.commit[:12]

    @property
    def _origin(self) -> gate.Origin:
        assert self.baseline.origin is not None
        return self.baseline.origin


def _try(old: OldModel, feeds: Feeds) -> None:
    """Start an old model's process once: other code, options or runtimes may not work together."""
    try:
        with old.start(feeds):
            pass
    except (InputError, RuntimeError) as error:
        line = (str(error).strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"{old.words}: its process does not start: {line}") from error
