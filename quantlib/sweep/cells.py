"""The cells of a sweep, and the blocks of them that belong to one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from quantlib.compression.variants import COMPILED, STUDENT, TEACHER, VariantName
from quantlib.experiment.options import ExperimentOptions, recipes_for


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
class Block:
    """The cells of one float model: the teacher of a task, or a student of it.

    options: of a run of the teacher alone, or of the teacher with this one student.
    """

    task: str
    teacher: str
    student: str | None
    options: ExperimentOptions

    @property
    def model(self) -> str:
        """The role of its model."""
        return TEACHER if self.student is None else STUDENT

    @property
    def recipes(self) -> tuple[tuple[str, str], ...]:
        """(as the options name it, its name) of each recipe that applies to the model."""
        apply = {recipe.name for recipe in recipes_for(self.options, self.model)}
        pairs = zip(self.options.recipes, self.options.resolved_recipes, strict=True)
        return tuple((given, recipe.name) for given, recipe in pairs if recipe.name in apply)

    @property
    def float_variants(self) -> tuple[str, ...]:
        """The names of its float variants."""
        return (self.model, self._name(COMPILED)) if self.options.compile else (self.model,)

    def variant_of(self, recipe: str) -> str:
        """The name of what a recipe makes of its model."""
        return self._name(recipe)

    def cell(self, variant: str) -> Cell:
        """The cell of a variant."""
        return Cell(self.task, self.teacher, self.student, variant)

    @property
    def cells(self) -> Iterator[Cell]:
        """All of its cells, in the order of the table."""
        for variant in self.float_variants:
            yield self.cell(variant)
        for _, recipe in self.recipes:
            yield self.cell(self.variant_of(recipe))

    def _name(self, step: str) -> str:
        return str(replace(VariantName(0 if self.student is None else 1), step=step))
