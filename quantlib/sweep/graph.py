"""The jobs of a sweep: what each makes, and which of them it waits for.

A job makes the float models of a block, or one variant, or times a block. What several variants start from (a
smoothed or a pruned model) is made by the first of them, and the others wait for it: on workers with a cache
in common they would wait for its lock, and on others they would make it again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from quantlib.compression.variants import STUDENT
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.parts import Part
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_json
from quantlib.support.options import options_of
from quantlib.sweep.cells import Block, Cell, Quantized
from quantlib.sweep.inputs import Input, Packer, plain

Kind = Literal["models", "variant", "latency"]
# Long ones first, those on which others wait before those on which none does, and latency last.
_RANKS: Mapping[Kind, int] = {"models": 0, "variant": 2, "latency": 4}


@dataclass(frozen=True)
class Job:
    """A unit of work that a worker does.

    key: the SHA-256 of everything that decides what it gives. cells: the rows that it fills, in the order of
    their variants; of latency, those that it times. options, inputs, part: of what is made. worker_threads:
    of that. waits_for: the keys of jobs that come before. kept: others wait for what it makes. machine: where
    it has to run; None for anywhere.
    """

    kind: Kind
    key: str
    cells: tuple[Cell, ...]
    options: ExperimentOptions
    inputs: tuple[Input, ...]
    part: Part
    worker_threads: int
    waits_for: tuple[str, ...] = ()
    kept: bool = False
    machine: str | None = None

    @property
    def name(self) -> str:
        """What it is called where a person reads."""
        if self.kind == "variant":
            return str(self.cells[0])
        first = self.cells[0]
        what = "float models" if self.kind == "models" else f"latency on {self.machine}"
        return " / ".join(part for part in (first.task, first.teacher, first.student, what) if part)

    @property
    def rank(self) -> int:
        """Of jobs that could run now, those of the lowest rank do."""
        return _RANKS[self.kind] - (1 if self.kind == "variant" and self.kept else 0)


@dataclass(frozen=True)
class Graph:
    """The jobs of some blocks, each behind those that it waits for.

    refused: cells whose files cannot be read, and why; no job is of them.
    """

    jobs: tuple[Job, ...]
    refused: Mapping[Cell, str]


def graph_of(
    blocks: Iterable[Block], worker_threads: int, machines: Sequence[str], code: Mapping[str, Any]
) -> Graph:
    """All jobs of some blocks.

    Args:
        blocks: the cells.
        worker_threads: of a job that is not timed.
        machines: where latency is measured; none for nowhere.
        code: the versions that decide results; see `environment.code`.
    """
    packer = Packer()
    jobs: dict[str, Job] = {}
    refused: dict[Cell, str] = {}
    for block in blocks:
        try:
            inputs = packer.inputs_of(block.options)
        except InputError as error:
            refused |= dict.fromkeys(block.cells, str(error))
            continue
        maker = _Maker(block, inputs, worker_threads, code)
        waits_for: tuple[str, ...] = ()
        if block.model == STUDENT:
            of = _teacher_of(block)
            teacher = _Maker(of, packer.inputs_of(of.options), worker_threads, code).models(())
            jobs.setdefault(teacher.key, teacher)
            waits_for = (teacher.key,)
        models = maker.models(waits_for)
        made = [models, *maker.variants(models)]
        made += [maker.latency(made, machine) for machine in machines]
        for job in made:
            jobs[job.key] = job
    needed = {key for job in jobs.values() for key in job.waits_for}
    return Graph(tuple(replace(job, kept=job.key in needed) for job in jobs.values()), refused)


def without(job: Job, failed: Collection[str]) -> Job:
    """A job of latency without the variants that could not be made: it times the others."""
    floats = len(job.cells) - len(job.part.recipes)
    pairs = zip(job.part.recipes, job.cells[floats:], strict=True)
    left = [(recipe, cell) for recipe, cell in pairs if cell.variant not in failed]
    cells = (*job.cells[:floats], *(cell for _, cell in left))
    return replace(job, cells=cells, part=replace(job.part, recipes=tuple(recipe for recipe, _ in left)))


def _teacher_of(block: Block) -> Block:
    """The block of the teacher of a student's block, with the options that both have."""
    of_students = {
        item.name: item.default for item in options_of(ExperimentOptions) if item.trains == STUDENT
    }
    return replace(
        block,
        student=None,
        options=replace(block.options, students=(), no_student=True, **of_students),
    )


