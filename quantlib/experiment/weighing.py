"""What the blocks of a model cost: their time on this machine, or operations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from quantlib.compression import pruning
from quantlib.experiment.timing import turn_options_of
from quantlib.experiment.work import Variant, Work, cached
from quantlib.machine import hardware
from quantlib.measuring.block_times import time_blocks
from quantlib.measuring.latency.shapes import Shape
from quantlib.support.cache import versions_key
from quantlib.support.directories import temporary_dir
from quantlib.support.files import write_json
from quantlib.support.progress import Step


def block_costs(work: Work, fp32: Variant, *, compiled: bool) -> dict[str, pruning.Cost]:
    """The cost of each block by its width, at the shape of the run.

    Times are those of blocks quantized by the base recipe, as they are compiled. A graph that stays as it was
    exported, or that ONNX Runtime's own tool quantizes, has other operators: its blocks are weighed by
    operations, as all are with `--no-time-blocks`.

    Raises:
        InputError: other programs use the machine, so that times are not sure.
    """
    options, recipe = work.options, work.options.resolved_base
    compiled = compiled and recipe.quantizer == "quantlib"
    if not (options.time_blocks and compiled):
        return pruning.operation_costs(fp32.path, options.seq_len, compiled=compiled)
    forms = pruning.forms_of(fp32.path)
    different = list(dict.fromkeys(form for several in forms.values() for form in several))
    shape = Shape(options.batch_size, options.seq_len)

    def measure(directory: Path, step: Step) -> None:
        with temporary_dir() as scratch:
            times = time_blocks(
                different,
                recipe,
                shape,
                options.session,
                turn_options_of(options),
                scratch,
                progress=step.advance,
            )
        write_json(directory / "times.json", [asdict(times[form]) for form in different])

    machine = hardware.describe()
    key = {
        "forms": [asdict(form) for form in different],
        "recipe": replace(recipe, name="base", summary="").file_key(),
        "shape": list(shape),
        "session": asdict(options.session),
        "cpu": [machine.cpu_model, *machine.instruction_sets],
        "versions": versions_key("onnxruntime", "onnx", "onnx-ir", "numpy"),
    }
    turns = turn_options_of(options)
    total = turns.launches * turns.turns
    path = cached(work, "time single blocks in turns", "blocks", key, measure, total=total) / "times.json"
    tables = [_cost(table) for table in json.loads(path.read_text(encoding="utf-8"))]
    by_form = dict(zip(different, tables, strict=True))
    return {name: _sum([by_form[form] for form in several]) for name, several in forms.items()}


def _cost(table: Mapping[str, list[float]]) -> pruning.Cost:
    return pruning.Cost(tuple(int(width) for width in table["widths"]), tuple(table["values"]))


def _sum(costs: list[pruning.Cost]) -> pruning.Cost:
    """The cost of a block whose weights are used several times."""
    widths = sorted({width for cost in costs for width in cost.widths})
    return pruning.Cost(tuple(widths), tuple(sum(cost.at(width) for cost in costs) for width in widths))
