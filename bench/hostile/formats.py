"""A row for each form of file that quantlib reads: how a hostile one is made, and how it is read."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np

from quantlib.compression.recipes import RECIPES, Recipe, read_recipe, write_recipe
from quantlib.data.features import convert_examples_to_features, load_tokenizer, pad
from quantlib.data.tasks import ModelLabels, OwnTask, data_hash, get_task, read_own_task
from quantlib.data.tasks.splits import Example
from quantlib.experiment import given_models
from quantlib.experiment.files import quantize_file
from quantlib.gate.baseline import read_record
from quantlib.gate.history import sources
from quantlib.gate.judge import judge
from quantlib.gate.limits import LimitTable, read_limits
from quantlib.machine.sessions import feed_for, open_session, run_session
from quantlib.measuring.latency.states import History, read_history, write_history
from quantlib.onnx_model.coverage import coverage
from quantlib.onnx_model.model import Model
from quantlib.support.cache import Cache
from quantlib.support.commits import Commit
from quantlib.sweep import table as sweep_table
from quantlib.sweep.configuration import read_sweep
from quantlib.sweep.state import Done
from quantlib.sweep.work import Outcome
from quantlib.training.checkpoints import check_for_task, load_classifier
from quantlib.training.student.saved import DamagedError, TrainingState, load_state, save_state

from .commands import run
from .damage import damaged_bytes, damaged_json, damaged_toml, hostile_cell
from .graphs import hostile_model
from .trying import Format, Seeds, WrongResult

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    {"text": f"{adjective} {noun} {number}", "label": f"LABEL_{number % 2}"}
    for number, (adjective, noun) in enumerate(
        (a, n) for a in ("good", "bad", "great", "sad", "fine") for n in ("film", "book", "song", "play")
    )
]
_TEXTS = "texts.csv"
_MODEL_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "config.json")
_EVERY = 10
"""Each so many cases are read by the command line, and not by the function that it calls."""


def _check(holds: bool, words: str) -> None:
    if not holds:
        raise WrongResult(words)


# Tables


def _rows(draw: random.Random) -> list[dict[str, Any]]:
    """Good rows, some with hostile cells, other keys, or keys left out."""
    rows: list[dict[str, Any]] = [dict(row) for row in ROWS]
    for _ in range(draw.choice((0, 1, 1, 3))):
        row = draw.choice(rows)
        row[draw.choice(("text", "label", "more", "", "text "))] = hostile_cell(draw)
    if draw.random() < 0.2:
        del draw.choice(rows)["label"]
    return rows


def _make_delimited(delimiter: str, name: str) -> Callable[[Seeds, Path, random.Random], object]:
    def make(seeds: Seeds, directory: Path, draw: random.Random) -> None:
        rows = _rows(draw)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        quoting: Literal[0, 1] = 1 if draw.random() < 0.5 else 0  # csv.QUOTE_ALL, csv.QUOTE_MINIMAL
        writer = csv.DictWriter(text, columns, delimiter=delimiter, quoting=quoting, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write_damaged(directory / name, text.getvalue().encode("utf-8", errors="surrogatepass"), draw)

    return make


def _make_jsonl(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    lines = [json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in _rows(draw)]
    if draw.random() < 0.2:
        lines[draw.randrange(len(lines))] = damaged_json(lines[0].encode(), draw).decode("utf-8", "replace")
    _write_damaged(directory / "rows.jsonl", "\n".join(lines).encode("utf-8", errors="surrogatepass"), draw)


def _make_parquet(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {key: [row[key] for row in ROWS] for key in ("text", "label")}
    kind = draw.randrange(6)
    count = len(ROWS)
    if kind == 0:
        columns["label"] = pa.array([draw.choice((0, 1, -1, None)) for _ in range(count)], pa.int64())
    elif kind == 1:
        columns["text"] = pa.array([draw.choice(("a", None, "", "é\0")) for _ in range(count)])
    elif kind == 2:
        kinds: tuple[Any, ...] = (
            pa.date32(),
            pa.binary(),
            pa.struct([("a", pa.int8())]),
            pa.list_(pa.null()),
        )
        columns[draw.choice(("text", "label"))] = pa.nulls(count, draw.choice(kinds))
    elif kind == 3:
        columns["label"] = pa.array([draw.choice((0.5, math.nan, math.inf, 1e300)) for _ in range(count)])
    data = pa.table(columns)
    info = draw.choice(
        (None, b"[", b'{"info": 1}', b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}')
    )
    if draw.random() < 0.3 and info is not None:
        data = data.replace_schema_metadata({b"huggingface": info})
    sink = io.BytesIO()
    codec = draw.choice(("NONE", "snappy", "gzip"))
    parquet.write_table(data, sink, compression=codec, use_dictionary=draw.random() < 0.5)
    _write_damaged(directory / "rows.parquet", sink.getvalue(), draw)


def _make_saved(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    import pyarrow as pa

    folder = directory / "saved"
    folder.mkdir()
    data = pa.table({key: [row[key] for row in ROWS] for key in ("text", "label")})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data)
    files = {
        "data-0.arrow": sink.getvalue(),
        "state.json": json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}).encode(),
        "dataset_info.json": b'{"features": {"label": {"_type": "Value"}}}',
    }
    damaged = draw.choice(("data-0.arrow", "data-0.arrow", "state.json", "dataset_info.json"))
    for name, content in files.items():
        if name == damaged:
            content = (damaged_bytes if name.endswith(".arrow") else damaged_json)(content, draw)
        (folder / name).write_bytes(content)


def _write_damaged(path: Path, data: bytes, draw: random.Random) -> None:
    path.write_bytes(damaged_bytes(data, draw) if draw.random() < 0.5 else data)


def _read_rows(name: str) -> Callable[[Seeds, Path, int], object]:
    def read(seeds: Seeds, directory: Path, number: int) -> None:
        path = directory / name
        if number % _EVERY == 0:
            words = ["check", "--task", "rows", "--evaluation", str(path), "--label", "label"]
            run([*words, "--text", "text", "--teacher", str(seeds.checkpoint), "--seq-len", "32"], directory)
            return
        kind = ("classification", None, "multi_label", "regression")[number % 4]
        model = ModelLabels("model", 1) if kind == "regression" else ModelLabels("model", 2)
        rows = read_own_task(OwnTask("rows", str(path), text=("text",), label="label", kind=kind), model)
        data_hash(rows.splits)
        evaluation = rows.splits.evaluation
        _check(bool(evaluation), "no rows were called good")
        _check(all(row.text_a.strip() for row in evaluation), "an empty text was called good")
        if rows.task.output_mode == "classification":
            _check({row.label for row in evaluation} <= set(rows.task.labels), "an unknown label")
        if rows.task.output_mode == "regression":
            scores = [cast(float, row.label) for row in evaluation]
            _check(all(map(math.isfinite, scores)), "a score that is not finite was called good")
        tokenizer = load_tokenizer(seeds.checkpoint)
        convert_examples_to_features(evaluation, rows.task.labels, 32, tokenizer, rows.task.output_mode)

    return read


# Checkpoints


def _copy_checkpoint(seeds: Seeds, directory: Path) -> Path:
    """The seed's checkpoint, its weights by a link."""
    folder = directory / "checkpoint"
    folder.mkdir()
    for path in seeds.checkpoint.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).hardlink_to(path)
        elif path.is_file():
            shutil.copyfile(path, folder / path.name)
    return folder


