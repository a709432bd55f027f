"""Single blocks at several widths: what their models compute, and the table of their times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from quantlib.compression.pruning import ATTENTION, FFN, Form
from quantlib.compression.recipes import RECIPES
from quantlib.machine.sessions import SessionConfig, open_session
from quantlib.measuring import block_times
from quantlib.measuring.block_times import COPIES, block_model, time_blocks, widths_to_time
from quantlib.measuring.latency.interleaved import Turn, TurnOptions
from quantlib.measuring.latency.shapes import Shape
from quantlib.measuring.profile import trace
from quantlib.onnx_model.model import op_counts
from quantlib.support.errors import InputError

FORMS = {
    "ffn": Form(FFN, (32, 32), 128, 32, 1, 1, one_row=False),
    "gated": Form(FFN, (32, 32), 128, 32, 1, 2, one_row=False),
    "ffn of one row": Form(FFN, (32, 32), 128, 32, 1, 1, one_row=True),
    "attention": Form(ATTENTION, (32, 32), 4, 1, 8, 1, one_row=False),
    "attention of one row": Form(ATTENTION, (32, 32), 4, 1, 8, 1, one_row=True),
}
ONE = SessionConfig(1)


def feed_of(form: Form, shape: Shape) -> dict[str, Any]:
    x = np.random.default_rng(0).normal(size=(*shape, form.channels[0])).astype(np.float32)
    return {"x": x, "mask": np.ones(shape, np.int32)}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_the_operations_of_a_form_are_those_that_the_runtime_does(form: Form, tmp_path: Path) -> None:
    width = form.units // 2
    onnx.save(block_model(form, width), tmp_path / "blocks.onnx")
    traced = trace(tmp_path / "blocks.onnx", [feed_of(form, Shape(2, 12))], ONE, warmup_runs=1, num_runs=2)
    total = sum(node.operations.total for node in traced.nodes)
    assert total == 2 * COPIES * width * form.operations(12)


def test_widths_are_those_that_kernels_like_and_all() -> None:
    wide = Form(FFN, (384, 384), 1536, 32, 1, 1, one_row=False)
    assert widths_to_time(wide) == (32, 384, 768, 1152, 1536)
    assert widths_to_time(Form(FFN, (384, 384), 1536, 32, 1, 1, one_row=True)) == (32, 1536)
    assert widths_to_time(Form(ATTENTION, (384, 384), 12, 1, 32, 1, one_row=False)) == (1, 3, 6, 9, 12)
    assert widths_to_time(Form(FFN, (8, 8), 20, 32, 1, 1, one_row=False)) == (20,)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Turns whose times are written here: 1 ms, and 10 ms more for the widest model of a form."""
    state: dict[str, Any] = {"others": 0.0, "paths": []}

    def turns(reference: str, starts: Mapping[str, Any], options: TurnOptions, **_: Any) -> list[Turn]:
        widths = {name: int(name.split()[1]) for name in starts}
        for start in starts.values():
            process = start()
            state["paths"].append(op_counts(process.onnx_path))
            open_session(process.onnx_path, threads=1)
        return [
            Turn(
                (launch, number),
                state["others"],
                {name: (1.0 + width / 10,) * 4 for name, width in widths.items()},
            )
            for launch in range(options.launches)
            for number in range(options.turns)
        ]

    monkeypatch.setattr(block_times, "take_turns_until_precise", turns)
    return state


@pytest.mark.parametrize("recipe", ["static_u8s8_smooth", "quant_1", "dynamic_u8s8", "weight_only_int8"])
def test_the_table_has_the_time_of_one_block_at_each_width(
    recipe: str, made_up: dict[str, Any], tmp_path: Path
) -> None:
    forms = [FORMS["ffn"], FORMS["attention"], FORMS["attention of one row"]]
    options = TurnOptions(runs=24)
    times = time_blocks([*forms, forms[0]], RECIPES[recipe], Shape(1, 8), ONE, options, tmp_path)
    assert list(times) == forms
    assert times[forms[0]].widths == (32, 64, 96, 128)
    assert times[forms[0]].at(128) == pytest.approx((1 + 12.8) / COPIES)
    assert times[forms[1]].at(2) == pytest.approx(1.2 / COPIES)
    assert times[forms[2]].widths == (1, 4)
    if recipe.startswith("static"):
        assert (
            made_up["paths"][0]["QLinearMatMul"] + made_up["paths"][0]["MatMulIntegerToFloat"] == 2 * COPIES
        )
        assert made_up["paths"][4]["QAttention"] == COPIES


def test_a_busy_machine_gives_no_table(made_up: dict[str, Any], tmp_path: Path) -> None:
    made_up["others"] = 0.9
    with pytest.raises(InputError, match=r"not sure while other programs use this machine.*--no-time-blocks"):
        time_blocks([FORMS["ffn"]], RECIPES["quant_2"], Shape(1, 8), ONE, TurnOptions(runs=24), tmp_path)
