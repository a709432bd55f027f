"""A user's own task: described by files and columns, its labels matched by name."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pyarrow
import pyarrow.parquet
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.data import tasks
from quantlib.data.tasks import LabelMismatch, ModelLabels, OwnTask, data_hash, label_order, read_own_task
from quantlib.data.tasks.own import text_columns
from quantlib.experiment import ExperimentOptions, run
from quantlib.experiment.build import build
from quantlib.experiment.measure import evaluate
from quantlib.onnx_model.model import Model
from quantlib.support.errors import InputError

MODEL = ModelLabels("config.json", 2, ("bad", "good"))
ROWS = [{"text": text, "label": ("bad", "good")[int(label)]} for text, label in tiny.sentences(60, 9)]
TRAIN = [{"text": text, "label": ("bad", "good")[int(label)]} for text, label in tiny.sentences(90, 10)]


OTHERS = [{"text": text} for text, _ in tiny.sentences(20, 11)]
LABELS_OF_RTE = ("entailment", "not_entailment")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",") -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return str(path)


def write_saved(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """As `datasets.Dataset.save_to_disk` writes it."""
    path.mkdir()
    table = pyarrow.Table.from_pylist(list(rows))
    with pyarrow.ipc.new_stream(path / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "test"}
    (path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (path / "dataset_info.json").write_text(json.dumps({"features": {}}), encoding="utf-8")
    return str(path)


FORMS = {
    "csv": lambda path, rows: write_csv(path / "rows.csv", rows),
    "tsv": lambda path, rows: write_csv(path / "rows.tsv", rows, "\t"),
    "jsonl": lambda path, rows: write_jsonl(path / "rows.jsonl", rows),
    "parquet": lambda path, rows: write_parquet(path / "rows.parquet", rows),
    "saved": lambda path, rows: write_saved(path / "rows", rows),
}


def read(
    rows: Sequence[Mapping[str, Any]], tmp_path: Path, model: ModelLabels | None = MODEL, **more: Any
) -> tasks.OwnRows:
    settings = {"text": ("text",), "label": "label"} | more
    return read_own_task(OwnTask("mine", write_jsonl(tmp_path / "evaluation.jsonl", rows), **settings), model)


# Files


@pytest.mark.parametrize(
    "labels", [{"bad": "bad", "good": "good"}, {"bad": 0, "good": 1}], ids=["words", "numbers"]
)
def test_every_form_gives_the_same_rows(labels: dict[str, Any], tmp_path: Path) -> None:
    rows = [row | {"label": labels[row["label"]]} for row in ROWS]
    model = MODEL if labels["bad"] == "bad" else ModelLabels("config.json", 2)
    found = {}
    for name, write in FORMS.items():
        (tmp_path / name).mkdir()
        own = OwnTask("mine", write(tmp_path / name, rows), text=("text",), label="label")
        found[name] = read_own_task(own, model)
    assert len({data_hash(each.splits) for each in found.values()}) == 1
    assert {each.task.labels for each in found.values()} == {
        ("bad", "good") if model is MODEL else ("0", "1")
    }


def test_files_of_glue_described_as_ones_own_give_the_metrics_of_the_built_in_task(
    tmp_path: Path, tiny_teacher: Path, glue_dir: Path
) -> None:
    settings: dict[str, Any] = {
        "teacher": str(tiny_teacher), "no_student": True, "recipes": ("quant_2", "dynamic_u8s8"),
        "seq_len": 32, "threads": 1, "calibration_samples": 16, "cache_dir": tmp_path / "cache",
    }  # fmt: skip
    folder = glue_dir / "SST-2"
    own = ExperimentOptions(
        evaluation=str(folder / "dev.tsv"), train=str(folder / "train.tsv"), text=("sentence",),
        label="label", metrics=("accuracy",), task="my-sst2",
        labels={"0": "LABEL_0", "1": "LABEL_1"}, **settings,
    )  # fmt: skip
    built_in = ExperimentOptions(task="SST-2", data_dir=glue_dir, **settings)
    mine, theirs = build(own), build(built_in)
    assert [v.model.sha256 for v in mine.variants] == [v.model.sha256 for v in theirs.variants]
    ours, known = evaluate(mine, own), evaluate(theirs, built_in)
    assert {name: e.metrics for name, e in ours.items()} == {name: e.metrics for name, e in known.items()}


def test_files_of_glue_that_were_written_anew_with_quotes(tmp_path: Path) -> None:
    """Both readers give the texts as they were before."""
    rows = [
        {
            "sentence1": f'He said "{text}".',
            "sentence2": text,
            "label": LABELS_OF_RTE[i % 2],
        }
        for i, (text, _) in enumerate(tiny.sentences(30, 4))
    ]
    for name in ("train", "dev"):
        write_csv(tmp_path / f"{name}.tsv", rows[:12] if name == "dev" else rows[12:], "\t")
    built_in = tasks.read_splits(tasks.get_task("RTE"), tmp_path)
    own = OwnTask("rte", str(tmp_path / "dev.tsv"), train=str(tmp_path / "train.tsv"), label="label")
    mine = read_own_task(own, ModelLabels("config.json", 2, LABELS_OF_RTE))
    assert built_in.evaluation[0].text_a == rows[0]["sentence1"]
    texts = [[(row.text_a, row.text_b) for row in each.evaluation] for each in (built_in, mine.splits)]
    assert texts[0] == texts[1]


def test_rows_that_are_in_evaluation_are_dropped_and_counted(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [*TRAIN, *ROWS[:7]])
    calibration = write_jsonl(
        tmp_path / "calibration.jsonl", [{"text": row["text"]} for row in ROWS[:3]] + OTHERS
    )
    rows = read(ROWS, tmp_path, train=train, calibration=calibration)
    texts = {name: {row.text_a for row in part} for name, part in rows.splits.parts().items()}
    assert not texts["evaluation"] & (texts["train"] | texts["calibration"])
    assert texts["calibration"] == {row["text"] for row in OTHERS}
    assert "train: 7 rows dropped, as their texts are in evaluation too" in rows.notes
    assert "calibration: 3 rows dropped, as their texts are in evaluation too" in rows.notes


def test_calibration_rows_are_neither_evaluated_nor_verified_on(tmp_path: Path) -> None:
    twice = read([*ROWS, *ROWS], tmp_path)
    texts = {name: {row.text_a for row in part} for name, part in twice.splits.parts().items()}
    assert texts["calibration"]
    assert not texts["calibration"] & texts["evaluation"]
    assert any(note.endswith("as their texts were set aside for calibration") for note in twice.notes)
    train = write_jsonl(tmp_path / "train.jsonl", TRAIN)
    same = read(ROWS, tmp_path, train=train, calibration=train)
    texts = {name: {row.text_a for row in part} for name, part in same.splits.parts().items()}
    assert texts["validation"]
    assert not texts["calibration"] & texts["validation"]


def test_without_other_rows_some_of_evaluation_are_set_aside(tmp_path: Path) -> None:
    rows = read(ROWS, tmp_path)
    parts = {name: len(part) for name, part in rows.splits.parts().items()}
    assert parts == {"train": 0, "calibration": 15, "validation": 0, "evaluation": 45}
    assert any("15 of the 60 evaluation rows, set aside" in note for note in rows.notes)
    again = read(ROWS, tmp_path)
    assert data_hash(again.splits) == data_hash(rows.splits)


# Labels


@pytest.mark.parametrize(
    ("labels", "names", "order"),
    [
        (["bad", "good"], ("good", "bad"), [1, 0]),
        (["Not Entailment", "ENTAILMENT"], LABELS_OF_RTE, [1, 0]),
        (["0", "1", "2"], ("LABEL_0", "LABEL_1", "LABEL_2"), [0, 1, 2]),
        (["LABEL_1", "LABEL_0"], (), [1, 0]),
        (["A", "a"], ("a", "A"), [1, 0]),
        (["LABEL_0", "LABEL_1"], ("LABEL_1", "LABEL_0"), [1, 0]),
    ],
)  # fmt: skip
def test_labels_are_matched_by_name(labels: list[str], names: tuple[str, ...], order: list[int]) -> None:
    assert label_order(labels, {}, ModelLabels("config.json", len(labels), names)) == order


def test_a_mapping_gives_the_names_that_differ() -> None:
    model = ModelLabels("config.json", 2, ("NEG", "POS"))
    assert label_order(["bad", "good"], {"bad": "NEG", "good": "POS"}, model) == [0, 1]
    assert label_order(["bad", "good"], {"bad": "POS", "good": "neg"}, model) == [1, 0]
    with pytest.raises(InputError, match="labels 'bad', 'good' are one and the same"):
        label_order(["bad", "good"], {"bad": "NEG", "good": "neg"}, model)


@pytest.mark.parametrize("names", [("refund", "other"), ("LABEL_0", "LABEL_1"), ()])
def test_names_that_do_not_match_are_listed_with_the_way_to_map_them(names: tuple[str, ...]) -> None:
    with pytest.raises(LabelMismatch) as refused:
        label_order(["bad", "good"], {}, ModelLabels("dir/config.json", 2, names))
    words = str(refused.value)
    assert "label 'bad' is not one of the checkpoint's" in words
    assert all(name in words for name in ("dir/config.json", "'good'", "[task.labels]", "--labels", *names))
    assert len(words.splitlines()) == 1


def test_the_order_of_the_model_decides_not_that_of_the_rows(tmp_path: Path) -> None:
    rows = read(ROWS, tmp_path, ModelLabels("config.json", 3, ("good", "so so", "Bad")))
    assert rows.task.labels == ("good", "so so", "bad")
    assert rows.task.num_labels == 3, "one of them no row has"


# Kinds


@pytest.mark.parametrize(
    ("values", "model", "kind"),
    [
        (["bad", "good"], MODEL, "classification"),
        (["0", "1"], None, "classification"),
        (["0.5", "1.25"], None, "regression"),
        ([0.5, 1], None, "regression"),
        (["1", "2"], ModelLabels("c", 1), "regression"),
        (["bad|good", "good"], MODEL, "multi_label"),
        (["bad, good", ""], MODEL, "multi_label"),
        ([["bad"], []], MODEL, "multi_label"),
        (["bad", "good"], replace(MODEL, kind="multi_label"), "multi_label"),
    ],
)  # fmt: skip
def test_the_kind_is_inferred_and_said(
    values: list[Any], model: ModelLabels | None, kind: str, tmp_path: Path
) -> None:
    rows = [row | {"label": values[i % 2]} for i, row in enumerate(ROWS)]
    train = write_jsonl(
        tmp_path / "train.jsonl", [row | {"label": values[i % 2]} for i, row in enumerate(TRAIN)]
    )
    found = read(rows, tmp_path, model, train=train)
    assert found.task.output_mode == kind
    assert any(note.startswith(f"kind: {kind}, as ") for note in found.notes)


def test_sets_of_labels_are_the_same_as_lists_and_in_a_cell(tmp_path: Path) -> None:
    lists = [["bad", "good"], ["good"], []]
    as_lists = [row | {"label": lists[i % 3]} for i, row in enumerate(ROWS)]
    in_cells = [row | {"label": " ; ".join(lists[i % 3])} for i, row in enumerate(ROWS)]
    one, other = read(as_lists, tmp_path), read(in_cells, tmp_path)
    assert one.task == other.task
    assert data_hash(one.splits) == data_hash(other.splits)


def test_without_a_column_of_labels_agreement_is_judged(tmp_path: Path) -> None:
    found = read(ROWS, tmp_path, label=None)
    assert not found.task.labelled
    assert found.task.metrics == ("agreement",)
    assert {row.label for row in found.splits.evaluation} == {None}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"kind": "ranking"}, "kind 'ranking' is unknown; known: classification, multi_label, regression"),
        ({"metrics": ("f2",)}, "metric 'f2' is unknown; known: accuracy"),
        ({"metrics": ("pearson",)}, "metrics pearson; known for classification"),
        ({"label": None, "metrics": ("accuracy",)}, "metrics 'accuracy' need labels; name their column"),
        ({"text": ("title",)}, r"no column 'title'; columns: 'text', 'label'"),
        ({"label": "lable"}, r"no column 'lable' \(did you mean 'label'\?\)"),
        ({"text": ("text", "label", "text")}, "one column, or two for a pair"),
        ({"threshold": 1.0}, "threshold 1.0 is out of range"),
        ({"quotes": "perhaps"}, "quotes 'perhaps' is unknown"),
        ({"threshold": 0.9}, "threshold 0.9 is for multi_label tasks"),
        ({"kind": "regression"}, r"line 1, column 'label': score '(bad|good)'; expected a finite number"),
    ],
)  # fmt: skip
def test_a_wrong_description_is_one_line(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as refused:
        read(ROWS, tmp_path, **more)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["", "a/b", "..", "tick ets", "-x"])
def test_a_name_that_names_no_directory_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="it names a directory"):
        OwnTask(name, "rows.csv")


@pytest.mark.parametrize("value", [None, "", float("nan"), {"a": 1}, [["a"]], True])
def test_a_label_that_is_none_is_refused_with_its_row(value: object, tmp_path: Path) -> None:
    rows = [*ROWS[:5], ROWS[5] | {"label": value}, *ROWS[6:]]
    with pytest.raises(InputError, match=r"evaluation\.jsonl line 6|label 'True' is not one"):
        read(rows, tmp_path, kind="classification")


@pytest.mark.parametrize("text", ["", "   ", None, [1, 2]])
def test_a_row_without_a_text_is_refused_with_its_place(text: object, tmp_path: Path) -> None:
    rows = [*ROWS[:5], ROWS[5] | {"text": text}, *ROWS[6:]]
    with pytest.raises(InputError, match=r"evaluation\.jsonl line 6: .*column 'text'"):
        read(rows, tmp_path)


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        (["id", "sentence", "label"], ("sentence",)),
        (["Premise", "Hypothesis", "label"], ("Premise", "Hypothesis")),
        (["utterances", "label"], ("utterances",)),
        (["title", "body", "label"], ("title", "body")),
    ],
)
def test_usual_names_of_columns_are_found(columns: list[str], texts: tuple[str, ...], tmp_path: Path) -> None:
    table = OwnTask("mine", "").read(write_jsonl(tmp_path / "t.jsonl", [dict.fromkeys(columns, "x")]))
    assert text_columns(table, "label") == texts


def test_a_name_is_taken_from_where_the_rows_are() -> None:
    assert tasks.name_of("data/tickets/test.csv") == "tickets"
    assert tasks.name_of("data/tickets 2.csv") == "tickets_2"
    assert tasks.name_of("hf://org/reviews@main:test") == "reviews"


# Anything

CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=8),
    st.sampled_from(["bad", "good", "bad;good", "x" * 2000]),
    st.lists(st.sampled_from(["bad", "good", "x"]), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)  # fmt: skip
TABLES = st.lists(
    st.fixed_dictionaries({"text": CELLS}, optional={"label": CELLS, "other": CELLS}), min_size=0, max_size=12
)
DESCRIPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "label": st.sampled_from(["label", "other", "missing"]),
        "text": st.sampled_from([("text",), ("text", "other"), ("label",)]),
        "kind": st.sampled_from(["classification", "multi_label", "regression"]),
        "metrics": st.sampled_from([("accuracy",), ("f1",), ("micro_f1",), ("pearson",), ("agreement",)]),
        "labels": st.sampled_from([{"x": "bad"}, {"bad": "nobody"}]),
        "separator": st.sampled_from([";", "|"]),
    },
)
MODELS = st.sampled_from(
    [None, MODEL, ModelLabels("c", 1), ModelLabels("c", 2), replace(MODEL, kind="regression")]
)


@settings(max_examples=300)
@given(rows=TABLES, train=st.none() | TABLES, more=DESCRIPTIONS, model=MODELS)
def test_any_table_is_read_right_or_refused_in_a_line(
    rows: list[dict[str, Any]],
    train: list[dict[str, Any]] | None,
    more: dict[str, Any],
    model: ModelLabels | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    given_train = {} if train is None else {"train": write_jsonl(folder / "train.jsonl", train)}
    try:
        own = OwnTask("mine", write_jsonl(folder / "rows.jsonl", rows), **given_train, **more)
        found = read_own_task(own, model)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        return
    task, parts = found.task, found.splits.parts()
    kept = [row for part in parts.values() for row in part]
    left_out = [int(note.split()[1]) for note in found.notes if " rows left out, as " in note]
    used = len(parts["evaluation"]) + len(parts["calibration"]) * (train is None)
    assert used + sum(left_out) == len(rows)
    assert all(row.text_a.strip() for row in kept)
    if model is not None:
        assert task.num_labels == model.count
    by_text = {str(row["text"]): row for row in rows}
    for row in parts["evaluation"]:
        assert row.text_a in by_text or own.text != ("text",)
    for row in kept:
        words = row.label if isinstance(row.label, tuple) else (row.label,)
        assert task.output_mode == "regression" or not task.labelled or set(words) <= set(task.labels)


def test_ten_thousand_classes_and_a_row_of_a_megabyte(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": f"class {i}"} for i in range(10_000)]
    rows.append({"text": "word " * 200_000, "label": "class 1"})
    train = write_jsonl(
        tmp_path / "train.jsonl", [{"text": f"other {i}", "label": f"class {i}"} for i in range(50)]
    )
    found = read(rows, tmp_path, None, train=train)
    assert found.task.num_labels == 10_000
    assert len(found.splits.evaluation[-1].text_a) == 1_000_000


def test_a_student_of_a_teacher_with_other_names_is_trained(tmp_path: Path) -> None:
    """What is trained here has the teacher's names, so that the same mapping holds for it."""
    teacher = tiny.write_checkpoint(tmp_path / "teacher", id2label={0: "NEG", 1: "POS"})
    options = ExperimentOptions(
        evaluation=write_jsonl(tmp_path / "test.jsonl", ROWS),
        train=write_jsonl(tmp_path / "train.jsonl", TRAIN),
        label="label", labels={"bad": "NEG", "good": "POS"}, teacher=str(teacher), recipes=("dynamic_u8s8",),
        seq_len=32, threads=1, student_config="layers=1", transformer_epochs=0, cache_dir=tmp_path / "cache",
    )  # fmt: skip
    built = build(options)
    assert "student_dynamic_u8s8" in {variant.name for variant in built.variants}
    assert built.task.labels == ("bad", "good")


