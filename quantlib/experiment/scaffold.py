"""The files beside quantlib.toml that gate a model in the repository where it is trained."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from quantlib.data.tables.hub import PREFIX
from quantlib.experiment.work import is_onnx
from quantlib.support.files import atomic_file

# Where each template goes, relative to the configuration file.
_PLACES = {
    "test_quantized.py.txt": Path("bench") / "test_quantized.py",
    "quantlib.yml": Path(".github") / "workflows" / "quantlib.yml",
}


_REQUIREMENT = "bert-quantlib[train]"  # in the workflow


def write_tests(root: Path, requirement: str = _REQUIREMENT) -> dict[Path, bool]:
    """Write tests for pytest and a workflow for CI below `root`; {file: whether it was written}.

    A file that is there already stays as it is.

    Args:
        root: the directory of quantlib.toml.
        requirement: what the workflow installs, as `requirement_of` names it.

    Raises:
        InputError: a file cannot be written.
    """
    written = {}
    for template, place in _PLACES.items():
        path = root / place
        written[path] = not path.exists()
        if written[path]:
            with atomic_file(path) as scratch:
                text = (files("quantlib.experiment") / "templates" / template).read_text(encoding="utf-8")
                scratch.write_text(text.replace(_REQUIREMENT, requirement), encoding="utf-8")
    return written


def requirement_of(teacher: str | None, rows: Iterable[str]) -> str:
    """This package with the extras that a run on a model and files of rows needs: "bert-quantlib[train]".

    Args:
        teacher: a directory, a hub id, or an ONNX file; None for the packaged MiniLM.
        rows: where rows come from, as the options have it.
    """
    extras = set()
    if teacher is None:
        extras.add("demo")
    elif not is_onnx(Path(teacher)):
        extras.add("train" if Path(teacher).expanduser().exists() else "hub")
    for place in rows:
        if place.startswith(PREFIX):
            extras.add("hub")
        elif place.lower().endswith(".parquet") or Path(place).is_dir():
            extras.add("parquet")
    if "hub" in extras:  # it brings these two
        extras -= {"train", "parquet"}
    if "demo" in extras:
        extras -= {"train"}
    return f"bert-quantlib[{','.join(sorted(extras))}]" if extras else "bert-quantlib"
