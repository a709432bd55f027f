"""A run as Markdown, for a pull request or a workflow's summary: what to ship, and only what differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from quantlib.compression.variants import TEACHER
from quantlib.report.changes import ChangedRow, Row
from quantlib.report.front import CLEAR_SCORE, CLEAR_SIZE
from quantlib.report.markdown import escape, literal, row
from quantlib.report.page.files import TaskRun, read_task, task_directories
from quantlib.report.page.view import TaskView
from quantlib.support.columns import Value

# A workflow's summary holds 1 MiB, and nobody reads more there.
_MOST_ROWS, _MOST_CHARACTERS = 5, 160
_FACTS_THAT_MOVE = ("took", "peak memory")


def summary(output_dir: Path, against: Path | None = None) -> str:
    """The tasks of an output directory in GitHub's Markdown.

    Args:
        output_dir: what a run wrote into, or the directory of one task.
        against: an earlier one; then only variants that differ from it are listed, and what differs between
            the environments.

    Raises:
        InputError: no results, or a damaged file.
    """
    earlier = {} if against is None else {run.name: run for run in map(read_task, task_directories(against))}
    lines: list[str] = []
    for directory in task_directories(output_dir):
        run = read_task(directory)
        lines += [*_task(TaskView(run), earlier.get(run.name), compared=against is not None), ""]
    return "\n".join(lines)


def _task(view: TaskView, earlier: TaskRun | None, *, compared: bool) -> Iterator[str]:
    yield f"## {escape(view.name)}: what to ship"
    yield ""
    for card in view.cards:
        wishes = " and ".join(card.wishes)
        yield f"- **{escape(card.variant or 'none')}**, {escape(wishes)}: {escape(card.why)}"
    yield ""
    yield _counts(view, earlier)
    yield ""
    if compared and earlier is None:
        yield "The earlier output directory has no such task."
        yield ""
    yield from _table(view, earlier)
    yield from _changed_rows(view)
    if earlier is not None:
        yield from _environment(view, TaskView(earlier))


def _counts(view: TaskView, earlier: TaskRun | None) -> str:
    variants = [variant for variant in view.variants if variant != TEACHER]
    doubtful = sum(not view.trusted(variant) for variant in variants)
    words = [f"{len(variants)} variants"]
    words.append(f"{doubtful} speedups not trusted" if doubtful else "all speedups trusted")
    changes = view.run.changes
    if changes is not None and any(each.changed is not None for each in changes.variants.values()):
        count = sum(bool(each.changed) for each in changes.variants.values())
        words.append(f"{count} change labels (of {changes.task.rows} rows)")
    if earlier is not None:
        differing = len(_differing(view, earlier))
        words.append(f"{differing} differ from the earlier run, {len(view.variants) - differing} do not")
    return f"{', '.join(words)}."


def _table(view: TaskView, earlier: TaskRun | None) -> Iterator[str]:
    """The first choices, or, beside an earlier run, the variants that differ from it."""
    shown = view.chosen if earlier is None else list(_differing(view, earlier))
    if not shown:
        return
    columns = [each for each in view.columns if each.main]
    headings = [f"{c.column.name}{', ' if c.column.unit else ''}{c.column.unit}" for c in columns]
    yield row(["variant", *(escape(heading) for heading in headings)])
    yield row(["---", *["---:"] * len(columns)])
    for variant in shown:
        old = {} if earlier is None else earlier.results.get(variant, {})
        cells = [_cell(view, variant, each.column.key, old) for each in columns]
        yield row([escape(variant), *cells])
    yield ""
    if earlier is not None:
        gone = [name for name in earlier.results if name not in view.run.results]
        if gone:
            yield f"No longer there: {escape(', '.join(gone))}."
            yield ""


def _cell(view: TaskView, variant: str, key: str, old: object) -> str:
    """A value, with the earlier one before it where that reads differently."""
    if not view.has(variant, key):
        return ""
    now = view.shown(variant, key)
    if isinstance(old, dict) and key in old:
        before = view.column(key).show(old[key])
        return now if before == now else f"{escape(before)} → **{escape(now)}**"
    return escape(now)


def _differing(view: TaskView, earlier: TaskRun) -> list[str]:
    """The variants that are new, or clearly differ: in the metric, the size, or beyond both intervals."""
    return [
        variant
        for variant in view.variants
        if variant not in earlier.results or _differs(view, variant, earlier)
    ]


def _differs(view: TaskView, variant: str, earlier: TaskRun) -> bool:
    new, old = view.run.results[variant], earlier.results[variant]
    metric, size = _change(new, old, view.metric), _ratio(new, old, "model_size")
    labels = _change(new, old, "agreement")
    if abs(metric) >= CLEAR_SCORE - 1e-12 or abs(labels) > 1e-9 or abs(size - 1) >= CLEAR_SIZE:
        return True
    ends = [_number(each, key) for each in (new, old) for key in ("speedup_low", "speedup_high")]
    if None in ends:
        return False
    low, high, old_low, old_high = (end or 0.0 for end in ends)
    return low > old_high or high < old_low


def _number(values: object, key: str) -> float | None:
    value: Value = values.get(key) if isinstance(values, dict) else None
    return float(value) if isinstance(value, float | int) else None


def _change(new: object, old: object, key: str) -> float:
    a, b = _number(new, key), _number(old, key)
    return 0.0 if a is None or b is None else a - b


def _ratio(new: object, old: object, key: str) -> float:
    a, b = _number(new, key), _number(old, key)
    return 1.0 if a is None or b is None else a / b


def _changed_rows(view: TaskView) -> Iterator[str]:
    """The rows that the first choices change, folded."""
    changes = view.run.changes
    if changes is None:
        return
    for variant, each in view.changed:
        if variant not in view.chosen or not each.listed:
            continue
        count = f"{each.changed} changed rows" if each.changed is not None else "the largest changes"
        yield f"<details><summary>{escape(variant)}: {count}</summary>"
        yield ""
        yield row(["row", "text", "label", "teacher", "variant"])
        yield row(["---"] * 5)
        for change in each.listed[:_MOST_ROWS]:
            yield row(_row_cells(change, changes.rows[change.row]))
        yield ""
        if len(each.listed) > _MOST_ROWS:
            yield f"The {_MOST_ROWS} surest; report.html lists {len(each.listed)}."
            yield ""
        yield "</details>"
        yield ""


def _row_cells(change: ChangedRow, of: Row) -> list[str]:
    text = " ⏐ ".join(of.texts)
    text = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} …"
    answers = (
        f"{label} {_score(score, words=bool(label))}".strip()
        for label, score in ((change.teacher, change.teacher_score), (change.variant, change.variant_score))
    )
    return [literal(cell) for cell in (of.name, text, of.label or "", *answers)]


def _score(score: float | None, *, words: bool) -> str:
    if score is None:
        return ""
    return f"({100 * score:.0f} %)" if words else f"{score:.4g}"


def _environment(view: TaskView, earlier: TaskView) -> Iterator[str]:
    """What differs between the environments of two runs."""
    old = dict(earlier.facts)
    facts = [(what, words) for what, words in view.facts if what not in _FACTS_THAT_MOVE]
    differing = [(what, old.get(what, ""), words) for what, words in facts if old.get(what, "") != words]
    if differing:
        yield "### The environment differs"
        yield ""
        yield row(["", "earlier", "now"])
        yield row(["---", "---", "---"])
        yield from _escaped(differing)
        yield ""


def _escaped(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    return (row([escape(cell) for cell in cells]) for cells in rows)
