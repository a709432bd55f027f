from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.hostile.damage import TEXT_PIECES
from quantlib.data.tables import Table, read_table
from quantlib.data.text import read_lines
from quantlib.support.errors import InputError

SHARED_GLUE = Path(__file__).parents[2] / "shared" / "glue"
KNOWN = (
    "known: .csv, .tsv, .jsonl, .ndjson, .parquet, .txt, a directory of Dataset.save_to_disk, "
    "hf://ORG/NAME[/CONFIG][@REVISION][:SPLIT]"
)
Columns = Mapping[str, Sequence[Any]]

ROWS: Columns = {
    "text": ["plain", 'a "quoted", word', "tab\tand\nlines\r\nhere", "\U0001f600 \u2028 \0", "", "\ufeffbom"],
    "label": ["yes", "no", "yes", "no", "yes", "no"],
    "count": [1, -2, 3, 4, 5, 2**40],
    "score": [0.5, 1.0, -3.25, 1e300, 0.0, 1e-9],
    "right": [True, False, True, False, True, False],
}


# Writers


def delimited(columns: Columns, delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    text = io.StringIO(newline="")
    # The end of line decides what the writer quotes: with this one a lone CR too.
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")  # type: ignore[arg-type]
    writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
    return text.getvalue().encode()


def jsonl(columns: Columns) -> bytes:
    rows = zip(*columns.values(), strict=True)
    return b"".join(
        json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False).encode() + b"\n" for row in rows
    )


