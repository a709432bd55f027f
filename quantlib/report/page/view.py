"""A run in the words and numbers of its page; templates only lay them out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from markupsafe import Markup, escape

from quantlib.compression.variants import TEACHER, VariantName
from quantlib.measuring.checks import CHECKS
from quantlib.measuring.latency.others import MAX_OTHERS
from quantlib.measuring.latency.speedup import TRUSTED
from quantlib.report.changes import Cell, VariantChanges
from quantlib.report.columns import BYTES_PER_MB, COLUMNS, metric_column
from quantlib.report.front import CLEAR_AGREEMENT, CLEAR_SCORE, CLEAR_SIZE, CLEAR_TIME
from quantlib.report.page.figures import metric_names
from quantlib.report.page.files import TaskRun
from quantlib.report.page.html import breaking
from quantlib.support.columns import Column, Value

# A matrix with more labels is no table that anybody reads: the pairs that change are listed instead.
_MOST_LABELS = 10
_MOST_PAIRS = 30
_EXTRA = "a value that this run adds"
_PERCENT = 100


@dataclass(frozen=True)
class Shown:
    """A column of the table; main: it is shown before all columns are asked for."""

    column: Column[Any]
    main: bool

    @property
    def id(self) -> str:
        """What the page's explanation of it is called."""
        return "column-" + "".join(c if c.isalnum() else "-" for c in self.column.key)


@dataclass(frozen=True)
class Card:
    """A first choice: the wishes that it is for, and the variant; None where none meets them."""

    wishes: tuple[str, ...]
    variant: str | None
    why: str


