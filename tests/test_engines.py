"""Engines: how they load and run a model, what is made for them, and what is said where one is missing."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from test_choices import FIELD, RESULTS
from test_gate_identity import ORIGIN, known

from quantlib.cli.benchmark import benchmark
from quantlib.compression.quantize.nncf_library import quantize_with_nncf
from quantlib.compression.recipes import PEERS, RECIPES, asked_recipes, distinct_on, on_engine, reason_against
from quantlib.data.features import CalibrationReader, Feature, batches, fixed_shape_feeds
from quantlib.data.tasks import get_task
from quantlib.experiment import ExperimentOptions, run
from quantlib.experiment.build import build
from quantlib.experiment.comparing import compare_models, evaluate_model, time_models
from quantlib.experiment.measure import check
from quantlib.experiment.options import left_out, variant_names
from quantlib.experiment.task_options import MeasuringOptions
from quantlib.gate import changes_since
from quantlib.gate.limits import Limits, LimitTable, Tables
from quantlib.machine import hardware
from quantlib.machine.engines import (
    DEFAULT_ENGINE,
    ENGINES,
    check_engines,
    get_engine,
    load_model,
)
from quantlib.machine.engines.open_vino import OpenVinoConfig
from quantlib.measuring.accuracy import predict_onnx
from quantlib.measuring.checks import Saturation
from quantlib.measuring.latency import TimedProcess
from quantlib.measuring.latency.process import _environment
from quantlib.measuring.latency.shapes import Shape
from quantlib.onnx_model.compile import compile_onnx
from quantlib.onnx_model.coverage import Coverage, coverage
from quantlib.onnx_model.layers import find_linears, load_ir
from quantlib.onnx_model.model import op_counts
from quantlib.report.choices import Wishes, choices
from quantlib.support.errors import InputError
from quantlib.support.progress import Steps

OPENVINO = "openvino"
BOTH = (DEFAULT_ENGINE, OPENVINO)


@pytest.fixture(scope="module")
def standard(exported: tiny.Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each architecture, compiled to ONNX's own operators."""
    path = tmp_path_factory.mktemp("standard") / "model.onnx"
    return compile_onnx(exported.model, path, operators="standard", threads=1).path


def logits_on(engine: str, path: Path, rows: list[Feature], **options: Any) -> np.ndarray:
    model = load_model(path, engine, threads=1, **options)
    return np.concatenate([model.run(model.feed(feed), ["logits"])[0] for _, feed in batches(rows, 7)])


# Loading and running


@pytest.mark.parametrize("engine", BOTH)
def test_a_compiled_model_keeps_its_logits_on_every_engine(
    exported: tiny.Exported, standard: Path, engine: str
) -> None:
    expected = logits_on(DEFAULT_ENGINE, exported.model, exported.rows)
    assert np.ptp(expected) > 0.1, "a model that tells rows apart"
    np.testing.assert_allclose(logits_on(engine, standard, exported.rows), expected, rtol=0, atol=1e-4)


def test_a_model_is_compiled_to_standard_operators(exported: tiny.Exported, standard: Path) -> None:
    proto = onnx.load(standard)
    assert {node.domain for node in proto.graph.node} == {""}
    counts = op_counts(standard)
    assert counts["Softmax"] == 2, "attention stays in parts"
    assert not {"GatherND", "Expand", "Range"} & set(counts), "the mask is a plain one"
    rows = [n for n in proto.graph.node if n.op_type == "Gather" and n.name.endswith("row/Gather")]
    # The last layer asks for the row that its residual sum reads too.
    assert len(rows) == 1


def test_what_was_done_is_reported(exported: tiny.Exported, tmp_path: Path) -> None:
    made = compile_onnx(exported.model, tmp_path / "a.onnx", operators="standard", threads=1)
    assert (made.done["mask"], made.done["row_attention"], made.done["attention"]) == (1, 1, 0)
    assert made.left == ()
    whole = compile_onnx(
        exported.model, tmp_path / "b.onnx", operators="standard", last_attention="whole", threads=1
    )
    assert whole.done["row_attention"] == 0
    assert whole.done["row"] == made.done["row"] > 0
    with pytest.raises(InputError, match="operators must be one of microsoft, standard, not 'others'"):
        compile_onnx(exported.model, tmp_path / "c.onnx", operators="others")  # type: ignore[arg-type]


