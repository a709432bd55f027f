from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from quantlib.compression.calibration import collect, derive
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate
from quantlib.compression.recipes import RECIPES
from quantlib.compression.recipes.file import read_recipe
from quantlib.data.features import CalibrationReader, Feature
from quantlib.data.scores import drop_interval, logit_error
from quantlib.data.tasks import get_task
from quantlib.experiment import ExperimentOptions, budget, run
from quantlib.experiment.build import build
from quantlib.measuring import sensitivity
from quantlib.measuring.accuracy import evaluate_onnx
from quantlib.measuring.sensitivity import GroupCost, Problem, Trial, choose, ladder, measure_costs
from quantlib.onnx_model.layers import load_ir, names
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_file

SST2 = get_task("SST-2")


@pytest.fixture(scope="module")
def problem(tiny_onnx: Path, tiny_rows: list[Feature]) -> Problem:
    recipe = RECIPES["quant_2"]
    feeds = CalibrationReader(tiny_rows[:16], 8)
    ranges = derive(collect(tiny_onnx, feeds, tensors_to_calibrate(tiny_onnx, recipe)), "MinMax")
    return Problem(tiny_onnx, recipe, ranges, SST2, tiny_rows[:16], tiny_rows[16:], threads=1)


@pytest.fixture(scope="module")
def costs(problem: Problem) -> list[GroupCost]:
    return measure_costs(problem)


def logits(path: Path, rows: list[Feature]) -> np.ndarray:
    return evaluate_onnx(path, rows, SST2, threads=1).logits


def test_every_layer_is_in_one_group(problem: Problem, costs: list[GroupCost]) -> None:
    nodes = [node for cost in costs for node in cost.nodes]
    assert sorted(nodes) == sorted(names(load_ir(problem.onnx_path)))
    assert {cost.group for cost in costs} == {
        "embeddings", "pooler", "classifier",
        *(f"layer.{i}.{role}" for i in (0, 1) for role in ("qkv", "attention_output", "ffn_in", "ffn_out")),
    }  # fmt: skip


def test_costs_are_measured_one_group_at_a_time(
    problem: Problem, costs: list[GroupCost], tmp_path: Path
) -> None:
    """The same by hand: every other node in float, by its own name."""
    assert [c.logit_error for c in costs] == sorted((c.logit_error for c in costs), reverse=True)
    exact = logits(problem.onnx_path, problem.calibration)
    all_nodes = [node for cost in costs for node in cost.nodes]
    for cost in (costs[0], costs[-1]):
        others = tuple((node, "float") for node in all_nodes if node not in cost.nodes)
        recipe = replace(problem.recipe, nodes=others)
        path = quantize_onnx(problem.onnx_path, tmp_path / "one.onnx", recipe, problem.ranges)
        assert cost.logit_error == pytest.approx(logit_error(logits(path, problem.calibration), exact))
        assert cost.logit_error > 0


def test_costs_report_progress(problem: Problem) -> None:
    progress: list[int] = []
    measure_costs(replace(problem, calibration=problem.calibration[:2]), progress.append)
    assert progress == [1] * 11


def test_tables_in_float_have_no_cost(problem: Problem) -> None:
    recipe = replace(problem.recipe, embeddings="float")
    groups = sensitivity.groups_of(replace(problem, recipe=recipe))
    assert "embeddings" not in groups
    assert len(groups) == 10


COSTS = [GroupCost(group, (group,), error) for group, error in (("b", 3.0), ("embeddings", 2.0), ("a", 1.0))]


@pytest.mark.parametrize(
    ("name", "rungs"),
    [
        (
            "quant_2",
            [
                {},
                {"b": "int16"},
                {"b": "int16", "a": "int16"},
                {"b": "float", "a": "int16"},
                {"b": "float", "a": "int16", "embeddings": "float"},
            ],
        ),
        ("quant_1", [{}, {"b": "float"}, {"b": "float", "embeddings": "float"}]),
        ("static_u16s8", [{}, {"b": "float"}, {"b": "float", "embeddings": "float"}]),
        ("weight_only_int8", [{}, {"b": "float"}, {"b": "float", "embeddings": "float"}]),
    ],
)
def test_the_ladder_lifts_the_dearest_first(name: str, rungs: list[dict[str, str]]) -> None:
    assert [dict(recipe.nodes) for recipe in ladder(RECIPES[name], COSTS)] == rungs