def parquet(data: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(data if isinstance(data, pa.Table) else pa.table(dict(data)), sink)
    return bytes(sink.getvalue().to_pybytes())


def stream(data: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data)
    return bytes(sink.getvalue().to_pybytes())


def save(directory: Path, *parts: Any, features: object = None) -> Path:
    """What `datasets.Dataset.save_to_disk` of version 5 writes."""
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05}-of-{len(parts):05}.arrow" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        (directory / name).write_bytes(stream(part))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (directory / "state.json").write_text(json.dumps(state), encoding="utf-8")
    info = {"citation": "", "description": "", "features": features}
    (directory / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return directory


Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, data: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write_file


def content(table: Table) -> dict[str, list[Any]]:
    return {name: list(table.column(name)) for name in table.columns}


def as_text(columns: Columns) -> dict[str, list[str]]:
    return {name: [str(value) for value in values] for name, values in columns.items()}


def one_line(call: Callable[[], object]) -> str:
    """The message of the error, which has to be one line."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert text.splitlines() == [text]
    return text


def refusal(source: str | Path, **options: Any) -> str:
    return one_line(lambda: read_table(source, **options))


# The same rows in all forms


def test_text_forms_give_the_same_rows(write: Write) -> None:
    expected = as_text(ROWS)
    assert content(read_table(write("a.csv", delimited(ROWS)))) == expected
    assert content(read_table(write("a.tsv", delimited(ROWS, "\t")))) == expected
    assert content(read_table(write("b.tsv", delimited(ROWS, "\t", csv.QUOTE_ALL)))) == expected


def test_typed_forms_give_the_same_rows(write: Write, tmp_path: Path) -> None:
    table = pa.table(dict(ROWS))
    sources = [
        write("a.jsonl", jsonl(ROWS)),
        write("b.ndjson", jsonl(ROWS)),
        write("c.parquet", parquet(table)),
        save(tmp_path / "one", table),
        save(tmp_path / "two", table.slice(0, 2), table.slice(2)),
    ]
    for source in sources:
        read = content(read_table(source))
        assert read == ROWS
        for name, values in ROWS.items():
            assert [type(value) for value in read[name]] == [type(value) for value in values]


def test_rows_know_their_place(write: Write, tmp_path: Path) -> None:
    path = write("a.csv", 'text,label\n\n"two\nlines",1\r\n\r\nx,0\n')
    table = read_table(path)
    assert [table.where(row) for row in range(len(table))] == [f"{path} line 3", f"{path} line 6"]
    plain = write("a.tsv", "text\tlabel\n\nx\t0\n\ny\t1\n")
    assert read_table(plain).places == (3, 5)
    lines = write("a.jsonl", '{"a": 1}\n{"a": 2}\n')
    assert read_table(lines).where(1) == f"{lines} line 2"
    saved = save(tmp_path / "saved", pa.table({"a": [1, 2]}), pa.table({"a": [3]}))
    assert read_table(saved).where(2) == f"{saved} row 3"
    assert read_table(str(saved)).source == str(saved)


def test_a_table_that_contradicts_itself_cannot_be_built() -> None:
    Table("x", ("a",), {"a": ["1"]}, (2,), "line")
    wrong: list[tuple[Any, ...]] = [
        (("a", "b"), {"a": ["1"]}, (2,)),
        (("a",), {"a": ["1", "2"]}, (2,)),
        (("a",), {"a": []}, ()),
        ((), {}, (1,)),
    ]
    for columns, cells, places in wrong:
        with pytest.raises(ValueError, match=r"^x: "):
            Table("x", columns, cells, places, "line")


def test_importing_and_reading_text_is_light(write: Write) -> None:
    code = (
        "import sys; from quantlib.data.tables import read_table; read_table(sys.argv[1]); "
        "print(sorted({'pyarrow', 'datasets', 'numpy', 'torch'} & set(sys.modules)))"
    )
    path = write("a.csv", "a\n1\n")
    process = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


# Columns


def test_an_unknown_column(write: Write) -> None:
    table = read_table(write("a.csv", "text,label\na,1\n"))
    assert one_line(lambda: table.column("lable")) == (
        f"{table.source}: no column 'lable' (did you mean 'label'?); columns: 'text', 'label'"
    )
    assert (
        one_line(lambda: table.column("\n")) == f"{table.source}: no column '\\n'; columns: 'text', 'label'"
    )


def test_of_many_columns_the_first_are_listed(write: Write) -> None:
    table = read_table(write("a.csv", delimited({f"c{i}": ["x"] for i in range(10_000)})))
    text = one_line(lambda: table.column("zzz"))
    assert text.endswith("'c18', 'c19' and 9980 more")


@pytest.mark.parametrize(
    ("value", "kind"),
    [({"x": 1}, "an object"), ([[1]], "a nested list"), ([{"x": 1}], "a nested list")],
    ids=str,
)
def test_json_values_that_are_no_cells_are_refused_where_asked_for(
    value: Any, kind: str, write: Write
) -> None:
    table = read_table(write("a.jsonl", jsonl({"text": ["a", "b"], "odd": [None, value]})))
    assert table.column("text") == ["a", "b"]
    assert one_line(lambda: table.column("odd")) == (
        f"{table.source} line 2: column 'odd' holds {kind}; "
        "expected text, a number, true or false, or a list of these"
    )


ODD_ARRAYS = {
    "binary": pa.array([None, b"x"]),
    "timestamp[us]": pa.array([None, 1], pa.timestamp("us")),
    "date32[day]": pa.array([None, 2_000_000_000], pa.date32()),  # of a year that Python does not have
    "struct<x: int64>": pa.array([None, {"x": 1}]),
    "decimal128(3, 1)": pa.array([None, 1], pa.decimal128(3, 1)),
    "list<element: list<element: int64>>": pa.array([None, [[1]]]),
    "list<element: timestamp[us]>": pa.array([None, [1]], pa.list_(pa.timestamp("us"))),
}


@pytest.mark.parametrize("kind", list(ODD_ARRAYS))
def test_arrow_values_that_are_no_cells_are_refused_where_asked_for(kind: str, write: Write) -> None:
    table = read_table(write("a.parquet", parquet({"text": ["a", "b"], "odd": ODD_ARRAYS[kind]})))
    assert table.column("text") == ["a", "b"]
    assert one_line(lambda: table.column("odd")).startswith(
        f"{table.source} row 2: column 'odd' holds {kind}; "
    )


@pytest.mark.parametrize("cell", ['"\\ud800"', '["a", "x\\udfff"]'])
def test_half_of_a_surrogate_pair_is_refused(cell: str, write: Write) -> None:
    table = read_table(write("a.jsonl", f'{{"a": "\\ud83d\\ude00", "b": {cell}}}\n'))
    assert table.column("a") == ["\U0001f600"]
    text = one_line(lambda: table.column("b"))
    assert text.startswith(f"{table.source} line 1: column 'b' holds half of a surrogate pair: '")
    text.encode()


# CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_header_tells_the_delimiter(delimiter: str, write: Write) -> None:
    others = "".join(sign for sign in ";\t|" if sign != delimiter) if delimiter == "," else ""
    rows = {"text": ["a" + others, "b, c; d | e"], f"la{others}bel": ["1", "2"]}
    assert content(read_table(write("a.csv", delimited(rows, delimiter)))) == rows


def test_a_comma_between_quotes_is_no_delimiter(write: Write) -> None:
    path = write("a.csv", '\n"a, ""b""\nc";d\n1;2\n')
    assert content(read_table(path)) == {'a, "b"\nc': ["1"], "d": ["2"]}


def test_one_column(write: Write) -> None:
    assert content(read_table(write("a.csv", 'text\n"a,b"\n\n""\n'))) == {"text": ["a,b", ""]}


def test_a_bom_is_dropped(write: Write) -> None:
    for name in ("a.csv", "a.tsv"):
        assert content(read_table(write(name, "\ufefftext\na\n"))) == {"text": ["a"]}
    assert content(read_table(write("a.jsonl", '\ufeff{"a": 1}\n'))) == {"a": [1]}


def test_a_cell_of_a_megabyte(write: Write) -> None:
    rows = {"text": ['x"' * 500_000], "label": ["1"]}
    before = csv.field_size_limit(1000)
    try:
        for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
            assert content(read_table(write(name, delimited(rows, delimiter)))) == rows
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


def test_quotes_of_a_csv_file_can_be_characters(write: Write) -> None:
    path = write("a.csv", 'text,label\n"a" b,1\n"c",0\n')
    assert content(read_table(path, quotes=False)) == {"text": ['"a" b', '"c"'], "label": ["1", "0"]}
    assert "line 2: text after the closing quote" in refusal(path)
    assert "line 2: text after the closing quote" in refusal(path, quotes=True)


DEFECTS = {
    "empty": ("", ": no rows, the file is empty"),
    "blank": ("\n\r\n\n", ": no rows, the file is empty"),
    "no rows": ("a{0}b\n\n", ": no rows after the header"),
    "too few cells": ("a{0}b\n1{0}2\n3\n", " line 3: 1 cells, expected 2 ('a', 'b'): ['3']"),
    "too many cells": ("a{0}b\n\n1{0}2{0}3\n", " line 3: 3 cells, expected 2 ('a', 'b'): ['1', '2', '3']"),
    "empty name": (
        "a{0}{0}b\n1{0}2{0}3\n",
        " line 1: column 2 has no name (''); each column needs one",
    ),
    "blank name": ("a{0} \n1{0}2\n", " line 1: column 2 has no name (' '); each column needs one"),
    "doubled name": (
        "\na{0}b{0}a\n1{0}2{0}3\n",
        " line 2: 2 columns are named 'a'; each needs its own name",
    ),
}


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t")])
@pytest.mark.parametrize(("text", "reason"), DEFECTS.values(), ids=list(DEFECTS))
def test_text_that_is_no_table(text: str, reason: str, name: str, delimiter: str, write: Write) -> None:
    path = write(name, text.format(delimiter))
    assert refusal(path) == f"{path}{reason}"


def test_rows_before_a_ragged_one_may_have_several_lines(write: Write) -> None:
    path = write("a.csv", 'a,b\n"1\n\n1",2\n3\n')
    assert refusal(path).startswith(f"{path} line 5: 1 cells, ")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ('1,2\n"3\n,4\n', "line 3: a quoted cell that begins here is not closed: '\"3'"),
        (
            '1,2\n"3"4,5\n',
            "line 3: text after the closing quote of a cell; "
            "inside a quoted cell write a quote twice: '\"3\"4,5'",
        ),
        ("1,2\n3\r4,5\n", "line 3: a carriage return outside quotes; end lines with LF or CRLF: '3\\r4,5'"),
    ],
    ids=["open", "after", "cr"],
)
def test_quotes_that_are_wrong(rows: str, reason: str, write: Write) -> None:
    path = write("a.csv", f"a,b\n{rows}")
    assert refusal(path) == f"{path} {reason}"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_bytes_that_are_not_utf8(bom: bytes, name: str, write: Write) -> None:
    path = write(name, bom + b'{"text": 1}\n\n"clich\xe9s"\n')
    assert refusal(path) == f"{path} line 3: byte 0xe9 is not UTF-8; save the file as UTF-8"


# TSV


def glue_like(*rows: str) -> str:
    return "\n".join(["sentence\tlabel", *rows]) + "\n"


@pytest.mark.parametrize(
    "rows",
    [
        ['"stray\t1', "b\t0"],
        ['"a" b\t1', 'c "d"\t0'],
        ['"all of it"\t1', 'b "c" d\t0', '""\t1'],
        ['it is 5" long\t1', '"he said""\t0'],
        ['a "" b\t1', '"c"\t0'],
        ["lone\rcr\t1", '"x"\t0'],
    ],
    ids=["open", "after", "whole", "inch", "three", "cr"],
)
def test_stray_quotes_are_characters(rows: list[str], write: Write) -> None:
    path = write("a.tsv", glue_like(*rows))
    expected = [row.split("\t") for row in rows]
    table = read_table(path)
    assert [
        list(row) for row in zip(table.column("sentence"), table.column("label"), strict=True)
    ] == expected
    assert content(read_table(path, quotes=False)) == content(table)


@pytest.mark.parametrize(
    ("rows", "sentences"),
    [
        (['"a ""b"" c"\t1', "d\t0"], ['a "b" c', "d"]),
        (['"a\tb"\t1', "c\t0"], ["a\tb", "c"]),
        (['"a\r\nb"\t1', "c\t0"], ["a\r\nb", "c"]),
        (['""""\t1', 'stray 5" here\t0'], ['"', 'stray 5" here']),
    ],
    ids=["quote", "tab", "newline", "only"],
)
def test_cells_that_need_quotes_show_that_the_file_is_quoted(
    rows: list[str], sentences: list[str], write: Write
) -> None:
    path = write("a.tsv", glue_like(*rows))
    assert read_table(path).column("sentence") == sentences
    assert read_table(path, quotes=True).column("sentence") == sentences


