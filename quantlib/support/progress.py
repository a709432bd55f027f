"""The steps of a run: a bar while one is under way, a line with its duration when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int], None]
"""Called with the number of units (rows, training steps) that were finished since the last call."""


@dataclass
class Steps:
    """Shows and times the steps of a run. Without a console it only times them.

    durations_s: seconds of the finished steps of each name. cached: the names of which every step took its
    result from the cache.
    """

    console: Console | None = None
    clock: Callable[[], float] = time.perf_counter
    durations_s: dict[str, float] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Step]:
        """A step of `total` units, or of unknown length; one that raises leaves no line and no duration."""
        started = self.clock()
        with self._bar(name, total) as advance:
            step = Step(advance)
            yield step
        duration_s = self.clock() - started
        if step.cached and (name in self.cached or name not in self.durations_s):
            self.cached.add(name)
        else:
            self.cached.discard(name)
        self.durations_s[name] = self.durations_s.get(name, 0.0) + duration_s
        if self.console:
            from rich.markup import escape

            note = escape(f"cached  {step.note}" if step.cached else step.note)
            self.console.print(
                f"[green]✓[/] {escape(f'{name:<38}')} {duration_s:7.1f} s  [dim]{note}[/]",
                highlight=False,
                soft_wrap=True,  # one line for each step, however narrow the console
            )

    def say(self, sentence: str) -> None:
        """Show a sentence about the steps so far."""
        if self.console:
            self.console.print(f"  {sentence}", style="dim", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def _bar(self, name: str, total: int | None) -> Iterator[Callable[..., None]]:
        if self.console is None or not self.console.is_terminal:
            yield lambda *_, **__: None
            return
        from rich import progress

        columns = (
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description:<38}"),
            progress.BarColumn(bar_width=30),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[note]}"),
        )
        with progress.Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(name, total=total, note="")

            def advance(count: int = 0, total: int | None = None, note: str | None = None) -> None:
                changes: dict[str, Any] = {"total": total, "note": note}
                bar.update(task, advance=count, **{k: v for k, v in changes.items() if v is not None})

            yield advance


@dataclass
class Step:
    """A step that is under way. cached: its result was in the cache. note: stands at the end of its line."""

    _advance: Callable[..., None]
    cached: bool = False
    note: str = ""
    _done: int = 0

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self._advance(count)

    def training(self, step: int, steps: int, loss: float) -> None:
        """One more training step of `steps` is done; for `quantlib.training.teacher.Progress`."""
        self.note = f"loss {loss:.3f}"
        self._advance(1, total=steps, note=self.note)

    def reached(self, done: int, total: int, note: str) -> None:
        """`done` units of `total` are done since the step began; for `quantlib.training.student.Progress`."""
        self._advance(done - self._done, total=total, note=note)
        self._done, self.note = done, note