def test_a_bias_of_each_query_is_taken_for_one_row(more_exported: tiny.Exported, tmp_path: Path) -> None:
    path = compile_onnx(more_exported.model, tmp_path / "m.onnx", operators="standard", threads=1).path
    expected = logits_on(DEFAULT_ENGINE, more_exported.model, more_exported.rows)
    np.testing.assert_allclose(logits_on(OPENVINO, path, more_exported.rows), expected, rtol=0, atol=1e-4)


def test_inputs_and_outputs_are_alike(tiny_onnx: Path) -> None:
    models = [load_model(tiny_onnx, engine, threads=1).session for engine in BOTH]
    assert models[0].inputs == models[1].inputs
    assert set(models[0].inputs.values()) == {np.dtype(np.int64)}
    assert [list(model.outputs) for model in models] == [["logits"]] * 2
    assert [model.outputs["logits"][1] for model in models] == [2, 2]


@pytest.mark.parametrize("engine", BOTH)
def test_what_cannot_be_run_is_one_line(tiny_onnx: Path, engine: str) -> None:
    model = load_model(tiny_onnx, engine, threads=1)
    with pytest.raises(InputError, match=rf"^{tiny_onnx}: the model has an input 'token_type_ids'"):
        model.feed({"input_ids": np.zeros((1, 3)), "attention_mask": np.zeros((1, 3))})
    feed = {name: np.zeros(3, np.int64) for name in model.session.inputs}
    with pytest.raises(InputError, match=rf"^{tiny_onnx}: cannot be run on \(3,\): \S.*$") as caught:
        model.run(feed)
    assert "\n" not in str(caught.value)


def test_a_file_that_openvino_cannot_load(tmp_path: Path, tiny_onnx: Path) -> None:
    compiled = compile_onnx(tiny_onnx, tmp_path / "compiled.onnx", threads=1).path
    model = onnx.load(compiled)
    for node in model.graph.node:
        node.op_type = "Unheard" if node.op_type == "Gelu" else node.op_type
    onnx.save(model, tmp_path / "unheard.onnx")
    with pytest.raises(InputError, match=r"unheard.onnx: cannot be loaded by OpenVINO: .*Unheard") as caught:
        load_model(tmp_path / "unheard.onnx", OPENVINO)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such ONNX model"):
        load_model(tmp_path / "missing.onnx", OPENVINO)


def test_openvino_computes_in_float32_unless_told(tiny_onnx: Path) -> None:
    properties = OpenVinoConfig(2).properties
    assert properties["INFERENCE_PRECISION_HINT"] == "f32"
    assert (properties["INFERENCE_NUM_THREADS"], properties["NUM_STREAMS"]) == (2, 1)
    assert get_engine("openvino_bf16").config(1, False).precision == "bf16"
    with pytest.raises(InputError, match="threads must be at least 1"):
        OpenVinoConfig(0)


def test_a_timing_process_runs_the_engine_that_is_asked_for(
    tiny_onnx: Path, tiny_rows: list[Feature]
) -> None:
    feeds = list(fixed_shape_feeds(tiny_rows, 1, 16, 2))
    with TimedProcess(tiny_onnx, feeds, OpenVinoConfig(1), engine=OPENVINO) as process:
        assert len(process.time(3)) == 3
    # A worker of an older revision knows one engine, and no word for it.
    assert TimedProcess(tiny_onnx, feeds)._engine == {}
    with pytest.raises(InputError, match="unknown engine 'nope'; known: onnxruntime, openvino"):
        TimedProcess(tiny_onnx, feeds, engine="nope")