def test_a_file_of_weights_is_part_of_a_model(tmp_path: Path, tiny_onnx: Path) -> None:
    model = onnx.load(tiny_onnx)
    onnx.save(
        model, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    before = Model(tmp_path / "model.onnx").sha256
    weights = bytearray((tmp_path / "weights").read_bytes())
    weights[0] ^= 1
    (tmp_path / "weights").write_bytes(weights)
    assert Model(tmp_path / "model.onnx").sha256 != before
    (tmp_path / "weights").unlink()
    with pytest.raises(InputError, match=r"its external data file .weights. is missing"):
        _ = Model(tmp_path / "model.onnx").sha256


SETS = [row | {"label": ("bad|good", "good", "", "bad")[i % 4]} for i, row in enumerate(ROWS)]
SCORES = [row | {"label": len(row["text"]) / 10} for row in ROWS]


@pytest.mark.parametrize(
    ("rows", "changes", "kind", "metric"),
    [
        (SETS, {"problem_type": "multi_label_classification"}, "multi_label", "micro_f1"),
        (SCORES, {"num_labels": 1}, "regression", "pearson"),
    ],
    ids=["sets", "scores"],
)
def test_other_kinds_run_to_their_table(
    rows: list[dict[str, Any]], changes: dict[str, Any], kind: str, metric: str, tmp_path: Path
) -> None:
    names = {0: "bad", 1: "good"} if kind == "multi_label" else {0: "LABEL_0"}
    teacher = tiny.write_checkpoint(tmp_path / "teacher", id2label=names, **changes)
    options = ExperimentOptions(
        evaluation=write_csv(tmp_path / "test.csv", rows), label="label", teacher=str(teacher), seq_len=32,
        recipes=("quant_2",), threads=1, warmup_runs=0, num_runs=2, timing_seconds=0.0,
        output_dir=tmp_path / "runs", cache_dir=tmp_path / "cache",
    )  # fmt: skip
    run(options)
    results = json.loads((tmp_path / "runs" / options.task_name / "results.json").read_text(encoding="utf-8"))
    assert next(iter(results["teacher"])) == metric
    assert results["quant_2"]["eval_loss"] > 0
    assert abs(results["quant_2"]["accuracy_drop"]) < 1