@dataclass(frozen=True)
class _Maker:
    """Makes the jobs of one block."""

    block: Block
    inputs: tuple[Input, ...]
    worker_threads: int
    code: Mapping[str, Any]

    def models(self, waits_for: tuple[str, ...]) -> Job:
        """The job of the float models."""
        cells = tuple(self.block.cell(name) for name in self.block.float_variants)
        return self._job("models", None, cells, waits_for)

    def variants(self, models: Job) -> list[Job]:
        """A job for each recipe."""
        first: dict[tuple[Any, ...], str] = {}
        jobs = []
        for quantized in self.block.quantized:
            shared = _shared(quantized)
            waits_for = (models.key, *dict.fromkeys(first[start] for start in shared if start in first))
            job = self._job("variant", quantized, (self.block.cell(quantized.variant),), waits_for)
            first |= {start: job.key for start in shared if start not in first}
            jobs.append(job)
        return jobs

    def latency(self, made: Sequence[Job], machine: str) -> Job:
        """The job that times a block on a machine."""
        cells = tuple(cell for job in made for cell in job.cells)
        options = self.block.options
        timed = {
            name: getattr(options, name)
            for name in (
                "threads",
                "num_runs",
                "warmup_runs",
                "timing_seconds",
                "batch_size",
                "stock_sessions",
            )
        }
        key = sha256_json({"kind": "latency", "of": [job.key for job in made], "machine": machine, **timed})
        part = Part(self.block.model, tuple((q.given, q.engine) for q in self.block.quantized), floats=True)
        waits_for = tuple(job.key for job in made)
        threads = self.worker_threads
        return Job("latency", key, cells, options, self.inputs, part, threads, waits_for, machine=machine)

    def _job(
        self, kind: Kind, quantized: Quantized | None, cells: tuple[Cell, ...], waits_for: tuple[str, ...]
    ) -> Job:
        threads = self.worker_threads
        options = replace(self.block.options, recipes=(), threads=threads, training_threads=threads)
        part, recipe = Part(self.block.model, floats=True), None
        if quantized is not None:
            given, engine = quantized.given, quantized.engine
            options = replace(options, recipes=(given,), engines=(engine,))
            part = Part(self.block.model, ((given, engine),))
            recipe = [quantized.recipe.name, quantized.recipe.file_key()]
        inputs = tuple(
            replace(entry, index=0) if entry.option == "recipes" else entry
            for entry in self.inputs
            if entry.option != "recipes" or entry.text in options.recipes
        )
        key = sha256_json(
            {
                "kind": kind,
                "model": self.block.model,
                "options": plain(options, inputs),
                "recipe": recipe,
                **self.code,
            }
        )
        return Job(kind, key, cells, options, inputs, part, threads, waits_for)


def _shared(quantized: Quantized) -> tuple[tuple[Any, ...], ...]:
    """What a variant starts from that others may start from too, and that takes long to make."""
    recipe, engine = quantized.recipe, quantized.engine
    pruned = (recipe.prune, recipe.widths, recipe.heads, recipe.quantizer) if recipe.prunes else ()
    starts: list[tuple[Any, ...]] = []
    if recipe.prunes:
        starts += [("neurons",), ("pruned", engine, *pruned)]
    if recipe.smooth:
        starts.append(("smoothed", engine, *pruned))
    return tuple(starts)