def _make_tokenizer(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    path = _copy_checkpoint(seeds, directory) / "tokenizer.json"
    path.write_bytes(damaged_json(path.read_bytes(), draw))


def _make_vocabulary(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    folder = _copy_checkpoint(seeds, directory)
    (folder / "tokenizer.json").unlink()
    path = folder / draw.choice(("vocab.txt", "tokenizer_config.json"))
    damage = damaged_bytes if path.suffix == ".txt" else damaged_json
    path.write_bytes(damage(path.read_bytes(), draw))


def _make_config(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    path = _copy_checkpoint(seeds, directory) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    path.write_bytes(damaged_json(json.dumps(config).encode(), draw))


def _make_embedding(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    folder = _copy_checkpoint(seeds, directory)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    config = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir()
    files = {"modules.json": modules, "1_Pooling/config.json": config}
    damaged = draw.choice(list(files))
    for name, value in files.items():
        data = json.dumps(value).encode()
        (folder / name).write_bytes(damaged_json(data, draw) if name == damaged else data)


def _read_checkpoint(seeds: Seeds, directory: Path, number: int) -> None:
    """The checks of a run, then a batch; each so many are exported."""
    folder = directory / "checkpoint"
    if number % _EVERY == 0:
        (directory / _TEXTS).write_text(
            "text\n" + "".join(f"{row['text']}\n" for row in ROWS), encoding="utf-8"
        )
        words = [
            "check",
            "--task",
            "rows",
            "--evaluation",
            _TEXTS,
            "--teacher",
            str(folder),
            "--seq-len",
            "32",
        ]
        run(words, directory)
        return
    if number % _EVERY == 1:
        run(["export", str(folder), str(directory / "out" / "model.onnx")], directory)
        return
    labels = given_models.labels_of(folder)
    if labels.kind == "embedding":
        return
    check_for_task(folder, get_task("SST-2"))
    tokenizer = load_tokenizer(folder)
    examples = [Example(str(i), row["text"], None, None) for i, row in enumerate(ROWS)]
    rows = convert_examples_to_features(examples, (), 32, tokenizer, "classification")
    model = load_classifier(folder)
    import torch

    feed = {name: torch.from_numpy(array) for name, array in pad(rows[:4], 32).items()}
    entries = model.get_input_embeddings().num_embeddings
    _check(int(feed["input_ids"].max()) < entries, "token ids beyond the embedding table were called good")
    with torch.no_grad():
        logits = model(**feed).logits
    _check(tuple(logits.shape) == (4, labels.count), f"logits of {tuple(logits.shape)}")


def _make_safetensors(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    path = _copy_checkpoint(seeds, directory) / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    size = int.from_bytes(data[:8], "little")
    header, numbers = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = draw.randrange(8)
    if kind == 0:
        path.write_bytes(damaged_bytes(data, draw))
        return
    names = [name for name in header if name != "__metadata__"]
    entry = header[draw.choice(names)]
    if kind == 1:
        entry["shape"] = draw.choice(([2**31, 2**31], [-1], [], [2**63], [1] * 1000, "x", None, [0.5], [0]))
    elif kind == 2:
        entry["data_offsets"] = draw.choice(
            ([0, 2**31], [2**63, 2**64], [4, 0], [0, 0], [-4, 4], [0], "x", None)
        )
    elif kind == 3:
        entry["dtype"] = draw.choice(("F64", "I64", "BOOL", "F8_E4M3", "X", 1, None, "F16", "U8"))
    elif kind == 4:
        header[draw.choice(("x", "", "../x", "bert.\ud83d"))] = header.pop(draw.choice(names))
    elif kind == 5:
        del header[draw.choice(names)]
    elif kind == 6:
        changed = np.frombuffer(numbers, np.float32).copy()
        changed[draw.randrange(len(changed))] = draw.choice((math.nan, math.inf, -math.inf, 1e38))
        numbers = changed.tobytes()
    text = json.dumps(header).encode() if kind != 7 else damaged_json(json.dumps(header).encode(), draw)
    claimed = draw.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)) if draw.random() < 0.1 else len(text)
    path.write_bytes(claimed.to_bytes(8, "little") + text + numbers)


# ONNX


def _make_onnx(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    folder = directory / "model"
    folder.mkdir()
    for name in _MODEL_FILES:
        if (seeds.model.parent / name).is_file():
            shutil.copyfile(seeds.model.parent / name, folder / name)
    hostile_model(seeds.model, folder / "model.onnx", draw)


def _write_texts(directory: Path) -> Path:
    path = directory / _TEXTS
    path.write_text("text\n" + "".join(f"{row['text']}\n" for row in ROWS), encoding="utf-8")
    return path


_ONNX_RECIPES = ("dynamic_u8s8", "quant_1", "quant_2", "static_u8s8_smooth", "static_u8s8_embed4")


def _read_onnx(seeds: Seeds, directory: Path, number: int) -> None:
    """Checked as a teacher is, quantized, and run: what came out has to agree with what went in."""
    model, out = directory / "model" / "model.onnx", directory / "out" / "int8.onnx"
    texts = _write_texts(directory)
    recipe = _ONNX_RECIPES[number % len(_ONNX_RECIPES)]
    words = {
        0: ["quantize", str(model), str(out), "--recipe", recipe, "--calibration", str(texts)],
        1: [
            "check",
            "--task",
            "rows",
            "--evaluation",
            str(texts),
            "--teacher",
            str(model),
            "--seq-len",
            "16",
        ],
        2: ["profile", str(model), "--json"],
    }.get(number % 20)
    if words is not None:
        run(words, directory)
        return
    task = get_task("SST-2")
    given_models.check_file(model)
    given_models.hash_of(model)
    given_models.check_for_task(model, task, 16)
    coverage(Model(model))
    quantize_file(
        model, out, recipe, calibration=str(texts), samples=8, seq_len=16, compiled=number % 3 > 0, threads=1
    )
    before, after = (_logits(path) for path in (model, out))
    _check(before.shape == after.shape, f"logits of {before.shape} became {after.shape}")
    if np.isfinite(before).all():
        _check(bool(np.isfinite(after).all()), "finite logits became NaN or infinite ones")
        scale = max(1e-3, float(np.abs(before).max()))
        difference = float(np.abs(before - after).max()) / scale
        _check(difference < 1.0, f"{recipe}: logits changed by {difference:.2g} of the largest one")


def _logits(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    ids = np.arange(5, 17, dtype=np.int64)[None] % 80
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    session = open_session(path, threads=1, spinning=False)
    return np.asarray(run_session(session, path, feed_for(session, feed))[0])


# Recipes, configuration, limits

_RECIPES = ("static_u8s8_smooth", "dynamic_u8s8", "static_u8s8_embed4", "quant_1", "static_u16s8")


def _make_recipe(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    from dataclasses import replace

    chosen: Recipe = RECIPES[draw.choice(_RECIPES)]
    recipe = replace(
        chosen, name="mine", nodes=(("layer.0.ffn_in", "float"),) if chosen.quantizer == "quantlib" else ()
    )
    path = directory / "mine.toml"
    write_recipe(path, recipe)
    path.write_bytes(damaged_toml(path.read_bytes(), draw))


def _read_recipe(seeds: Seeds, directory: Path, number: int) -> None:
    path, out = directory / "mine.toml", directory / "out" / "model.onnx"
    texts = _write_texts(directory)
    if number % _EVERY == 0:
        run(
            ["quantize", str(seeds.model), str(out), "--recipe", str(path), "--calibration", str(texts)],
            directory,
        )
        return
    read_recipe(path)
    quantize_file(seeds.model, out, str(path), calibration=str(texts), samples=8, seq_len=16, threads=1)


_CONFIGURATION = (
    """
[task]
name = "rows"
evaluation = "rows.csv"
text = ["text"]
label = "label"
kind = "classification"
metrics = ["accuracy", "macro_f1"]
separator = "|"
threshold = 0.5

[task.labels]
good = "LABEL_1"

[models]
teacher = "checkpoint"
no_student = true

[run]
seq_len = 32
threads = 1
output_dir = "runs"
recipes = ["dynamic_u8s8", "mine.toml"]
calibration_samples = 4
num_runs = 3
warmup_runs = 0
timing_seconds = 0.0
seed = 1

[gate]
shapes = ["1x8"]
gate_launches = 2
limits = "limits.toml"
""".replace('separator = "|"\n', "")
    .replace("threshold = 0.5\n", "")
    .replace('good = "LABEL_1"\n', "")
)


def _make_configuration(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    (directory / "checkpoint").symlink_to(seeds.checkpoint)
    write_recipe(directory / "mine.toml", _named(RECIPES["quant_2"], "mine"))
    with (directory / "rows.csv").open("w", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)
    (directory / "limits.toml").write_text("[default]\nmax_drop_points = 1.0\n", encoding="utf-8")
    (directory / "quantlib.toml").write_bytes(damaged_toml(_CONFIGURATION.encode(), draw))


def _named(recipe: Recipe, name: str) -> Recipe:
    from dataclasses import replace

    return replace(recipe, name=name)


def _read_configuration(seeds: Seeds, directory: Path, number: int) -> None:
    run(["check"], directory)


_SWEEP = """
[sweep]
output_dir = "out"
recipes = ["dynamic_u8s8", "quant_2"]
engines = ["onnxruntime"]
jobs = 1
students = ["half"]

[[sweep.tasks]]
name = "rows"
evaluation = "rows.csv"
text = ["text"]
label = "label"
train = "rows.csv"

[[sweep.checkpoints]]
called = "tiny"
teacher = "checkpoint"
tasks = ["rows"]

[run]
seq_len = 32
calibration_samples = 4

[latency]
machines = ["localhost"]
"""


def _make_sweep(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    _make_configuration(seeds, directory, draw)
    (directory / "quantlib.toml").unlink()
    (directory / "sweep.toml").write_bytes(damaged_toml(_SWEEP.encode(), draw))


def _read_sweep(seeds: Seeds, directory: Path, number: int) -> None:
    if number % _EVERY == 0:
        run(["sweep", "sweep.toml", "--dry-run"], directory)
        return
    read_sweep(directory / "sweep.toml")


def _make_limits(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    data = (ROOT / "bench" / "limits.toml").read_bytes()
    (directory / "limits.toml").write_bytes(damaged_toml(data, draw))


def _read_limits(seeds: Seeds, directory: Path, number: int) -> None:
    table = read_limits(directory / "limits.toml")
    for variant in ("quant_1", "student_2_quant_1", "teacher_compiled", "quant_2@openvino"):
        limits = table.of(variant, ("CoLA", "SST-2")[number % 2])
        for key, value in vars(limits).items():
            _check(not isinstance(value, float) or math.isfinite(value), f"{key} is {value}")


# Results, baselines, and what a run keeps


def _make_baseline(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    (directory / "baseline.json").write_bytes(damaged_json(seeds.baseline.read_bytes(), draw))


_COMMIT = Commit("0" * 40, 0, "", 0)


def _read_baseline(seeds: Seeds, directory: Path, number: int) -> None:
    path = directory / "baseline.json"
    record, good = read_record(path), read_record(seeds.baseline)
    recorded = sources.of_baseline(path.read_bytes(), str(path), _COMMIT)
    _check_points(recorded.points.values())
    verdict = judge(good, record, LimitTable(), across_machines=True)
    judge(record, record, LimitTable())
    for finding in verdict.findings:
        _check("nan" not in finding.text.split(), finding.text)


def _check_points(points: Any) -> None:
    for point in points:
        _check(math.isfinite(point.drop) and point.size_bytes >= 0, f"{point.drop}, {point.size_bytes} bytes")
        for timing in point.timings.values():
            _check(0 < timing.low <= timing.ratio <= timing.high < math.inf, f"a speedup of {timing}")


def _make_run(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    folder = directory / "runs" / "SST-2"
    folder.mkdir(parents=True)
    names = [path.name for path in sorted(seeds.run.glob("*.json"))]
    damaged = draw.choice((*names, "results.json", "results.json"))
    for name in names:
        data = (seeds.run / name).read_bytes()
        (folder / name).write_bytes(damaged_json(data, draw) if name == damaged else data)


def _read_run(seeds: Seeds, directory: Path, number: int) -> None:
    folder = directory / "runs" / "SST-2"
    if number % 2:
        run(
            [
                "report",
                "runs",
                *(["--markdown", "--against", str(seeds.run.parent)] if number % 4 == 3 else []),
            ],
            directory,
        )
        return
    results, facts = ((folder / name).read_bytes() for name in ("results.json", "run.json"))
    recorded = sources.of_results(results, facts, "SST-2/results.json", "results.json", _COMMIT)
    _check_points(recorded.points.values())


_TABLE = {
    "schema_version": 1,
    "provenance": {"file": "sweep.toml", "code": "0" * 64},
    "plan": [
        {"task": "SST-2", "teacher": "tiny", "student": None, "variant": "teacher"},
        {"task": "SST-2", "teacher": "tiny", "student": "half", "variant": "quant_2"},
    ],
}


def _make_table(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    values = json.loads((seeds.run / "results.json").read_text(encoding="utf-8"))
    rows = [
        {**cell, "machine": machine, "error": None, "values": values.get(cell["variant"], {}),
         "provenance": {"made_on": {"host": "a"}, "timed_on": {"cpu": "b"}, "model_sha256": "0" * 64}}
        for cell in cast(list[dict[str, Any]], _TABLE["plan"])
        for machine in ("a", None)
    ]  # fmt: skip
    folder = directory / "shard"
    folder.mkdir()
    (folder / "sweep.json").write_bytes(damaged_json(json.dumps(_TABLE | {"rows": rows}).encode(), draw))


def _read_table(seeds: Seeds, directory: Path, number: int) -> None:
    if number % 2:
        run(["sweep", "merge", "shard", "--output-dir", "merged"], directory)
        return
    table = sweep_table.read_table(directory / "shard" / "sweep.json")
    sweep_table.write_table(directory / "out", table)
    sweep_table.console_table(table.rows)
    sweep_table.common(table.rows)
    sweep_table.error_lines(table.rows)


_OUTCOME = Outcome({"teacher": {"accuracy": 0.5}, "quant_2": {"accuracy": 0.25}}, {"teacher": "0" * 64})


def _job() -> Any:
    cells = [SimpleNamespace(variant=variant) for variant in _OUTCOME.rows]
    return SimpleNamespace(name="job", key="0123456789abcdef" * 4, cells=cells)


def _make_job(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    Done(directory).write(_job(), _OUTCOME)
    (path,) = directory.rglob("*.json")
    path.write_bytes(damaged_json(path.read_bytes(), draw))


def _read_job(seeds: Seeds, directory: Path, number: int) -> None:
    _check(Done(directory).read(_job()) in (None, _OUTCOME), "another outcome was called good")


_KEY = {"model": "x", "seed": 42}
_ENTRY = {"model.onnx": b"weights" * 100, "sub/report.json": b'{"a": [1, 2, 3]}'}


def _build(directory: Path) -> None:
    (directory / "sub").mkdir()
    for name, data in _ENTRY.items():
        (directory / name).write_bytes(data)


def _make_cache(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    entry = Cache(directory / "cache").get("kind", _KEY, _build).path
    path = draw.choice([path for path in sorted(entry.rglob("*")) if path.is_file()])
    data = path.read_bytes()
    outside = directory / "outside"
    outside.write_bytes(b"outside")
    kind = draw.randrange(8)
    if kind < 4:
        path.write_bytes(damaged_json(data, draw) if path.suffix == ".json" else damaged_bytes(data, draw))
        return
    path.unlink()
    if kind == 4:
        path.mkdir()
    elif kind == 5:
        path.symlink_to(outside)
    elif kind == 6:
        shutil.rmtree(entry)
        entry.symlink_to(directory) if draw.random() < 0.5 else entry.write_bytes(b"")
    elif kind == 7:
        import os

        os.mkfifo(path)


def _read_cache(seeds: Seeds, directory: Path, number: int) -> None:
    entry = Cache(directory / "cache").get("kind", _KEY, _build).path
    for name, data in _ENTRY.items():
        _check((entry / name).read_bytes() == data, f"{name} of a damaged entry was called good")
    _check((directory / "outside").read_bytes() == b"outside", "a file outside was written")


def _training_state() -> TrainingState:
    import torch

    weights = {"a": torch.arange(2000, dtype=torch.float32).reshape(40, 50), "b": torch.ones(7)}
    return TrainingState(
        1, 2, 3, 4, (0.5, -0.25), weights, weights,
        {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []},
        [torch.arange(100, dtype=torch.uint8)], {"loss": 0.5}, torch.zeros(8, 2),
    )  # fmt: skip


def _make_state(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    path = directory / "training.pt"
    save_state(path, "job", _training_state())
    path.write_bytes(damaged_bytes(path.read_bytes(), draw))


def _read_state(seeds: Seeds, directory: Path, number: int) -> None:
    try:
        state = load_state(directory / "training.pt", "job")
    except DamagedError:
        return
    if state is not None:
        _check(_plain(vars(state)) == _plain(vars(_training_state())), "a damaged state was called good")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


_HISTORY = History(
    [1.0, 1.5, 1.0] * 20, {"model 1x8": [(1.0, 0.5), (1.5, 0.25)] * 10, "other": [(1.0, -0.5)]}
)


def _make_history(seeds: Seeds, directory: Path, draw: random.Random) -> None:
    path = directory / "history.json"
    write_history(path, _HISTORY)
    path.write_bytes(damaged_json(path.read_bytes(), draw))


def _read_history(seeds: Seeds, directory: Path, number: int) -> None:
    history = read_history(directory / "history.json")
    _check(history in (History(), _HISTORY), "a damaged history was called good")
    history.spread()
    history.add({}, {"model 1x8": {}})
    write_history(directory / "history.json", history)


FORMATS: dict[str, Format] = {
    "csv": Format(_make_delimited(",", "rows.csv"), _read_rows("rows.csv")),
    "tsv": Format(_make_delimited("\t", "rows.tsv"), _read_rows("rows.tsv")),
    "jsonl": Format(_make_jsonl, _read_rows("rows.jsonl")),
    "parquet": Format(_make_parquet, _read_rows("rows.parquet")),
    "saved data set": Format(_make_saved, _read_rows("saved")),
    "tokenizer.json": Format(_make_tokenizer, _read_checkpoint),
    "vocabulary": Format(_make_vocabulary, _read_checkpoint),
    "config.json": Format(_make_config, _read_checkpoint),
    "modules.json": Format(_make_embedding, _read_checkpoint),
    "safetensors": Format(_make_safetensors, _read_checkpoint),
    "onnx": Format(_make_onnx, _read_onnx),
    "recipe": Format(_make_recipe, _read_recipe),
    "quantlib.toml": Format(_make_configuration, _read_configuration),
    "sweep.toml": Format(_make_sweep, _read_sweep),
    "limits": Format(_make_limits, _read_limits),
    "baseline": Format(_make_baseline, _read_baseline),
    "results": Format(_make_run, _read_run),
    "sweep.json": Format(_make_table, _read_table),
    "job of a sweep": Format(_make_job, _read_job),
    "cache entry": Format(_make_cache, _read_cache),
    "resume file": Format(_make_state, _read_state),
    "history of states": Format(_make_history, _read_history),
}
