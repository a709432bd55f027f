"""What is imported when: `import quantlib` is quick, and work on ONNX files never brings in torch."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import quantlib

ROOT = Path(quantlib.__file__).parents[1]
SOURCES = sorted((ROOT / "quantlib").rglob("*.py"))
NOT_HARNESS = [path for path in SOURCES if "harness" not in path.relative_to(ROOT).parts]
MODULES = [module.name for module in pkgutil.walk_packages(quantlib.__path__, "quantlib.")]
HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "transformers", "scipy", "sklearn", "tokenizers", "rich"}


def run(code: str, *arguments: object) -> list[str]:
    """The words that a fresh process prints."""
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout.split()


def test_import_quantlib_is_light() -> None:
    assert not HEAVY & set(run("import sys, quantlib; print(*sys.modules)"))


def test_the_commands_module_is_light() -> None:
    loaded = set(run("import sys, quantization_experiments; print(*sys.modules)"))
    assert not loaded & {"torch", "onnx", "onnxruntime", "transformers", "scipy", "sklearn", "tokenizers"}


def test_no_module_imports_torch() -> None:
    names = [n for n in MODULES if not n.endswith("__main__") and not n.startswith("quantlib.harness.")]
    assert {
        "quantlib.onnx_model.export.parity",
        "quantlib.training.teacher",
        "quantlib.experiment.build",
    } <= set(names)
    assert {
        "quantlib.compression.quantize.rewrite",
        "quantlib.compression.smoothing",
        "quantlib.compression.recipes.file",
    } <= set(names)
    code = "import importlib, sys; [importlib.import_module(m) for m in sys.argv[1:]]; print(*sys.modules)"
    loaded = set(run(code, *names))
    assert set(names) <= loaded
    assert not loaded & {"torch", "transformers", "pytest", "_pytest"}


@pytest.mark.parametrize("path", NOT_HARNESS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_library_knows_nothing_of_its_harness(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] not in {"pytest", "_pytest", "pytest_benchmark", "conftest", "bench"}


def test_work_on_onnx_files_needs_no_torch(tiny_onnx: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        import quantlib as q
        model, checkpoint, out = map(Path, sys.argv[1:])
        rows = [q.Example(f"r-{i}", text, None, label) for i, (text, label) in enumerate(
            [("good film", "1"), ("a sad day in town", "0"), ("the happy people sing", "1")])]
        tokenizer = q.load_tokenizer(checkpoint)
        features = q.convert_examples_to_features(rows, ("0", "1"), 32, tokenizer, "classification")
        reader = q.CalibrationReader(features, batch_size=2)
        ranges = q.calibrate_min_max(model, reader)
        static = q.quantize_onnx(model, out / "static.onnx", q.RECIPES["quant_1"], ranges)
        textbook = q.quantize_onnx(model, out / "textbook.onnx", q.RECIPES["quant_1_defaults"], ranges)
        smooth = q.smooth_onnx(model, out / "smooth.onnx", q.search_smoothing(model, reader))
        ranges = q.calibrate_min_max(smooth, reader)
        q.quantize_onnx(smooth, out / "mixed.onnx", q.RECIPES["static_mixed"], ranges)
        q.write_recipe(out / "mine.toml", q.RECIPES["dynamic_u8s8"])
        dynamic = q.quantize_onnx(model, out / "dynamic.onnx", q.read_recipe(out / "mine.toml"))
        q.evaluate_onnx(static, features, q.TASKS["SST-2"])
        from quantlib.data.features import fixed_shape_feeds
        q.benchmark_onnx_model(dynamic, fixed_shape_feeds(features, 1, 16, 2), warmup_runs=0, num_runs=2)
        print(*sys.modules)
    """
    loaded = set(run(code, tiny_onnx, tiny_teacher, tmp_path))
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "transformers"}


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_every_exported_name_is_there(name: str) -> None:
    module = importlib.import_module(name)
    assert [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)] == []


def test_public_names() -> None:
    assert sorted(quantlib.__all__) == sorted(quantlib._MODULE_OF)
    assert all(hasattr(quantlib, name) for name in quantlib.__all__)
    submodules = {name.split(".")[1] for name in MODULES}
    assert not submodules & set(quantlib.__all__), "a submodule, once imported, would hide the name"
    assert quantlib.export_bert_to_onnx.__module__ == "quantlib.onnx_model.export"
    with pytest.raises(AttributeError, match="module 'quantlib' has no attribute 'nothing'"):
        _ = quantlib.nothing