@dataclass(frozen=True)
class Matrix:
    """A confusion: rows of the teacher's labels, columns of the variant's; None in a cell without rows."""

    labels: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TaskView:
    """One task's run, as its page shows it; id: begins the ids of its elements."""

    run: TaskRun
    id: str = "task"
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The task's."""
        return self.run.name

    @property
    def metric(self) -> str:
        """The primary metric."""
        return metric_names(self.run)[0]

    @cached_property
    def variants(self) -> list[str]:
        """Their names, the teacher first."""
        return list(self.run.results)

    @cached_property
    def columns(self) -> list[Shown]:
        """The columns of the table: those of the console first, then all others that the results have."""
        known = [metric_column(name, n) for n, name in enumerate(metric_names(self.run))]
        known += [*COLUMNS, *(column for check in CHECKS for column in check.columns)]
        keys = {key: None for values in self.run.results.values() for key in values}
        by_key = {column.key: column for column in known}
        of_checks = {column.key for check in CHECKS for column in check.columns}
        present = [by_key.get(key, Column(key, _EXTRA, lambda _: None)) for key in keys]
        main = [c for c in present if c.heading and c.key not in of_checks]
        main.sort(key=lambda column: column.place)
        shown = [Shown(column, main=True) for column in main]
        return shown + [Shown(column, main=False) for column in present if column not in main]

    def has(self, variant: str, key: str) -> bool:
        """Whether the results have such a value."""
        return key in self.run.results[variant]

    def value(self, variant: str, key: str) -> Value:
        """A value of the results."""
        return self.run.results[variant][key]

    def raw(self, variant: str, key: str) -> str:
        """It, as results.json writes it; empty for null, by which no table is sorted."""
        value = self.value(variant, key)
        return "" if value is None else json.dumps(value)

    def shown(self, variant: str, key: str) -> str:
        """It, as a person reads it."""
        return self.column(key).show(self.value(variant, key))

    def column(self, key: str) -> Column[Any]:
        """The column of a value."""
        return self._by_key[key]

    @cached_property
    def _by_key(self) -> dict[str, Column[Any]]:
        every = [metric_column(name, n) for n, name in enumerate(metric_names(self.run))]
        every += [*(shown.column for shown in self.columns), *COLUMNS]
        return {column.key: column for column in every}

    def number(self, variant: str, key: str, unit: str = "") -> Markup:
        """A value in a sentence, with what it is a value of, so that it can be compared with results.json."""
        shown = self.shown(variant, key) + unit
        attributes = f'value="{escape(self.raw(variant, key))}" data-variant="{escape(variant)}"'
        return Markup(f'<data {attributes} data-key="{escape(key)}">{escape(shown)}</data>')  # noqa: S704

    def interval(self, variant: str, key: str) -> Markup:
        """The interval of a value, "2.90x to 3.10x"; empty where there is none, or it is a point."""
        ends = self._by_key[key].interval
        if ends is None or not all(self.has(variant, end) for end in ends):
            return Markup("")
        low, high = (self.value(variant, end) for end in ends)
        if low == high == self.value(variant, key):
            return Markup("")
        return Markup(" to ").join(self.number(variant, end) for end in ends)

    def cells(self, variant: str) -> Markup:
        """A variant's cells of the table; not in the template, which takes seconds for thousands of them."""
        values, cells = self.run.results[variant], []
        for column, main in ((shown.column, shown.main) for shown in self.columns):
            classes = [] if main else ["more"]
            classes += ["words"] if isinstance(values.get(column.key), str) else []
            of_class = f' class="{" ".join(classes)}"' if classes else ""
            if column.key not in values:
                cells.append(f'<td{of_class} data-value=""></td>')
                continue
            raw = self.raw(variant, column.key)
            of_value = "" if "words" in classes else f' data-value="{escape(raw)}"'
            of_key = f' data-variant="{escape(variant)}" data-key="{escape(column.key)}"'
            interval = self.interval(variant, column.key)
            words = escape(self.shown(variant, column.key))
            words += Markup(' <span class="range">{}</span>').format(interval) if interval else ""
            cells.append(f"<td{of_class}{of_value}{of_key}>{words}</td>")
        return Markup("\n".join(cells))  # noqa: S704  # each part is escaped

    # What to ship

    @cached_property
    def cards(self) -> list[Card]:
        """The first choices, the user's own limits first, each variant once."""
        choices = sorted(self.run.run.choices, key=lambda choice: not choice.wish.endswith("your limits"))
        wishes: dict[str | None, list[str]] = {}
        for choice in choices:
            wishes.setdefault(choice.variant, []).append(choice.wish)
        whys = {choice.variant: choice.why for choice in choices}
        return [Card(tuple(of), variant, whys[variant]) for variant, of in wishes.items()]

    @property
    def chosen(self) -> list[str]:
        """The variants that are a first choice."""
        return [card.variant for card in self.cards if card.variant is not None]

    @property
    def limits(self) -> list[str]:
        """The limits that the user gave, in words."""
        given = self.run.run.arguments
        drops = [given.get("max_drop_points")]
        drops += [None if given.get("max_drop") is None else _PERCENT * given["max_drop"]]
        points = [drop for drop in drops if drop is not None]
        words = [f"a drop of at most {min(points):g} points"] if points else []
        if given.get("min_speedup") is not None:
            words.append(f"surely {given['min_speedup']:g} times as fast as the teacher")
        if given.get("max_size") is not None:
            words.append(f"at most {given['max_size']:g} MB")
        return words

    def drop_words(self, variant: str) -> Markup:
        """What a variant loses of the metric, or wins, in words."""
        drop = self.value(variant, "accuracy_drop")
        assert isinstance(drop, float | int)
        interval = self.interval(variant, "accuracy_drop")
        words = Markup("{} points").format(self.number(variant, "accuracy_drop"))
        return words + (Markup(" ({})").format(interval) if interval else "")

    @cached_property
    def others(self) -> list[tuple[str, Markup]]:
        """Each variant that is no first choice, and why."""
        rest = [variant for variant in self.variants if variant not in (TEACHER, *self.chosen)]
        return [(variant, self._why_not(variant)) for variant in rest]

    def _why_not(self, variant: str) -> Markup:
        rival = self.run.results[variant].get("beaten_by")
        if isinstance(rival, str) and rival in self.run.results:
            return Markup("{} is clearly as good in everything and better in something: {}.").format(
                _name(rival), Markup("; ").join(self._better(rival, variant)) or "by a little in each"
            )
        reasons = [
            Markup("{} {}").format(_name(chosen), Markup(", ").join(better))
            for chosen in self.chosen
            if (better := list(self._better(chosen, variant)))
        ]
        if not reasons:
            return Markup("No other beats it; for the wishes above another one is as good or better.")
        return Markup("No other beats it in everything, but {}.").format(Markup("; ").join(reasons))

    def _better(self, ours: str, theirs: str) -> Iterator[Markup]:
        """In what one variant is better than another, by more than counts as clear."""
        a, b = self.run.results[ours], self.run.results[theirs]

        def of(key: str) -> tuple[float, float] | None:
            pair = a.get(key), b.get(key)
            numbers = [value for value in pair if isinstance(value, float | int)]
            return (numbers[0], numbers[1]) if len(numbers) == len(pair) else None

        metric, speed, size, agrees = of(self.metric), of("speedup"), of("model_size"), of("agreement")
        if metric and metric[0] - metric[1] >= CLEAR_SCORE - 1e-12:
            yield self._versus("is more accurate", ours, theirs, self.metric)
        if speed and speed[0] * (1 - CLEAR_TIME) >= speed[1]:
            yield self._versus("is faster", ours, theirs, "speedup")
        if size and size[0] <= size[1] * (1 - CLEAR_SIZE):
            yield self._versus("is smaller", ours, theirs, "model_size", " MB")
        if agrees and agrees[0] - agrees[1] >= CLEAR_AGREEMENT - 1e-12:
            yield self._versus("agrees more with the teacher", ours, theirs, "agreement", " %")

    def _versus(self, words: str, ours: str, theirs: str, key: str, unit: str = "") -> Markup:
        return Markup("{} ({}, not {})").format(
            words, self.number(ours, key, unit), self.number(theirs, key, unit)
        )

    # How far to believe it

    def trusted(self, variant: str) -> bool:
        """Whether the speedup's interval is narrow, and the machine was quiet; so where it is not known."""
        return self.run.results[variant].get("trusted") is not False

    @cached_property
    def doubts(self) -> list[tuple[str, Markup]]:
        """The variants whose speedup is not trusted, and why."""
        return [(v, self._doubt(v)) for v in self.variants if not self.trusted(v)]

    def _doubt(self, variant: str) -> Markup:
        interval = self.interval(variant, "speedup")
        words = Markup("between {}").format(interval.replace(" to ", " and ")) if interval else Markup("")
        note = self.run.run.notes.get(variant)
        if note:
            return words + Markup(": {}").format(note)
        others = self.run.results[variant].get("others")
        if isinstance(others, float | int) and others > MAX_OTHERS:
            used = self.number(variant, "others", " %")
            return words + Markup("; other programs used {} of the machine").format(used)
        return words + Markup(", which is wider than ±{:.0f} %").format(_PERCENT * TRUSTED)

    # Rows

    @cached_property
    def changed(self) -> list[tuple[str, VariantChanges]]:
        """The variants that list rows, the first choices first, then those that change the most."""
        changes = self.run.changes
        if changes is None:
            return []
        of = [(name, each) for name, each in changes.variants.items() if name in self.run.results]
        listing = [(n, each) for n, each in of if each.changed or (each.changed is None and each.listed)]
        return sorted(listing, key=lambda pair: (pair[0] not in self.chosen, -(pair[1].changed or 0)))

    @property
    def unchanged(self) -> list[str]:
        """The variants that change no label."""
        changes = self.run.changes
        if changes is None:
            return []
        return [name for name, each in changes.variants.items() if each.changed == 0]

    def matrix(self, changes: VariantChanges) -> Matrix | None:
        """The confusion with the teacher as a table; None where it has too many labels, or none."""
        facts = self.run.changes.task if self.run.changes else None
        if facts is None or not changes.confusion or len(facts.labels) > _MOST_LABELS:
            return None
        rows = {(cell.teacher, cell.variant): cell.rows for cell in changes.confusion}
        return Matrix(
            facts.labels, tuple(tuple(rows.get((a, b), 0) for b in facts.labels) for a in facts.labels)
        )

    def pairs(self, changes: VariantChanges) -> list[Cell]:
        """The pairs of labels that change, the most frequent first, where there is no matrix."""
        pairs = [cell for cell in changes.confusion if cell.teacher != cell.variant]
        return sorted(pairs, key=lambda cell: -cell.rows)[:_MOST_PAIRS]

    # Checks

    @cached_property
    def checks(self) -> list[tuple[str, list[str]]]:
        """Each sentence of the checks, and the variants of which it is true."""
        variants: dict[str, list[str]] = {}
        for variant in self.variants:
            for sentence in (*self._coverage(variant), *self.run.checked.get(variant, ())):
                variants.setdefault(sentence, []).append(variant)
        return sorted(variants.items(), key=lambda item: item[0].split()[0])

    def _coverage(self, variant: str) -> tuple[str, ...]:
        share = self.run.results[variant].get("quantized_share")
        if not isinstance(share, float | int):
            return ()
        left = self.run.run.not_quantized.get(variant, ())
        if share == 1:
            words = "All matrix products with a weight are in 8 bits or as the recipe says."
        else:
            words = f"{_PERCENT * share:.1f} % of the matrix products with a weight are quantized."
        named = "; ".join(f"{each.get('node', '')} ({each.get('reason', '')})" for each in left)
        return (f"{words} Left in float: {named}.",) if named else (words,)

    # Machine and versions

    @property
    def shape(self) -> str:
        """What was timed, "1x128"."""
        given = self.run.run.arguments
        return f"{given.get('batch_size', 1)}x{given.get('seq_len', '')}"

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        """What the numbers depend on, a line each."""
        run, machine = self.run.run, self.run.run.hardware
        cores = f"{machine.physical_cores} physical, {machine.usable_cores} usable"
        seconds, steps = sum(run.durations_s.values()), len(run.durations_s)
        lines = [
            ("CPU", f"{machine.cpu_model}, {machine.architecture}"),
            ("instruction sets", ", ".join(machine.instruction_sets) or "none of interest"),
            ("cores", f"{cores}; {run.threads} threads timed"),
            ("memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
            ("8 bits here", run.int8),
            ("timed shape", f"{self.shape}, batch x tokens"),
            ("Python", run.python),
            ("packages", ", ".join(f"{name} {version}" for name, version in run.packages.items() if version)),
            ("seeds", ", ".join(f"{name} {seed}" for name, seed in run.seeds.items())),
            ("hub", ", ".join(f"{role} {commit}" for role, commit in run.hub_commits.items())),
            ("took", f"{seconds:.0f} s, {len(run.cached)} of {steps} steps from the cache"),
        ]
        if run.peak_memory_bytes:
            lines.append(("peak memory", f"{run.peak_memory_bytes / BYTES_PER_MB:.0f} MB"))
        return [(what, words) for what, words in lines if words]

    @property
    def hashes(self) -> list[tuple[str, str]]:
        """(what, SHA-256) of data, checkpoints and models."""
        known = dict(self.run.run.sha256)
        models = known.pop("models", {})
        of_models = ((f"model of {variant}", digest) for variant, digest in models.items())
        return [(str(what), str(digest)) for what, digest in (*known.items(), *of_models)]

    @property
    def arguments(self) -> list[tuple[str, str]]:
        """(option, value) of all arguments."""
        return [
            (name, json.dumps(value, ensure_ascii=False)) for name, value in self.run.run.arguments.items()
        ]

    @property
    def command(self) -> str:
        """The command that makes these results again; empty where run.json is older than it."""
        return self.run.run.command

    def model_of(self, variant: str) -> str:
        """The float model that a variant was made of."""
        return VariantName.parse(variant).model


def _name(variant: str) -> Markup:
    return Markup('<span class="name">{}</span>').format(breaking(variant))


def explanations(views: Sequence[TaskView]) -> list[Shown]:
    """The columns that the page explains, each once."""
    return list({shown.column.key: shown for view in views for shown in view.columns}.values())
