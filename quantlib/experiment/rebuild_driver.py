"""Builds the models of whichever quantlib is first on the path; `rebuilding` runs it as a script.

So it may use only what every revision that writes baselines with arguments has: `build`, and the options,
whose fields the arguments name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints


def main() -> None:
    """Read arguments from stdin, build, and write {variant: path} to the file that stdin names."""
    from quantlib.experiment.build import build
    from quantlib.experiment.options import ExperimentOptions

    request = json.load(sys.stdin)
    built = build(ExperimentOptions(**typed(ExperimentOptions, request["arguments"])))
    models = {variant.name: str(variant.path) for variant in built.variants}
    Path(request["answer"]).write_text(json.dumps(models), encoding="utf-8")


def typed(options: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Values of JSON as the fields of the options want them: tuples for lists, and paths."""
    hints = get_type_hints(options)

    def value_of(name: str, value: Any) -> Any:
        hint = hints.get(name)
        if get_origin(hint) is tuple:
            return tuple(value)
        return Path(value) if Path in (hint, *get_args(hint)) and value is not None else value

    return {name: value_of(name, value) for name, value in arguments.items()}


if __name__ == "__main__":
    main()
