"""What an engine is: a row that says how it loads and runs a model, and with which options."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from quantlib.machine.hardware import Hardware
from quantlib.support.errors import InputError

Operators = Literal["microsoft", "standard"]
"""Which operators a model may hold: also those of com.microsoft, or ONNX's own alone."""

Feed = Mapping[str, npt.NDArray[Any]]


class Session(Protocol):
    """A model that an engine has loaded."""

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any] | None]:
        """The inputs by name, with the type that arrays are turned to; None for their own."""
        ...

    @property
    def outputs(self) -> Mapping[str, Sequence[object]]:
        """The outputs by name, with their dimensions: integers where they are fixed."""
        ...

    def run(self, names: Sequence[str] | None, feed: Feed) -> list[Any]:
        """The outputs of these names, or all of them, for a feed that `feed_of` made."""
        ...


@dataclass(frozen=True)
class Engine:
    """One way to run an ONNX file on this CPU.

    name: what variants and options call it. label: what people call it. package: what brings it. extra: of
    this project, empty where every installation has it. operators: which a model for it may hold. quantizers:
    the tools whose models it takes; none where it is for models in float alone. config: the options of its
    sessions, a frozen dataclass with a field `threads`, from the number of threads and whether they are to be
    its own defaults. open: loads a model with such options as keywords. errors: the classes of its
    exceptions. reason: what one of its messages says, as a line. products: {node: the type that it is
    computed in} of a file, on so many threads; None where the operators of the file tell. profiles: whether
    it can trace a run. lacks: why it cannot be used on a CPU, empty where it can; None for one that can be
    used on each.
    """

    name: str
    label: str
    package: str
    extra: str
    operators: Operators
    quantizers: tuple[str, ...]
    config: Callable[[int, bool], Any]
    open: Callable[..., Session]
    errors: Callable[[], tuple[type[Exception], ...]]
    reason: Callable[[str], str]
    products: Callable[[Path, int], Mapping[str, str]] | None = None
    profiles: bool = False
    lacks: Callable[[Hardware], str] | None = None

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def version(self) -> str:
        """The version of its package.

        Raises:
            InputError: it is not installed.
        """
        self.need()
        return version(self.package)

    def need(self) -> None:
        """Raise InputError, which says what to install, where the package is missing."""
        if not self.installed:
            raise InputError(
                f"the engine {self.name} needs the package {self.package}: "
                f"pip install 'bert-quantlib[{self.extra}]'"
            )


def feed_of(session: Session, arrays: Feed) -> dict[str, npt.NDArray[Any]]:
    """The arrays that a model takes, each in the type it asks for; others (labels) are left out.

    Raises:
        InputError: the model has an input that is not among the arrays.
    """
    feed = {}
    for name, dtype in session.inputs.items():
        if name not in arrays:
            raise InputError(f"the model has an input {name!r}; there are only: {', '.join(arrays)}")
        array = np.asarray(arrays[name])
        feed[name] = array if dtype is None else array.astype(dtype, copy=False)
    return feed


@dataclass(frozen=True)
class LoadedModel:
    """A file that an engine has loaded, so that errors can name it."""

    engine: Engine
    path: Path
    session: Session

    def feed(self, arrays: Feed) -> dict[str, npt.NDArray[Any]]:
        """What the model takes of the arrays, see `feed_of`.

        Raises:
            InputError: the model has an input that is not among the arrays; the message names the file.
        """
        try:
            return feed_of(self.session, arrays)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error

    def run(self, feed: Feed, names: Sequence[str] | None = None) -> list[Any]:
        """The outputs of these names, or all of them.

        Raises:
            InputError: the model cannot be run on the feed; the message names the file and its shape.
        """
        try:
            return self.session.run(names, feed)
        except self.engine.errors() as error:
            shape = next((array.shape for array in feed.values()), ())
            reason = self.engine.reason(str(error))
            raise InputError(f"{self.path}: cannot be run on {shape}: {reason}") from error


def first_line(message: str, limit: int = 200) -> str:
    """An engine's message as one line of at most `limit` characters: its last line that says anything."""
    lines = [line.strip("- \t") for line in message.strip().splitlines()]
    line = next((line for line in reversed(lines) if line), "it gives no reason")
    return line if len(line) <= limit else line[: limit - 3] + "..."
