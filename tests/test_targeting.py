"""The search for a speedup: on lines, on noise, and in a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlib.compression.pruning import Cost, Form, operation_costs
from quantlib.compression.recipes import Recipe, read_recipe
from quantlib.data.tasks import get_task
from quantlib.experiment import ExperimentOptions, run, targeting, weighing
from quantlib.experiment.targeting import Attempt, search_share
from quantlib.experiment.work import Variant, Work
from quantlib.onnx_model.model import Model
from quantlib.support.cache import open_cache
from quantlib.support.errors import InputError
from quantlib.support.progress import Steps

LARGEST = 0.97


def line(start: float, slope: float, noise: float = 0.0, seed: int = 0) -> Callable[[float], Attempt]:
    """A model whose time is `start` of the teacher's, less `slope` of the share that is pruned."""
    rng = np.random.default_rng(seed)

    def attempt(share: float) -> Attempt:
        speedup = float(1 / (start - slope * share) * np.exp(rng.normal(0, noise)))
        return Attempt(share, speedup, 0.95 * speedup, 1.05 * speedup)

    return attempt


@given(
    start=st.floats(0.2, 1.0),
    slope=st.floats(0.1, 0.6),
    wanted=st.floats(0.0, 0.99),
    noise=st.sampled_from([0.0, 0.02]),
)
def test_the_smallest_share_that_does_is_found(
    start: float, slope: float, wanted: float, noise: float
) -> None:
    slope *= start  # a share of the model's own time
    target = 1 / (start - slope * wanted * LARGEST)
    attempts = search_share(target, LARGEST, line(start, slope, noise)) if not noise else None
    if attempts is None:
        try:
            attempts = search_share(target, LARGEST, line(start, slope, noise))
        except InputError:
            return  # by bad luck the last attempt was too slow
        assert attempts[-1].speedup >= target
        return
    best = attempts[-1]
    assert best.speedup >= target * (1 - 1e-9)
    assert best.share <= wanted * LARGEST + 1 / 16
    assert len(attempts) <= 6
    assert all(0 <= each.share <= LARGEST for each in attempts)


def test_a_model_that_is_fast_enough_is_not_pruned() -> None:
    (only,) = search_share(1.5, LARGEST, line(0.5, 0.2))
    assert only.share == 0


def test_a_target_out_of_reach_says_what_was_reached() -> None:
    with pytest.raises(InputError, match=r"--target-speedup 9 is not reached: .* 97 % .* was 3\.27x \[3\.1"):
        search_share(9, LARGEST, line(0.5, 0.2))


def test_a_busy_machine_decides_nothing() -> None:
    with pytest.raises(InputError, match="nothing is sure while other programs use this machine"):
        search_share(2.0, LARGEST, lambda share: Attempt(share, 3.0, 2.0, 4.0, doubtful=True))


def test_a_run_writes_the_variant_and_its_recipe(
    tiny_options: ExperimentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of tiny models say nothing, so they are made up: half of the neurons have to go."""
    speeds = line(0.5, 0.2)
    build = targeting._attempt

    def attempt(
        work: object, fp32: object, compiled: object, rows: object, share: float, recipe: Recipe
    ) -> Attempt:
        build(work, fp32, compiled, rows, share, recipe)  # type: ignore[arg-type]
        return speeds(share)

    monkeypatch.setattr(targeting, "_attempt", attempt)
    options = replace(
        tiny_options,
        recipes=("quant_2",),
        no_student=True,
        target_speedup=2.5,
        time_blocks=False,
        output_dir=tmp_path / "a",
    )
    run(options)
    directory = tmp_path / "a" / "SST-2"
    assert list(json.loads((directory / "results.json").read_text()))[-1] == "target_speedup"
    recipe = read_recipe(directory / targeting.RECIPE_FILE)
    reasons = json.loads((directory / targeting.ATTEMPTS_FILE).read_text())
    shares = [each["share"] for each in reasons["attempts"]]
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(0.5, abs=1 / 16)
    costs = {name: Cost(**cost) for name, cost in reasons["costs"].items()}
    assert recipe.kept.keys() == costs.keys()
    whole = sum(cost.values[-1] for cost in costs.values())
    assert sum(cost.at(recipe.kept[name]) for name, cost in costs.items()) <= (1 - shares[-1]) * whole * 1.01
    # Heads count too: with neurons alone it is not reached. The last layer runs for one row.
    assert any(heads == 1 for _, heads in recipe.heads)
    assert costs["layer.1.ffn"].values[-1] < costs["layer.0.ffn"].values[-1] / 16
    again = replace(options, target_speedup=None, recipes=(str(directory / targeting.RECIPE_FILE),))
    run(replace(again, output_dir=tmp_path / "b"))
    model = Path("SST-2") / "ts_teacher_bert" / "model_target_speedup.onnx"
    assert (tmp_path / "a" / model).read_bytes() == (tmp_path / "b" / model).read_bytes()


def test_blocks_are_weighed_by_their_time_once(
    tiny_options: ExperimentOptions, tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table for each form of block, kept in the cache; without times, operations."""
    calls: list[list[Form]] = []

    def timed(forms: list[Form], *_: object, **__: object) -> dict[Form, Cost]:
        calls.append(forms)
        return {form: Cost((1, form.units), (0.5, 1.0 + number)) for number, form in enumerate(forms)}

    monkeypatch.setattr(weighing, "time_blocks", timed)
    work = Work(get_task("SST-2"), cast(Any, None), tiny_options, open_cache(tmp_path / "cache"), Steps())
    fp32 = Variant("teacher", Model(tiny_onnx), tmp_path, ())
    costs, again = (weighing.block_costs(work, fp32, compiled=True) for _ in range(2))
    assert costs == again
    (forms,) = calls
    assert [(form.kind, form.one_row) for form in forms] == [
        ("ffn", False), ("ffn", True), ("attention", False), ("attention", True),
    ]  # fmt: skip
    assert {name: cost.values[-1] for name, cost in costs.items()} == {
        "layer.0.ffn": 1.0, "layer.1.ffn": 2.0, "layer.0.attention": 3.0, "layer.1.attention": 4.0,
    }  # fmt: skip
    counted = weighing.block_costs(work, fp32, compiled=False)
    assert counted == operation_costs(tiny_onnx, tiny_options.seq_len, compiled=False)
    assert counted["layer.0.ffn"] == counted["layer.1.ffn"]
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_speedup": 0.0}, "--target-speedup 0.0 is out of range"),
        ({"target_speedup": 2.0, "max_drop_base": "prune50_quant_2"}, "prunes by itself"),
        ({"target_speedup": 2.0, "max_drop_base": "nncf_int8"}, "nncf takes the model as it is"),
        ({"max_drop": 0.01, "max_drop_base": "prune50_quant_2"}, "with nothing pruned"),
    ],
)
def test_options_that_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ExperimentOptions(no_student=True, **changes)  # type: ignore[arg-type]