def test_a_quoted_header_shows_that_the_file_is_quoted(write: Write) -> None:
    rows = {"sentence": ["a", "b"], "la\t\nbel": ["1", "0"]}
    path = write("a.tsv", delimited(rows, "\t", csv.QUOTE_ALL))
    assert content(read_table(path)) == rows
    path = write("b.tsv", 'sentence\t"label"\nx "y"\t"1"\n"open\t0\n')
    assert refusal(path) == f"{path} line 3: a quoted cell that begins here is not closed: '\"open\\t0'"
    assert len(read_table(path, quotes=False)) == 2


def test_a_quotation_over_several_rows_is_not_taken_for_one_cell(write: Write) -> None:
    path = write("a.tsv", glue_like('"I came.\t1', "I saw.\t0", 'I went."\t1', "b\t0"))
    assert refusal(path) == (
        f"{path}: 2 rows if cells are quoted, 4 if quotes are characters of the text, "
        "and nothing tells which; quote the header too, or say which (quotes)"
    )
    assert read_table(path, quotes=False).column("sentence") == ['"I came.', "I saw.", 'I went."', "b"]
    assert read_table(path, quotes=True).column("sentence") == ["I came.\t1\nI saw.\t0\nI went.", "b"]


def test_a_wrong_row_is_named_in_the_reading_that_came_further(write: Write) -> None:
    quoted_file = write("a.tsv", glue_like('"a\nb"\t1', "c\t0\t2"))
    assert refusal(quoted_file).startswith(f"{quoted_file} line 4: 3 cells, expected 2")
    plain_file = write("b.tsv", glue_like('"a" b\t1', "c\t0", "d"))
    assert refusal(plain_file).startswith(f"{plain_file} line 4: 1 cells, expected 2")