# What is missing


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == OPENVINO else find(name, *a)
    )
    words = "the engine openvino needs the package openvino: pip install 'bert-quantlib[openvino]'"
    for wrong in (lambda: MeasuringOptions(engines=BOTH), lambda: load_model(Path("m.onnx"), OPENVINO)):
        with pytest.raises(InputError) as caught:
            wrong()
        assert str(caught.value) == words
    assert MeasuringOptions().engines == (DEFAULT_ENGINE,)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "no engine is named; known: onnxruntime"),
        (("tvm",), "unknown engine 'tvm'; known: onnxruntime, openvino, openvino_bf16"),
        ((OPENVINO, OPENVINO), "the engine openvino is named twice"),
    ],
)
def test_engines_that_cannot_be_asked_for(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_engines(names)


@pytest.mark.parametrize(
    ("sets", "lacks"), [(("avx2",), "this CPU has neither amx_bf16 nor avx512_bf16"), (("amx_bf16",), "")]
)
def test_bfloat16_needs_a_cpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, sets: tuple[str, ...], lacks: str
) -> None:
    machine = replace(hardware.describe(), instruction_sets=sets)
    row = get_engine("openvino_bf16")
    assert row.lacks is not None
    assert row.lacks(machine) == lacks
    monkeypatch.setattr(hardware, "describe", lambda: machine)
    if lacks:
        with pytest.raises(InputError, match=f"openvino_bf16 cannot be used here: {lacks}"):
            check_engines(["openvino_bf16"])
    else:
        check_engines(["openvino_bf16"])


_NOTHING_IS_SENT = """
import socket, sys, urllib.request
def refused(*_, **__): raise SystemExit("a connection was opened")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refused
from pathlib import Path
from quantlib.machine.engines import load_model
model = load_model(Path(sys.argv[1]), "openvino", threads=1)
import numpy as np
model.run({name: np.ones((1, 4), np.int64) for name in model.session.inputs})
import openvino.tools.ovc
telemetry = [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module]
print(telemetry, [t.name for t in __import__("threading").enumerate()])
"""


