"""The files beside quantlib.toml that gate a model in the repository where it is trained."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from quantlib.support.files import atomic_file

# Where each template goes, relative to the configuration file.
_PLACES = {
    "test_quantized.py.txt": Path("bench") / "test_quantized.py",
    "quantlib.yml": Path(".github") / "workflows" / "quantlib.yml",
}


def write_tests(root: Path) -> dict[Path, bool]:
    """Write tests for pytest and a workflow for CI below `root`; {file: whether it was written}.

    A file that is there already stays as it is.

    Raises:
        InputError: a file cannot be written.
    """
    written = {}
    for template, place in _PLACES.items():
        path = root / place
        written[path] = not path.exists()
        if written[path]:
            with atomic_file(path) as scratch:
                scratch.write_bytes((files("quantlib.experiment") / "templates" / template).read_bytes())
    return written