@pytest.mark.skipif(
    not SHARED_GLUE.is_dir(), reason="GLUE's real files are not on this machine (shared/glue)"
)
@pytest.mark.parametrize("file", ["train.tsv", "dev.tsv"])
@pytest.mark.parametrize(
    ("task", "quotes", "needs_quotes"), [("SST-2", None, False), ("RTE", False, False), ("RTE", None, True)]
)
def test_real_glue_files(task: str, quotes: bool | None, needs_quotes: bool, file: str) -> None:
    path = SHARED_GLUE / task / file
    lines = read_lines(path)
    header, *rows = (
        csv.reader([f"{line}\n" for line in lines], delimiter="\t", strict=True)
        if needs_quotes  # csv wrote this file of RTE: what it reads, it writes again byte for byte
        else [line.split("\t") for line in lines]
    )
    table = read_table(path, quotes=quotes)
    assert table.columns == tuple(header)
    assert [list(row) for row in zip(*table.cells.values(), strict=True)] == rows


# JSON Lines


def test_columns_are_the_keys_of_all_lines(write: Write) -> None:
    table = read_table(
        write("a.jsonl", '{"b": 1}\r\n{}\n{"a": null, "b": NaN}\n{"a": ["x", 1, null, true, 0.5]}')
    )
    assert table.columns == ("b", "a")
    assert table.column("a") == [None, None, None, ["x", 1, None, True, 0.5]]
    first, second, third, fourth = table.column("b")
    assert (first, second, fourth) == (1, None, None)
    assert isinstance(third, float)
    assert third != third


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ": no rows, the file is empty"),
        ("\n\n", ": no rows, the file is empty"),
        ("{}\n{}\n", ": no columns, its objects are empty"),
        ('{"": 1}\n', ": column 1 has no name (''); each column needs one"),
        (
            '{"a": 1}\n\n{"a": 2}\n',
            " line 2: not JSON, Expecting value at character 1; expected one JSON object a line",
        ),
        (
            '{"a": 1}\n{"a": 2\n',
            " line 2: not JSON, Expecting ',' delimiter at character 8; expected one JSON",
        ),
        ('[{"a": 1}]\n', " line 1: expected one JSON object a line, not '[{\"a\": 1}]'"),
        ("1\n", " line 1: expected one JSON object a line, not '1'"),
        ('{"a": 1, "b": 2, "b": 3}\n', " line 1: the key 'b' is there twice; an object has each key once"),
        ('{"a": {"b": 2, "b": 3}}\n', " line 1: the key 'b' is there twice; an object has each key once"),
        (
            '{"a": ' + "9" * 5000 + "}\n",
            " line 1: Exceeds the limit (4300 digits) for integer string conversion",
        ),
        ('{"a": ' + "[" * 100_000, " line 1: JSON nested too deeply; expected a flat object"),
        ('{"a":' * 100_000, " line 1: JSON nested too deeply; expected a flat object"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_lines_that_are_no_objects(text: str, reason: str, write: Write) -> None:
    path = write("a.jsonl", text)
    assert refusal(path).startswith(f"{path}{reason}")


@pytest.mark.parametrize("full_line", [0, 10_000], ids=["first", "last"])
def test_a_small_file_makes_no_giant_table(full_line: int, write: Write) -> None:
    lines = ["{}"] * 10_001
    lines[full_line] = json.dumps({f"k{i}": 1 for i in range(2_100)})
    path = write("a.jsonl", "\n".join(lines))
    assert "columns are almost empty, more than 20,000,000 values are missing" in refusal(path)
    assert len(read_table(write("b.jsonl", "\n".join(lines[5_000:] + lines[:1])))) == 5_002


# Parquet and saved data sets


def test_arrow_types_that_hold_text_and_numbers(write: Write) -> None:
    arrays = {
        "large": pa.array(["a", None, "c"], pa.large_string()),
        "view": pa.array(["a", None, "c"], pa.string_view()),
        "dictionary": pa.array(["x", None, "x"]).dictionary_encode(),
        "small": pa.array([1, None, 255], pa.uint8()),
        "half": pa.array([0.5, None, float("inf")], pa.float16()),
        "nothing": pa.nulls(3),
        "lists": pa.array([["a"], None, []]),
        "large lists": pa.array([[1], None, [None]], pa.large_list(pa.int32())),
        "pairs": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)),
    }
    table = read_table(write("a.parquet", parquet(arrays)))
    assert content(table) == {
        "large": ["a", None, "c"],
        "view": ["a", None, "c"],
        "dictionary": ["x", None, "x"],
        "small": [1, None, 255],
        "half": [0.5, None, float("inf")],
        "nothing": [None, None, None],
        "lists": [["a"], None, []],
        "large lists": [[1], None, [None]],
        "pairs": [[1, 2], None, [3, 4]],
    }
    assert [type(value) for value in table.column("half")] == [float, type(None), float]