@given(st.integers(1, 200), st.data())
def test_the_first_that_meets_is_found_in_few_trials(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, count))
    tried: list[int] = []

    def meets(number: int) -> bool:
        tried.append(number)
        return number >= first

    assert sensitivity._first(meets, count) == (first if first < count else None)
    assert set(tried) <= set(range(count))
    assert len(tried) <= 2 * count.bit_length() + 1


def test_a_choice_meets_its_budget_on_held_out_rows(
    problem: Problem, costs: list[GroupCost], tmp_path: Path
) -> None:
    choice = choose(problem, 0.03, costs)
    assert choice.best in choice.trials
    path = quantize_onnx(problem.onnx_path, tmp_path / "best.onnx", choice.best.recipe, problem.ranges)
    chosen, teacher = (evaluate_onnx(p, problem.heldout, SST2, threads=1) for p in (path, problem.onnx_path))
    drop = teacher.metrics["accuracy"] - chosen.metrics["accuracy"]
    _, high = drop_interval(SST2, chosen.logits, teacher.logits, teacher.truth, confidence=0.8)
    assert (choice.best.drop, choice.best.drop_high) == pytest.approx((drop, high))
    assert high <= 0.03
    below = [trial for trial in choice.trials if trial.lifted < choice.best.lifted]
    assert all(trial.drop_high > 0.03 for trial in below)


