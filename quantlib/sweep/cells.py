"""The cells of a sweep, and the blocks of them that belong to one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantlib.compression.recipes import Recipe
from quantlib.compression.variants import STUDENT, TEACHER, VariantName
from quantlib.experiment.options import ExperimentOptions, engines_for, float_steps, recipes_for


@dataclass(frozen=True)
class Cell:
    """A row of the table: a variant of the teacher, or of the student, on a task.

    task, teacher, student: as the sweep calls them; student is None for a variant of the teacher.
    variant: its name within its block, as in results.json of a run.
    """

    task: str
    teacher: str
    student: str | None
    variant: str

    def __str__(self) -> str:
        return " / ".join(part for part in (self.task, self.teacher, self.student, self.variant) if part)


@dataclass(frozen=True)
class Quantized:
    """A quantized variant of a block.

    given: its recipe as the options name it. engine: what runs it. recipe: as that takes it. variant: its
    name.
    """

    given: str
    engine: str
    recipe: Recipe
    variant: str


@dataclass(frozen=True)
class Block:
    """The cells of one float model: the teacher of a task, or a student of it.

    options: of a run of the teacher alone, or of the teacher with this one student. left_out: quantized
    variants that are no cells here, but of another shard.
    """

    task: str
    teacher: str
    student: str | None
    options: ExperimentOptions
    left_out: frozenset[str] = frozenset()

    @property
    def model(self) -> str:
        """The role of its model."""
        return TEACHER if self.student is None else STUDENT

    @property
    def quantized(self) -> tuple[Quantized, ...]:
        """Its quantized variants, on all engines: the recipes that apply to the model."""
        return tuple(
            Quantized(self._given(recipe, engine), engine, recipe, self._name(recipe.name, engine))
            for engine in engines_for(self.options, self.model)
            for recipe in recipes_for(self.options, self.model, engine)
            if self._name(recipe.name, engine) not in self.left_out
        )

    @property
    def float_variants(self) -> tuple[str, ...]:
        """The names of its float variants, on all engines."""
        return tuple(
            self._name(step, engine)
            for engine in engines_for(self.options, self.model)
            for step in float_steps(self.options, self.model, engine)
        )

    def cell(self, variant: str) -> Cell:
        """The cell of a variant."""
        return Cell(self.task, self.teacher, self.student, variant)

    @property
    def cells(self) -> Iterator[Cell]:
        """All of its cells, in the order of the table."""
        for variant in self.float_variants:
            yield self.cell(variant)
        for quantized in self.quantized:
            yield self.cell(quantized.variant)

    def _given(self, recipe: Recipe, engine: str) -> str:
        """A recipe for an engine as the options name it."""
        asked = zip(self.options.recipes, self.options.asked, strict=True)
        return next(text for text, a in asked if a.recipe.name == recipe.name and a.engine in (None, engine))

    def _name(self, step: str, engine: str) -> str:
        return str(VariantName(0 if self.student is None else 1, step, engine))