CLASS = {"names": ["neg", "pos"], "_type": "ClassLabel"}
FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": CLASS,
    "new list": {"feature": CLASS, "_type": "List"},
    "old list": [CLASS],
    "wrong": CLASS,
    "wrong list": {"feature": CLASS, "length": -1, "_type": "Sequence"},
}
LABELLED = pa.table(
    {
        "text": ["a", "b", "c", "d"],
        "label": [1, 0, -1, None],
        "new list": [[0, 1], [], None, [-1]],
        "old list": [[1], [1], [0], [0]],
        "wrong": [0, 1, 2, 0],
        "wrong list": [[0], [1, -2], [], []],
    }
)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_class_numbers_become_names(form: str, write: Write, tmp_path: Path) -> None:
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    source = (
        save(tmp_path / "saved", LABELLED, features=FEATURES)
        if form == "saved"
        else write("a.parquet", parquet(LABELLED.replace_schema_metadata(metadata)))
    )
    table = read_table(source)
    assert table.column("text") == ["a", "b", "c", "d"]
    assert table.column("label") == ["pos", "neg", None, None]
    assert table.column("new list") == [["neg", "pos"], [], None, [None]]
    assert table.column("old list") == [["pos"], ["pos"], ["neg"], ["neg"]]
    assert f"{source} row 3: column 'wrong' holds class 2, which is none of its 2; " in one_line(
        lambda: table.column("wrong")
    )
    assert "row 2: column 'wrong list' holds class -2, which is none of its 2; " in one_line(
        lambda: table.column("wrong list")
    )


def test_what_datasets_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed (extra hub)")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "topics": datasets.List(datasets.ClassLabel(names=["x", "y", "z"])),
        }
    )
    rows = {"text": ["a", "b", "c"], "label": [1, -1, 0], "topics": [[0, 2], [], [1]]}
    data = datasets.Dataset.from_dict(rows, features=features)
    # Indices that are not the files' order, and several files.
    data = data.select([2, 0, 1])
    data.save_to_disk(tmp_path / "saved", num_shards=2)
    data.to_parquet(tmp_path / "a.parquet")
    datasets.DatasetDict({"train": data, "dev": data}).save_to_disk(tmp_path / "dict")
    for source in (tmp_path / "saved", tmp_path / "a.parquet", tmp_path / "dict" / "dev"):
        assert content(read_table(source)) == {
            "text": ["c", "a", "b"],
            "label": ["neg", "pos", None],
            "topics": [["y"], ["x", "z"], []],
        }
    text = refusal(tmp_path / "dict")
    assert text.endswith(f"several splits; give {tmp_path / 'dict' / 'train'} or {tmp_path / 'dict' / 'dev'}")


def test_several_splits_are_refused_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test", "\\n", 3]}', encoding="utf-8")
    text = refusal(tmp_path)
    assert text == (
        f"{tmp_path}: a DatasetDict, which holds several splits; "
        f"give {tmp_path / 'train'} or {tmp_path / 'test'}"
    )
    (tmp_path / "dataset_dict.json").write_text('{"splits": 3}', encoding="utf-8")
    assert refusal(tmp_path).endswith("give the directory of one")


def test_a_directory_that_is_no_data_set(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"{tmp_path}: no state.json; a directory must be one that Dataset.save_to_disk wrote"
    )


@pytest.mark.parametrize(
    "files",
    [
        "[]",
        "3",
        "null",
        '[{"filename": "../a.arrow"}]',
        '[{"filename": "a\\u0000"}]',
        '["a"]',
        '[{"filename": 3.5, "x": "/"}]',
    ],
)
def test_a_state_that_names_no_files(files: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", pa.table({"a": [1]}))
    (folder / "state.json").write_text(f'{{"_data_files": {files}}}', encoding="utf-8")
    text = refusal(folder)
    if "3.5" in files:
        assert text == f"cannot read {folder / '3.5'}: No such file or directory"
    else:
        assert text.startswith(f"{folder / 'state.json'}: damaged, _data_files must name Arrow files")


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"\xff", b"[" * 100_000], ids=["cut", "list", "binary", "deep"]
)
def test_a_damaged_description(file: str, data: bytes, tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", pa.table({"a": [1]}))
    (folder / file).write_bytes(data)
    assert refusal(folder).startswith(f"{folder / file}: damaged, not ")
    (folder / file).unlink()
    assert file in refusal(folder)


def test_an_arrow_file_that_was_cut_off_between_batches(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2]})
    folder = save(tmp_path / "saved", table)
    file = folder / "data-00000-of-00001.arrow"
    file.write_bytes(stream(table)[:-8])
    assert len(pa.ipc.open_stream(file.read_bytes()).read_all()) == 2  # pyarrow does not mind
    assert refusal(folder) == f"{file}: damaged, the end of the Arrow stream is missing"