def test_nothing_is_sent(tiny_onnx: Path) -> None:
    assert version("openvino-telemetry"), "it is installed, and could be imported"
    done = subprocess.run(
        [sys.executable, "-c", _NOTHING_IS_SENT, str(tiny_onnx)],
        capture_output=True,
        text=True,
        env=_environment(),
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[] ['MainThread']"), done.stderr


# Recipes on an engine


@pytest.mark.parametrize(
    ("recipe", "engine", "reason"),
    [
        ("quant_1", OPENVINO, ""),
        ("quant_2", OPENVINO, ""),
        ("static_u8s8_smooth", OPENVINO, ""),
        ("static_u8s7_smooth", OPENVINO, ""),
        ("nncf_int8", OPENVINO, ""),
        ("stock_dynamic", DEFAULT_ENGINE, ""),
        ("dynamic_u8s8", OPENVINO, "dynamic recipes with these activations need operators that OpenVINO"),
        ("static_u16s8", OPENVINO, "static recipes with these activations need operators that OpenVINO"),
        ("static_u8s8_embed4", OPENVINO, "4 bits need operators that OpenVINO does not know"),
        ("static_mixed", OPENVINO, "exceptions other than float need operators that OpenVINO"),
        ("quant_1_defaults", OPENVINO, "the models of onnxruntime are not for OpenVINO"),
        ("nncf_int8", DEFAULT_ENGINE, "the models of nncf are not for ONNX Runtime"),
        ("quant_1", "openvino_bf16", "OpenVINO in bfloat16 is for models in float"),
    ],
)
def test_which_recipes_are_for_an_engine(recipe: str, engine: str, reason: str) -> None:
    found = reason_against((RECIPES | PEERS)[recipe], get_engine(engine))
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_a_recipe_becomes_what_an_engine_takes() -> None:
    there = on_engine(RECIPES["static_u8s8_smooth"], get_engine(OPENVINO))
    assert (there.format, there.activation_type, there.smooth) == ("QDQ", "QUInt8", True)
    assert on_engine(RECIPES["quant_1"], get_engine(DEFAULT_ENGINE)) is RECIPES["quant_1"]
    names = [r.name for r in distinct_on(RECIPES.values(), get_engine(OPENVINO))]
    assert "quant_1" in names
    assert "quant_2" not in names, "there it is what quant_1 is"
    assert len(distinct_on(RECIPES.values(), get_engine(DEFAULT_ENGINE))) == len(RECIPES)
    with pytest.raises(ValueError, match="dynamic_u8s8 is not for openvino"):
        on_engine(RECIPES["dynamic_u8s8"], get_engine(OPENVINO))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("quant_1@tvm",), "unknown engine 'tvm'"),
        (("dynamic_u8s8@openvino",), "recipe dynamic_u8s8@openvino: dynamic recipes with these activations"),
        (("quant_1@openvino", "quant_1@openvino"), "recipe 'quant_1@openvino' is given twice"),
        (("quant_1", "quant_1"), "recipe 'quant_1' is given twice"),
        (("all@openvino",), "'all' stands alone"),
    ],
)
def test_recipes_that_cannot_be_asked_for(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        asked_recipes(names)


def test_a_peer_needs_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlib.experiment.options.need_nncf", lambda: None)
    with pytest.raises(
        InputError, match="recipe nncf_int8: the models of nncf are not for ONNX Runtime; put"
    ):
        ExperimentOptions(recipes=("nncf_int8",))
    assert "nncf_int8@openvino" in variant_names(ExperimentOptions(recipes=("nncf_int8@openvino",)))
    assert not set(PEERS) & {each.recipe.name for each in asked_recipes(("all",))}
    assert all(recipe.report_only for recipe in PEERS.values())


def test_the_variants_of_a_run() -> None:
    options = ExperimentOptions(no_student=True, engines=BOTH, recipes=("quant_1", "quant_2", "dynamic_u8s8"))
    assert variant_names(options) == (
        "teacher", "teacher_compiled", "quant_1", "quant_2", "dynamic_u8s8",
        "teacher@openvino", "teacher_compiled@openvino", "quant_1@openvino",
    )  # fmt: skip
    assert left_out(options) == [
        "quant_2: not on openvino: another recipe makes the same file for it",
        "dynamic_u8s8: not on openvino: dynamic recipes with these activations need operators that OpenVINO "
        "does not know",
    ]
    one = replace(options, engines=(DEFAULT_ENGINE,), recipes=("quant_1", "quant_1@openvino"))
    assert variant_names(one) == ("teacher", "teacher_compiled", "quant_1", "quant_1@openvino")
    alone = replace(options, engines=(OPENVINO,))
    assert variant_names(alone) == (
        "teacher", "teacher@openvino", "teacher_compiled@openvino", "quant_1@openvino",
    )  # fmt: skip
    with pytest.raises(InputError, match="--profile quant_1@openvino: OpenVINO keeps no trace"):
        replace(options, profile=("quant_1@openvino",))


# A run


@pytest.fixture(scope="module")
def results(tiny_options: ExperimentOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run on both engines, which smooths too."""
    options = replace(
        tiny_options,
        no_student=True,
        engines=BOTH,
        recipes=("quant_1", "static_u8s8_smooth@openvino", "stock_dynamic"),
        output_dir=tmp_path_factory.mktemp("runs"),
    )
    run(options)
    return options.output_dir / options.task_name


def test_a_run_has_engines_in_its_table(results: Path) -> None:
    values = json.loads((results / "results.json").read_text(encoding="utf-8"))
    assert {name: value["engine"] for name, value in values.items()} == {
        name: OPENVINO if name.endswith("@openvino") else DEFAULT_ENGINE for name in values
    }
    assert set(values) == {
        "teacher", "teacher_compiled", "quant_1", "stock_dynamic", "teacher@openvino",
        "teacher_compiled@openvino", "quant_1@openvino", "static_u8s8_smooth@openvino",
    }  # fmt: skip
    for name in ("quant_1@openvino", "static_u8s8_smooth@openvino"):
        assert values[name]["quantized_share"] == 1.0, "all products really run in integers"
        assert values[name]["invariance_max_diff"] is not None
        assert values[name]["saturation_max_diff"] is None
    assert values["teacher@openvino"]["logit_error"] < 1e-4
    assert values["stock_dynamic"].get("beaten_by", "nothing") is not None, "it is no choice"


def test_a_run_records_its_engines(results: Path) -> None:
    record = json.loads((results / "run.json").read_text(encoding="utf-8"))
    assert record["engines"] == {
        OPENVINO: {
            "version": get_engine(OPENVINO).version,
            "session": {"threads": 1, "precision": "f32"},
        }
    }
    files = {file for file in record["files"] if file.endswith(".onnx")}
    assert files == {
        f"ts_teacher_bert/{name}.onnx"
        for name in (
            "model", "model_compiled", "model_quant_1", "model_stock_dynamic", "model_compiled@openvino",
            "model_quant_1@openvino", "model_static_u8s8_smooth@openvino",
        )
    }  # fmt: skip
    assert all(choice["variant"] != "stock_dynamic" for choice in record["choices"])


def test_predictions_are_those_of_the_engine(results: Path, tiny_rows: list[Feature]) -> None:
    directory, task = results / "ts_teacher_bert", get_task("SST-2")
    of = {
        engine: predict_onnx(
            directory / "model_quant_1@openvino.onnx", tiny_rows, task, engine=engine, threads=1
        )
        for engine in BOTH
    }
    assert of[OPENVINO].shape == of[DEFAULT_ENGINE].shape == (len(tiny_rows), 2)
    # Alike but for the roundings of another engine (and saturation, on a CPU without VNNI).
    assert np.corrcoef(of[OPENVINO][:, 0], of[DEFAULT_ENGINE][:, 0])[0, 1] > 0.9


def test_coverage_is_what_is_really_computed(results: Path) -> None:
    path = results / "ts_teacher_bert" / "model_quant_1@openvino.onnx"
    products = get_engine(OPENVINO).products
    assert products is not None
    computed = products(path, 1)
    names = [linear.name for linear in find_linears(load_ir(results / "ts_teacher_bert" / "model.onnx"))]
    assert {computed[name] for name in names} <= {"u8", "i8"}
    assert coverage(path, computed=computed).share == 1.0
    half = computed | dict.fromkeys(names[::2], "f32")
    counted = coverage(path, computed=half)
    assert counted.in_float == tuple(names[::2])
    reasons = {product.reason for product in counted.not_quantized if product.node in names}
    assert reasons == {"quantized, but the engine computes it in f32"}


def test_checks_run_on_the_engine(tiny_options: ExperimentOptions) -> None:
    options = replace(tiny_options, no_student=True, engines=BOTH, recipes=("quant_1",))
    checks = check(build(options), options)["quant_1@openvino"]
    saturation, covered = checks.get(Saturation), checks.get(Coverage)
    assert saturation is not None
    assert saturation.why_not == "OpenVINO has no kernels to compare with"
    assert covered is not None
    assert covered.share == 1.0


# Other commands


def test_models_are_compared_on_engines(
    tiny_teacher: Path, tiny_onnx: Path, glue_dir: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_onnx.read_bytes())
    for name in ("tokenizer.json", "vocab.txt"):
        if (tiny_teacher / name).exists():
            (tmp_path / name).write_bytes((tiny_teacher / name).read_bytes())
    options = MeasuringOptions(
        task="SST-2", data_dir=glue_dir, seq_len=32, threads=1, engines=BOTH, num_runs=2, timing_seconds=0.0,
        cache_dir=tmp_path / "cache",
    )  # fmt: skip
    compared, _ = compare_models([model], options, Steps())
    assert [(result.name, result.engine) for result in compared] == [
        ("model", DEFAULT_ENGINE),
        ("model@openvino", OPENVINO),
    ]
    assert compared[1].agreement == 1.0
    timed = time_models([model], Shape(1, 16), options, Steps())
    assert list(timed) == ["model", "model@openvino"]
    with pytest.raises(InputError, match="--engines onnxruntime,openvino: name one, or compare models"):
        evaluate_model(model, options, Steps())
    one, other = (
        evaluate_model(model, replace(options, engines=(engine,)), Steps())[0].metrics for engine in BOTH
    )
    assert one == other


def test_the_command_that_times_refuses_unknown_engines(tiny_onnx: Path) -> None:
    with pytest.raises(InputError, match="unknown engine 'tvm'"):
        benchmark([tiny_onnx], engines="tvm")


# The gate, limits and choices


def record_on_openvino(**engines: Any) -> Any:
    record = known(origin=replace(ORIGIN, engines=engines))
    return replace(record, variants={**record.variants, "quant_2@openvino": record.variants["quant_2"]})


def test_the_gate_knows_an_engine_and_its_version() -> None:
    now = record_on_openvino(openvino={"version": "2026.4", "session": {"threads": 2, "precision": "f32"}})
    assert changes_since("quant_2@openvino", now, now).same_program
    other = record_on_openvino(openvino={"version": "2026.3", "session": {"threads": 4, "precision": "bf16"}})
    changes = changes_since("quant_2@openvino", now, other)
    assert changes.runtime == "openvino: 2026.4, baseline 2026.3"
    assert changes.session == "precision: f32, baseline bf16"
    assert changes_since("quant_2", now, other).same_program, "another engine is no matter of this variant"
    assert changes_since("quant_2@openvino", now, record_on_openvino()).runtime == (
        "openvino: 2026.4, baseline not recorded"
    )


def test_limits_of_an_engine_are_narrower() -> None:
    table = LimitTable(
        Tables(
            recipe={
                "quant_1": Limits(max_drop_points=2.0, min_speedup=1.5),
                "quant_1@openvino": Limits(max_drop_points=3.0),
                "teacher_compiled": Limits(min_compression_ratio=1.0),
                "student_quantized": Limits(max_drop_points=4.0),
                "student_quant_1@openvino": Limits(min_speedup=3.0),
            }
        )
    )
    assert table.of("quant_1@openvino", "SST-2") == Limits(max_drop_points=3.0, min_speedup=1.5)
    assert table.of("quant_1", "SST-2") == Limits(max_drop_points=2.0, min_speedup=1.5)
    assert table.of("teacher@openvino", "SST-2").min_compression_ratio == 1.0
    assert table.of("teacher_compiled@openvino", "SST-2").min_compression_ratio == 1.0
    assert table.of("student_2_quant_1@openvino", "SST-2") == Limits(max_drop_points=4.0, min_speedup=3.0)
    assert table.of("nncf_int8@openvino", "SST-2").report_only == PEERS["nncf_int8"].report_only
    with pytest.raises(ValueError, match="unknown variant 'quant_1@tvm'"):
        LimitTable(Tables(recipe={"quant_1@tvm": Limits()}))


def test_the_first_choice_says_how_it_compares_with_other_engines() -> None:
    there = [
        replace(r, name=f"{r.name}@openvino", engine=OPENVINO)
        for r in RESULTS
        if r.name in ("quant_1", "static_u8s8_smooth")
    ]
    scores = dict(FIELD.scores)
    for result in there:
        of_default = FIELD.scores[result.name.partition("@")[0]]
        slower = {place: ratio - math.log(1.25) for place, ratio in of_default.log_ratios.items()}
        scores[result.name] = replace(of_default, log_ratios=slower)
    made = {c.wish: c for c in choices([*RESULTS, *there], replace(FIELD, scores=scores), Wishes())}
    fastest = made["fastest within half a point"]
    assert fastest.variant == "static_u8s8_smooth"
    assert "; 1.25x [1.2" in fastest.why
    assert fastest.why.endswith("] the speed of static_u8s8_smooth@openvino, the choice on openvino")
    assert all("the speed of" not in c.why for c in choices(RESULTS, FIELD, Wishes()))


def test_what_is_shown_only_to_compare_with_is_never_chosen() -> None:
    peer = "static_u8s8_smooth"
    assert peer in {choice.variant for choice in choices(RESULTS, FIELD, Wishes())}
    peers = [replace(r, report_only=r.name == peer) for r in RESULTS]
    assert peer not in {choice.variant for choice in choices(peers, FIELD, Wishes())}
    assert peer in FIELD.beaten_by().values()
    assert peer not in replace(FIELD, report_only=frozenset({peer})).beaten_by().values()


# NNCF


def test_nncf_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "nncf" else find(name, *a)
    )
    with pytest.raises(InputError, match=r"need the package nncf: pip install 'bert-quantlib\[nncf\]'"):
        quantize_with_nncf(tmp_path / "m.onnx", tmp_path / "q.onnx", PEERS["nncf_int8"], [])


@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="the extra nncf is not installed")
def test_nncf_quantizes_a_model(tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path) -> None:
    path = quantize_with_nncf(
        tiny_onnx, tmp_path / "q.onnx", PEERS["nncf_int8"], CalibrationReader(tiny_rows[:8], batch_size=1)
    )
    assert op_counts(path)["QuantizeLinear"] > 0
    assert logits_on(OPENVINO, path, tiny_rows).shape == (len(tiny_rows), 2)


def test_every_engine_is_a_row() -> None:
    for name, engine in ENGINES.items():
        assert (engine.name, engine.package) == (name, name.partition("_")[0])
