"""Recipes on a pruned model, from the options of a run to its results."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import numpy_helper

from bench import step_memory
from quantlib.compression.recipes import RECIPES, get_recipes, read_recipe, write_recipe
from quantlib.experiment import ExperimentOptions, run
from quantlib.experiment.files import quantize_file
from quantlib.support.errors import InputError
from quantlib.support.progress import Steps

NAMES = ("quant_2", "prune50_quant_2", "prune50_quant_1_defaults")


@pytest.fixture(scope="module")
def pruned_run(
    tiny_options: ExperimentOptions, tmp_path_factory: pytest.TempPathFactory
) -> ExperimentOptions:
    """Options of a finished run with pruned variants."""
    options = replace(
        tiny_options, recipes=NAMES, no_student=True, output_dir=tmp_path_factory.mktemp("pruned")
    )
    run(options)
    return options


def results_of(options: ExperimentOptions, file: str = "results.json") -> dict[str, dict[str, float]]:
    value: dict[str, dict[str, float]] = json.loads((options.output_dir / "SST-2" / file).read_text())
    return value


def test_pruned_variants_stand_in_the_results(pruned_run: ExperimentOptions) -> None:
    results = results_of(pruned_run)
    assert list(results) == ["teacher", "teacher_compiled", *NAMES]
    assert results["prune50_quant_2"]["model_size"] < results["quant_2"]["model_size"]
    directory = pruned_run.output_dir / "SST-2" / "ts_teacher_bert"
    shapes = {name: shapes_of(directory / f"model_{name}.onnx") for name in ("quant_2", "prune50_quant_2")}
    for shape in ((32, 64), (64, 32)):  # of the products into and out of the neurons, in two layers
        assert shapes["quant_2"][shape] - shapes["prune50_quant_2"][shape] == 2


def shapes_of(path: Path) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer)


def test_a_second_run_prunes_nothing_again(pruned_run: ExperimentOptions, tmp_path: Path) -> None:
    run(replace(pruned_run, output_dir=tmp_path))
    cached = json.loads((tmp_path / "SST-2" / "run.json").read_text())["cached"]
    steps = ["rank the neurons and heads of teacher", "prune each block of teacher alone"]
    steps += ["prune teacher without 50 % of its neurons", "compile teacher without 50 % of its neurons"]
    assert set(steps) <= set(cached)


def test_a_file_says_the_width_of_each_block(pruned_run: ExperimentOptions, tmp_path: Path) -> None:
    recipe = replace(
        RECIPES["static_u8s8_smooth"],
        name="mine",
        summary="m",
        widths=(("layer.1.ffn", 32),),
        heads=(("layer.0.attention", 1), ("layer.1.attention", 1)),
    )
    file = tmp_path / "mine.toml"
    write_recipe(file, recipe, {"layer.1.ffn": "half of it", "layer.0.attention": "one of two"})
    assert read_recipe(file) == recipe
    assert '"layer.1.ffn" = 32 # half of it' in file.read_text()
    assert '[heads]\n"layer.0.attention" = 1 # one of two' in file.read_text()
    run(replace(pruned_run, recipes=(str(file),), output_dir=tmp_path))
    assert "mine" in json.loads((tmp_path / "SST-2" / "results.json").read_text())
    model = onnx.load(tmp_path / "SST-2" / "ts_teacher_bert" / "model_mine.onnx")
    heads = {
        node.op_type: next(a.i for a in node.attribute if a.name == "num_heads")
        for node in model.graph.node
        if "Attention" in node.op_type
    }
    assert heads == {"QAttention": 1, "MultiHeadAttention": 1}
    assert shapes_of(tmp_path / "SST-2" / "ts_teacher_bert" / "model_mine.onnx")[32, 48] == 1


def test_recipes_that_prune_as_much_elsewhere_are_two_models(
    pruned_run: ExperimentOptions, tmp_path: Path
) -> None:
    """In the steps of a run both are "teacher without 25 % of its neurons"."""
    files = []
    for layer in (0, 1):
        widths = ((f"layer.{layer}.ffn", 32),)
        recipe = replace(RECIPES["dynamic_u8s8"], name=f"narrow_{layer}", summary="n", widths=widths)
        files.append(str(tmp_path / f"narrow_{layer}.toml"))
        write_recipe(Path(files[-1]), recipe)
    run(replace(pruned_run, recipes=tuple(files), output_dir=tmp_path))
    directory = tmp_path / "SST-2" / "ts_teacher_bert"
    for layer in (0, 1):
        shapes = {
            t.name: tuple(t.dims)
            for t in onnx.load(directory / f"model_narrow_{layer}.onnx").graph.initializer
        }
        neurons = [shapes[f"bert.encoder.layer.{i}.intermediate.dense.bias"] for i in (0, 1)]
        assert neurons == [(32,) if i == layer else (64,) for i in (0, 1)]


def test_a_file_is_pruned_as_a_run_does(tiny_teacher: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "model")
    shutil.copy(tiny_onnx, folder / "model.onnx")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(text for text, _ in tiny.sentences(60, 3)) + "\n", encoding="utf-8")
    out = tmp_path / "out" / "model.onnx"
    written = quantize_file(
        folder / "model.onnx", out, "prune50_quant_2", calibration=str(texts), seq_len=64, threads=1
    )
    assert "neurons left: layer.0.ffn 32, layer.1.ffn 32" in written["notes"]
    assert written["quantized"] == written["products"]
    with pytest.raises(InputError, match="recipe prune50_dynamic_u8s8 prunes: it needs texts"):
        quantize_file(folder / "model.onnx", out, "prune50_dynamic_u8s8")


@pytest.fixture
def given_file(tiny_teacher: Path, tiny_onnx: Path, tmp_path: Path) -> Path:
    """A model with its tokenizer, and texts.txt beside it."""
    folder = shutil.copytree(tiny_teacher, tmp_path / "model")
    shutil.copy(tiny_onnx, folder / "model.onnx")
    (folder / "texts.txt").write_text("good film\nsad town\n", encoding="utf-8")
    return folder / "model.onnx"


def test_few_texts_are_said(given_file: Path, tmp_path: Path) -> None:
    texts = str(given_file.with_name("texts.txt"))
    written = quantize_file(given_file, tmp_path / "out" / "m.onnx", "prune50_quant_2", calibration=texts)
    words = "8 calibration tokens for the 64 neurons of layer.0.ffn; at least 64 would do better"
    assert words in written["notes"]


def test_errors_name_the_given_file_or_the_recipe(given_file: Path, tmp_path: Path) -> None:
    """Not a copy of the model that is gone by then; and nothing is written."""
    texts, out = str(given_file.with_name("texts.txt")), tmp_path / "out" / "m.onnx"
    wide = replace(RECIPES["quant_2"], name="wide", summary="w", widths=(("layer.0.ffn", 65),))
    write_recipe(tmp_path / "wide.toml", wide)
    with pytest.raises(InputError) as error:
        quantize_file(given_file, out, str(tmp_path / "wide.toml"), calibration=texts)
    assert str(error.value) == "recipe wide: layer.0.ffn is to keep 65 neurons; it must be 1 to 64"
    with pytest.raises(
        InputError, match=r"^recipe prune90_quant_2: a share of 0\.9 cannot .* 0\.500 are gone$"
    ):
        quantize_file(given_file, out, "prune90_quant_2", calibration=texts)
    model = onnx.load(given_file)
    for tensor in model.graph.initializer:
        if tensor.name == "bert.encoder.layer.0.intermediate.dense.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full(64, np.nan, np.float32), tensor.name))
    onnx.save(model, given_file)
    with pytest.raises(InputError) as error:
        quantize_file(given_file, out, "prune50_quant_2", calibration=texts)
    assert str(error.value).startswith(f"{given_file}: activation ")
    assert not list((tmp_path / "out").iterdir())


def test_the_memory_of_steps_of_a_model_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["./nothing", "--task", "SST-2", "--recipes", "prune50_quant_2"]
    monkeypatch.setattr("sys.argv", ["step_memory.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        step_memory.main()
    assert (ended.value.code, capsys.readouterr().err) == (2, "error: teacher ./nothing: no such directory\n")


def test_names_of_pruned_recipes() -> None:
    (recipe,) = get_recipes(("prune65_static_u8s8_embed4",))
    assert (recipe.name, recipe.prune) == ("prune65_static_u8s8_embed4", 0.65)
    assert recipe.summary.startswith("65 % of the neurons pruned, then static, as static_u8s8_smooth")
    same = ("name", "summary", "prune")
    base = RECIPES["static_u8s8_embed4"]
    assert replace(recipe, **{name: getattr(base, name) for name in same}) == base


def test_few_calibration_tokens_are_said(
    pruned_run: ExperimentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences: list[str] = []
    monkeypatch.setattr(Steps, "say", lambda _, sentence: sentences.append(sentence))
    run(replace(pruned_run, recipes=("prune50_quant_2",), calibration_samples=2, output_dir=tmp_path))
    (said,) = [sentence for sentence in sentences if "tokens" in sentence]
    assert "calibration tokens for the 64 neurons of layer.0.ffn; at least 64 would do better" in said


@pytest.mark.parametrize("name", ["prune0_quant_2", "prune100_quant_2", "prune50_none", "prune_quant_2"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="unknown recipe"):
        get_recipes((name,))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("prune = 1.0", "/bad.toml:7: recipe bad: prune 1 is out of range; it is a share, 0 to below 1"),
        ("prune = -0.5", "out of range"),
        (
            'prune = 0.5\n[widths]\n"layer.0.ffn" = 32',
            "/bad.toml:7: recipe bad: prune and widths exclude each other",
        ),
        (
            '[widths]\n"layer.0.ffn" = 0',
            ":8: recipe bad: widths: layer.0.ffn is 0; a block keeps at least 1 neuron",
        ),
        ('[widths]\n"layer.0.ffn" = "half"', ":8: widths: layer.0.ffn is 'half'; it must be a number"),
        ("[widths]\nlayer.0.ffn = 32", 'a key with dots needs quotation marks: "layer.0.ffn"'),
        ('prune = 0.5\n[heads]\n"layer.0.attention" = 1', "prune and heads exclude each other"),
        (
            '[heads]\n"layer.0.attention" = 0',
            ":8: recipe bad: heads: layer.0.attention is 0; an attention keeps at least 1",
        ),
        ('[heads]\n"layer.0.attention" = true', ":8: heads: layer.0.attention is True; it must be a number"),
        (
            '[heads]\n"layer.0.ffn" = 1',
            ":8: recipe bad: heads: layer.0.ffn is no attention; names are those of attentions, such as",
        ),
        ('[widths]\n"layer.0.attention" = 1', ":8: recipe bad: widths: layer.0.attention is an attention;"),
    ],
)
def test_files_that_are_refused(lines: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    base = ('name = "bad"', 'summary = "b"', 'mode = "static"', 'format = "QOperator"')
    base += ('activation_type = "QUInt8"', 'calibration_method = "MinMax"')
    file.write_text("\n".join(base) + "\n" + lines + "\n")
    with pytest.raises(InputError) as error:
        read_recipe(file)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_block_that_is_not_there_is_one_line(
    pruned_run: ExperimentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPES["quant_2"], name="mine", summary="m", widths=(("layer.9.ffn", 32),))
    write_recipe(tmp_path / "mine.toml", recipe)
    options = replace(pruned_run, recipes=(str(tmp_path / "mine.toml"),), output_dir=tmp_path / "out")
    monkeypatch.setattr("quantlib.experiment.pruning.study_of", lambda *_: pytest.fail("calibrated first"))
    words = r"^recipe mine: the model has no block 'layer\.9\.ffn' to prune; it has layer\.0\.ffn"
    with pytest.raises(InputError, match=words):
        run(options)
    assert not list((tmp_path / "out").rglob("*.onnx"))