def test_arrow_files_of_other_columns(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", pa.table({"a": [1]}), pa.table({"b": [1]}))
    assert refusal(folder).startswith(f"{folder}: damaged, or not Arrow files with the same columns: ")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pa.table({"a": pa.array([], pa.string())}), "no rows"),
        (pa.table({}), "no rows"),
        (pa.table([[1], [2]], ["a", ""]), "column 2 has no name (''); each column needs one"),
        (pa.table([[1], [2]], ["a", "a"]), "2 columns are named 'a'; each needs its own name"),
    ],
    ids=["rows", "nothing", "name", "doubled"],
)
@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_arrow_data_that_is_no_table(data: Any, reason: str, form: str, write: Write, tmp_path: Path) -> None:
    source = save(tmp_path / "saved", data) if form == "saved" else write("a.parquet", parquet(data))
    assert refusal(source) == f"{source}: {reason}"


@pytest.mark.parametrize("data", [b"", b"PAR1", parquet(ROWS)[:-9], parquet(ROWS)[9:], b"a,b\n1,2\n"])
def test_a_damaged_parquet_file(data: bytes, write: Write) -> None:
    path = write("a.parquet", data)
    assert refusal(path).startswith(f"{path}: damaged, or not a Parquet file: ")


def not_utf8() -> Any:
    return pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )


def test_text_in_arrow_that_is_not_utf8(write: Write, tmp_path: Path) -> None:
    path = write("a.parquet", parquet({"text": not_utf8()}))
    assert refusal(path) == f"{path}: column 'text': damaged, its text is not UTF-8 (byte 0xff)"
    folder = save(tmp_path / "saved", pa.table({"text": not_utf8()}))
    assert "00001.arrow: damaged, or not an Arrow stream: " in refusal(folder)


def test_a_name_in_arrow_that_is_not_utf8(write: Write, tmp_path: Path) -> None:
    data = pa.table({"zzzz": [1]})
    sink = pa.BufferOutputStream()
    pq.write_table(data, sink, store_schema=False)
    path = write("a.parquet", sink.getvalue().to_pybytes().replace(b"zzzz", b"zz\xffz"))
    assert refusal(path).startswith(f"{path}: damaged, or not a Parquet file: 'utf-8' codec")
    folder = save(tmp_path / "saved", data)
    file = folder / "data-00000-of-00001.arrow"
    file.write_bytes(stream(data).replace(b"zzzz", b"zz\xffz"))
    assert refusal(folder).startswith(f"{file}: damaged, or not an Arrow stream: 'utf-8' codec")


# What is refused before reading


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a", "a.xyz", "x" * 300 + ".csv", "a\0.csv"])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    text, shown = refusal(tmp_path / name), str(tmp_path / name).replace("\0", "\\x00")
    assert text in (f"{shown}: no such file or directory", f"cannot read {shown}: File name too long")


@pytest.mark.parametrize("name", ["a.doc", "a", "a.csv.gz", ".csv"])
def test_an_unknown_form(name: str, write: Write) -> None:
    path = write(name, "a\n1\n")
    assert refusal(path) == f"{path}: unknown form {path.suffix!r}; {KNOWN}"


@pytest.mark.parametrize("name", ["", "a\nb.csv", "a\u2028.csv", "hf://a/b\n"])
def test_a_name_with_line_breaks(name: str) -> None:
    assert refusal(name) == f"{name!r}: no table has such a name; {KNOWN}"


def test_suffixes_may_be_in_capitals(write: Write) -> None:
    assert content(read_table(write("a.CSV", "a\n1\n"))) == {"a": ["1"]}


@pytest.mark.parametrize("quotes", [True, False])
def test_quotes_are_a_matter_of_delimited_text(quotes: bool, write: Write, tmp_path: Path) -> None:
    for source in (write("a.jsonl", '{"a": 1}\n'), tmp_path, "hf://a/b"):
        assert refusal(source, quotes=quotes) == f"{source}: quotes are a matter of .csv and .tsv files only"


