"""Names of variants and of their files, written and read here alone.

| name                                 | file                | what it is                  |
| ------------------------------------ | ------------------- | --------------------------- |
| teacher, student, student_2          | model.onnx          | a model as it is exported   |
| teacher_compiled, student_2_compiled | model_compiled.onnx | its compiled graph          |
| quant_1, student_2_quant_1           | model_quant_1.onnx  | what a recipe makes of it   |

Behind an @ stands the engine that runs it, if it is not the default: quant_1@openvino. It is quantized and
compiled for that engine, so its file is model_quant_1@openvino.onnx; a model as it is exported is one file
for all of them.

Each model has a directory of its own. The names of recipes that would make two of these names, or two files
of a directory, the same are reserved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from quantlib.machine.engines import DEFAULT_ENGINE, get_engine
from quantlib.support.errors import InputError

TEACHER, STUDENT = "teacher", "student"
COMPILED = "compiled"
# The recipe that `--max-drop` finds.
BUDGETED = "max_drop"
# The recipe that `--target-speedup` finds.
TARGETED = "target_speedup"
# In a limits file `student_quantized` stands for every quantized student, as `student` does for float ones.
QUANTIZED_STUDENT = f"{STUDENT}_quantized"

# Case does not matter: some file systems take model_Compiled.onnx and model_compiled.onnx for the same file.
# A number would be taken for a student's: student_2_fast is what `fast` makes of the second one.
_RESERVED = re.compile(
    rf"all|{COMPILED}|quantized|[0-9]+(_.*)?|({TEACHER}|{STUDENT})(_.*)?", re.IGNORECASE | re.DOTALL
)
_RECIPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NAME = re.compile(rf"(?P<model>{TEACHER}|{STUDENT}(_(?P<number>[0-9]+))?)(_(?P<step>.+))?")
# Stands before the engine; no recipe has one in its name.
_AT = "@"
_ENGINE = re.compile(rf"(?P<plain>.+){_AT}(?P<engine>\w+)", re.DOTALL)


@dataclass(frozen=True)
class VariantName:
    """The name of a variant; `str` gives it as it is written.

    student: the student's number, from 1; 0 for the teacher.
    step: what was done to the exported model: "" for nothing, `COMPILED`, or the name of a recipe.
    engine: the name of what runs it.

    Raises:
        InputError: `step` is no name of a recipe (see `check_recipe_name`), or the engine is unknown.
    """

    student: int = 0
    step: str = ""
    engine: str = DEFAULT_ENGINE

    def __post_init__(self) -> None:
        if self.student < 0:
            raise ValueError(f"students are counted from 1, not {self.student}")
        if self.step not in ("", COMPILED):
            check_recipe_name(self.step)
        get_engine(self.engine)

    @classmethod
    def parse(cls, text: str) -> VariantName:
        """The name that `str` writes as `text`.

        Raises:
            InputError: no variant has this name.
        """
        model, named = split_engine(text)
        engine = named or DEFAULT_ENGINE
        match = _NAME.fullmatch(model)
        if match is None:
            name = cls(step=model, engine=engine)
        else:
            number = 0 if match["model"] == TEACHER else int(match["number"] or 1)
            name = cls(number, match["step"] or "", engine)
        if str(name) != text:
            raise InputError(f"{text!r} is no variant's name; it is written {str(name)!r}")
        return name

    def __str__(self) -> str:
        model = f"{self.model}_{self.step}" if self.step else self.model
        return at_engine(self.recipe if self.recipe and not self.student else model, self.engine)

    @property
    def model(self) -> str:
        """The float model that it was made of: `teacher`, `student`, `student_2`."""
        if not self.student:
            return TEACHER
        return STUDENT if self.student == 1 else f"{STUDENT}_{self.student}"

    @property
    def recipe(self) -> str | None:
        """The name of its recipe; None for a float model."""
        return self.step if self.step not in ("", COMPILED) else None

    @property
    def file_name(self) -> str:
        """The name of its file in the directory of its model."""
        return f"{at_engine(f'model_{self.step}', self.engine)}.onnx" if self.step else "model.onnx"


def at_engine(name: str, engine: str) -> str:
    """A name with its engine behind it, if that is not the default."""
    return name if engine == DEFAULT_ENGINE else f"{name}{_AT}{engine}"


def split_engine(name: str) -> tuple[str, str | None]:
    """A name as it is written, and its engine; None where it names none."""
    match = _ENGINE.fullmatch(name)
    return (match["plain"], match["engine"]) if match else (name, None)


def check_recipe_name(name: str) -> None:
    """Refuse what cannot name a recipe.

    Raises:
        InputError: the name has other characters than letters, digits and "_.-", or is reserved.
    """
    if not _RECIPE.fullmatch(name):
        raise InputError(f"recipe {name!r}: a name is made of letters, digits and '_.-'")
    if _RESERVED.fullmatch(name):
        raise InputError(
            f"recipe {name}: the name is taken; choose another (not all, compiled, quantized, a number, "
            "or one that begins with teacher_, student_ or a number and _)"
        )