def test_a_budget_that_nothing_meets_says_what_was_reached(
    problem: Problem, costs: list[GroupCost], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(problem: Problem, lifted: int, recipe: object, exact: object) -> Trial:
        return Trial(lifted, problem.recipe, 0.2, 0.3 - lifted / 1000, 0.7)

    monkeypatch.setattr(sensitivity, "_try", bad)
    message = (
        "no choice of nodes meets a drop of 1 points with 90 % confidence on 32 held-out rows; "
        "the best reached 20.00 points, at most 28.00, with 20 of 20 steps taken"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        choose(problem, 0.01, costs)


@pytest.mark.parametrize("max_drop", [-0.1, 1.0, 5.0, float("nan")])
def test_budgets_out_of_range(problem: Problem, costs: list[GroupCost], max_drop: float) -> None:
    with pytest.raises(InputError, match="out of range; it must be at least 0 and below 1"):
        choose(problem, max_drop, costs)


@pytest.mark.parametrize("name", ["quant_1_defaults", "static_mixed"])
def test_recipes_that_cannot_be_the_start(problem: Problem, name: str) -> None:
    with pytest.raises(InputError, match=f"recipe {name} cannot be the start of a budget"):
        replace(problem, recipe=RECIPES[name])


@pytest.mark.parametrize("rows", ["calibration", "heldout"])
def test_both_kinds_of_rows_are_needed(problem: Problem, rows: str) -> None:
    with pytest.raises(InputError, match="one of the two is empty"):
        replace(problem, **{rows: []})


# The whole run


@pytest.fixture(scope="module")
def budgeted(tiny_options: ExperimentOptions, tmp_path_factory: pytest.TempPathFactory) -> ExperimentOptions:
    """Options of a finished run with a budget."""
    directory = tmp_path_factory.mktemp("budget")
    options = replace(tiny_options, recipes=("quant_2",), no_student=True, max_drop=0.2, output_dir=directory)
    run(options)
    return options


def test_a_run_writes_the_recipe_and_its_reasons(budgeted: ExperimentOptions) -> None:
    directory = budgeted.output_dir / "SST-2"
    results = json.loads((directory / "results.json").read_text())
    assert list(results) == ["teacher", "teacher_compiled", "quant_2", "max_drop"]
    assert (directory / "ts_teacher_bert" / "model_max_drop.onnx").is_file()
    recipe = read_recipe(directory / budget.RECIPE_FILE)
    reasons = json.loads((directory / budget.SENSITIVITY_FILE).read_text())
    assert recipe.name == "max_drop"
    assert recipe.smooth
    assert reasons["chosen"]["nodes"] == dict(recipe.nodes)
    assert reasons["chosen"]["drop_high"] <= 0.2
    assert len(reasons["costs"]) == 11
    assert reasons["base"] == "static_u8s8_smooth"


def test_neurons_words_and_weights_are_saved_together(budgeted: ExperimentOptions) -> None:
    directory = budgeted.output_dir / "SST-2"
    reasons = json.loads((directory / budget.SENSITIVITY_FILE).read_text())
    tried = reasons["savings"]
    assert len({saving["share"] for saving in tried}) > 1
    assert ("int4", "second_order") in {(saving["storage"], saving["rounding"]) for saving in tried}
    met = [saving for saving in tried if saving["meets"]]
    assert all(saving["meets"] == (saving["drop_high"] <= 0.2) for saving in tried)
    best = max(met, key=lambda saving: (saving["share"], -saving["size_bytes"]))
    recipe = read_recipe(directory / budget.RECIPE_FILE)
    assert dict(recipe.widths) == best["widths"] == reasons["chosen"]["widths"]
    assert (recipe.storage, recipe.embeddings) == (best["storage"], best["embeddings"])
    model = directory / "ts_teacher_bert" / "model_max_drop.onnx"
    assert model.stat().st_size == best["size_bytes"]


def test_the_recipe_file_runs_again(budgeted: ExperimentOptions, tmp_path: Path) -> None:
    directory = budgeted.output_dir / "SST-2"
    again = replace(
        budgeted, max_drop=None, recipes=(str(directory / budget.RECIPE_FILE),), output_dir=tmp_path
    )
    run(again)
    model = Path("ts_teacher_bert") / "model_max_drop.onnx"
    assert sha256_file(tmp_path / "SST-2" / model) == sha256_file(directory / model)


def test_evaluation_rows_do_not_matter_to_the_choice(budgeted: ExperimentOptions, tmp_path: Path) -> None:
    folder = tiny.write_sst2(tmp_path / "other") / "SST-2"
    dev = (folder / "dev.tsv").read_text().splitlines()
    (folder / "dev.tsv").write_text("\n".join([dev[0], *reversed(dev[5:15])]) + "\n")
    assert budgeted.cache_dir is not None
    exported = Path("cache") / "export"  # takes seconds, and no rows
    shutil.copytree(budgeted.cache_dir / "export", tmp_path / exported)
    other = build(replace(budgeted, data_dir=tmp_path / "other", cache_dir=tmp_path / "cache"))
    assert [len(variant.rows) for variant in other.variants] == [10] * 4
    for name in (budget.RECIPE_FILE, budget.SENSITIVITY_FILE):
        assert other.files[name].read_bytes() == (budgeted.output_dir / "SST-2" / name).read_bytes()


def test_the_table_shows_the_dearest_groups(budgeted: ExperimentOptions) -> None:
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as captured:
        console.print(budget.table(budgeted.output_dir / "SST-2" / budget.SENSITIVITY_FILE, rows=4))
    lines = captured.get().splitlines()
    assert len([line for line in lines if re.search(r"\d\.\d{4} ", line)]) == 4
    assert any("and 7 more, in sensitivity.json" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_drop": 1.5}, "--max-drop 1.5 is out of range"),
        ({"max_drop": -0.01}, "--max-drop -0.01 is out of range"),
        ({"max_drop": 0.01, "max_drop_base": "quant_1_defaults"}, "--max-drop-base quant_1_defaults"),
        ({"max_drop": 0.01, "max_drop_base": "int7"}, "unknown recipe 'int7'"),
    ],
)
def test_options_that_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        ExperimentOptions(**changes)  # type: ignore[arg-type]