def test_a_file_that_cannot_be_read(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> int:
        raise PermissionError(13, "Permission denied", str(self))

    sources = [write(f"a{suffix}", "x") for suffix in (".csv", ".tsv", ".jsonl", ".parquet")]
    folder = save(tmp_path / "saved", pa.table({"a": [1]}))
    monkeypatch.setattr("quantlib.support.parsing._open", refuse)
    for source in sources:
        assert refusal(source) == f"cannot read {source}: Permission denied"
    assert refusal(folder) == f"cannot read {folder / 'state.json'}: Permission denied"


# The hub


class Part:
    """A split, as `datasets` gives it."""

    def __init__(self, data: Any, features: object) -> None:
        self.data, self._features = data, features

    @property
    def features(self) -> Part:
        return self

    def to_dict(self) -> object:
        return self._features

    def with_format(self, form: str) -> Any:
        assert form == "arrow"
        return self.data


class DatasetsError(Exception):
    pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Any]]:
    """Puts a `datasets` in place that answers with `answer`, or raises it; returns the calls."""

    def install(answer: Any) -> list[Any]:
        calls: list[Any] = []
        package, exceptions = ModuleType("datasets"), ModuleType("datasets.exceptions")

        def load_dataset(*arguments: Any, **options: Any) -> Any:
            calls.append((arguments, options))
            if isinstance(answer, Exception):
                raise answer
            return answer

        package.load_dataset = load_dataset  # type: ignore[attr-defined]
        exceptions.DatasetsError = DatasetsError  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", package)
        monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)
        return calls

    return install


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("hf://org/na-me.x", ("org/na-me.x", None, None, None)),
        ("hf://org/name/conf-1.2", ("org/name", "conf-1.2", None, None)),
        ("hf://org/name@refs/pr/1", ("org/name", None, "refs/pr/1", None)),
        ("hf://org/name:test", ("org/name", None, None, "test")),
        ("hf://org/name/c@abc:test.x", ("org/name", "c", "abc", "test.x")),
    ],
)
def test_a_data_set_of_the_hub(
    source: str, arguments: tuple[Any, ...], hub: Callable[[Any], list[Any]]
) -> None:
    calls = hub(Part(LABELLED, FEATURES))
    table = read_table(source)
    name, config, revision, split = arguments
    assert calls == [((name, config), {"revision": revision, "split": split})]
    assert table.column("label") == ["pos", "neg", None, None]
    assert table.where(1) == f"{source} row 2"


def test_splits_of_the_hub(hub: Callable[[Any], list[Any]]) -> None:
    part = Part(LABELLED, FEATURES)
    hub({"train": part})
    assert len(read_table("hf://a/b")) == 4
    hub({"train": part, "test": part})
    assert refusal("hf://a/b") == "hf://a/b: has several splits; add :SPLIT, one of 'train', 'test'"
    hub(Part(LABELLED.slice(0, 0), FEATURES))
    assert refusal("hf://a/b") == "hf://a/b: no rows"


@pytest.mark.parametrize(
    "source",
    ["hf://", "hf://name", "hf://a/b:", "hf://a/b@", "hf://a/b/c/d", "hf://a/b:x:y", "hf://../b", "hf://ä/b"],
)
def test_a_hub_name_that_is_none(source: str) -> None:
    assert refusal(source) == (
        f"{source!r}: no data set of the hub; expected hf://ORG/NAME[/CONFIG][@REVISION][:SPLIT]"
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), "Couldn't reach 'a/b' on the Hub"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (
            ValueError("Config name is missing.\nPick one of: ['x']"),
            "Config name is missing. Pick one of: ['x']",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), "Dataset scripts are no longer supported"),
        (TimeoutError(), "TimeoutError"),
        (DatasetsError("x" * 1000), "x" * 300),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_hub_that_does_not_answer(error: Exception, reason: str, hub: Callable[[Any], list[Any]]) -> None:
    hub(error)
    assert refusal("hf://a/b") == f"hf://a/b: cannot be loaded from the hub ({reason})"


def test_a_fault_of_our_own_is_not_taken_for_the_hub(hub: Callable[[Any], list[Any]]) -> None:
    hub(TypeError("a bug"))
    with pytest.raises(TypeError):
        read_table("hf://a/b")


def test_without_the_package_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("hf://a/b") == (
        "hf://a/b needs the package datasets: pip install 'bert-quantlib[hub]'; or give a local file"
    )


# Properties

any_text = st.text(
    st.one_of(
        st.sampled_from(",;|\t\n\r\"'\u2028\x0b\x85\0\ufeff \\"),
        st.characters(codec="utf-8"),
    ),
    max_size=12,
)
names = st.lists(any_text.filter(str.strip), min_size=2, max_size=4, unique=True)
numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.booleans(), st.none())


@st.composite
def tables(draw: st.DrawFn, cells: st.SearchStrategy[Any]) -> Columns:
    header = draw(names)
    rows = draw(st.integers(1, 5))
    return {name: draw(st.lists(cells, min_size=rows, max_size=rows)) for name in header}


def without_bom(columns: Columns) -> bool:
    return not next(iter(columns)).startswith("\ufeff")


properties = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100
)


@properties
@given(columns=tables(any_text), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_csv_comes_back_as_written(columns: Columns, quoting: int, write: Write) -> None:
    data = delimited(columns, quoting=quoting)
    assert content(read_table(write("a.csv", b"\xef\xbb\xbf" + data))) == columns


@properties
@given(columns=tables(any_text), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_quoted_tsv_comes_back_as_written(columns: Columns, quoting: int, write: Write) -> None:
    path = write("a.tsv", b"\xef\xbb\xbf" + delimited(columns, "\t", quoting))
    assert content(read_table(path, quotes=True)) == columns
    try:
        by_rule = content(read_table(path))
    except InputError as error:
        # Refused only where both readings are whole.
        assert "nothing tells which" in str(error)
        assert quoting == csv.QUOTE_MINIMAL
        read_table(path, quotes=False)
    else:
        assert by_rule == columns


@properties
@given(columns=tables(any_text.map(lambda text: re.sub(r"[\t\n]|\r\Z", "", text))))
def test_plain_tsv_comes_back_as_written(columns: Columns, write: Write) -> None:
    plain = {
        re.sub(r"[\t\n\r]", " ", name) + str(i): cells for i, (name, cells) in enumerate(columns.items())
    }
    lines = ["\t".join(row) for row in [list(plain), *zip(*plain.values(), strict=True)]]
    path = write("a.tsv", b"\xef\xbb\xbf" + "".join(f"{line}\n" for line in lines).encode())
    assert content(read_table(path, quotes=False)) == plain


@properties
@given(columns=tables(st.one_of(any_text, numbers, st.lists(st.one_of(any_text, numbers), max_size=3))))
def test_json_lines_come_back_as_written(columns: Columns, write: Write) -> None:
    assert content(read_table(write("a.jsonl", jsonl(columns)))) == columns


@properties
@given(
    columns=tables(st.one_of(any_text, st.none())),
    more=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
)
def test_arrow_comes_back_as_written(columns: Columns, more: list[int], write: Write, tmp_path: Path) -> None:
    rows = len(next(iter(columns.values())))
    columns = {**columns, "\nlists": [more] * rows, "\nnumbers": [0.5] * rows}
    assert content(read_table(write("a.parquet", parquet(columns)))) == columns
    assert content(read_table(save(tmp_path / "saved", pa.table(dict(columns))))) == columns


# Hostile input


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The same bytes, cut off or with some of them changed."""
    if draw.random() < 0.4:
        return data[: draw.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def hostile_text(draw: random.Random) -> bytes:
    return "".join(draw.choices(TEXT_PIECES, k=draw.randint(1, 60))).encode(
        draw.choice(["utf-8", "utf-16", "utf-16-le"])
    )


def hostile() -> Iterator[tuple[str, bytes]]:
    """300 file names with what is in the file."""
    draw = random.Random(20191206)
    suffixes = ("csv", "tsv", "jsonl", "parquet", "arrow")
    files = {
        "csv": delimited(ROWS),
        "tsv": delimited(ROWS, "\t"),
        "jsonl": jsonl(ROWS),
        "parquet": parquet(ROWS),
        "arrow": stream(pa.table(dict(ROWS))),
    }
    wide = {f"c{i}": ["x", "y"] for i in range(10_000)}
    fixed = [
        *((f"cell.{suffix}", b'a,b\n"' + b"x" * 2**20 + b'",1\n') for suffix in suffixes),
        *((f"open.{suffix}", b'a\tb\n"' + b"x\n" * 2**19) for suffix in suffixes),
        *((f"quotes.{suffix}", b'"' * 2**20) for suffix in suffixes),
        *((f"deep.{suffix}", b'{"a":' * 2**18) for suffix in suffixes),
        *((f"commas.{suffix}", b"," * 2**18) for suffix in suffixes),
        *((f"breaks.{suffix}", b"\r\n" * 2**18) for suffix in suffixes),
        ("wide.csv", delimited(wide)),
        ("wide.tsv", delimited(wide, "\t")),
        ("wide.jsonl", jsonl(wide)),
        ("wide.parquet", parquet(wide)),
        ("wide.arrow", stream(pa.table(dict(wide)))),
        ("mixed.csv", "a,b\né,1\n".encode() + "é,2\n".encode("latin-1") + "é,3\n".encode("utf-16")),
        ("separators.csv", b"a;b\n1,2\n1\t2\n1|2\n"),
        ("separators.tsv", b"a,b\n1,2\n3\t4\n"),
    ]
    yield from fixed
    for i in range(300 - len(fixed)):
        suffix = suffixes[i % 5]
        data = (
            draw.randbytes(draw.randint(1, 300)),
            hostile_text(draw),
            damaged(files[suffix], draw),
            damaged(files[suffix], draw),
            files[draw.choice(suffixes)],
        )
        yield f"{i}.{suffix}", draw.choice(data)


def test_hostile_files_give_a_table_or_one_line(write: Write, tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", pa.table({"a": [1]}))
    outcomes: dict[str, set[str]] = {}
    count = 0
    for name, data in hostile():
        count += 1
        path = write(name, data)
        if path.suffix == ".arrow":
            path.replace(folder / "data-00000-of-00001.arrow")
            path = folder
        outcome = "table"
        try:
            table = read_table(path)
            assert isinstance(table, Table)
            for column in table.columns[:20]:
                assert len(table.column(column)) == len(table) > 0
        except InputError as error:
            assert str(error).splitlines() == [str(error)], name
            outcome = "refused"
        outcomes.setdefault(path.suffix, set()).add(outcome)
    assert count == 300
    assert outcomes == {suffix: {"table", "refused"} for suffix in (".csv", ".tsv", ".jsonl", ".parquet", "")}
