"""CSV and TSV: cells are text, and no number is guessed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlib.data.tables.table import Table, check_names, listed
from quantlib.data.text import quoted, read_text, split_lines
from quantlib.support.errors import InputError

# What csv takes on every platform (a C long).
_MAX_CELL = 2**31 - 1

# The first line that is not blank, with the lines that its quoted names go on to.
_HEADER = re.compile(r'\s*((?:[^"\n]++|"[^"]*+")*+)')
_QUOTED_TEXT = re.compile(r'"[^"]*+"')
_QUOTED_NAME = re.compile(r'(?:\A|\t)"[^"]*+(?:""[^"]*+)*+"(?:\t|\s*\Z)')
# A cell with what ends it; the group is what stands between quotes.
_TSV_CELL = re.compile(r'(?:"([^"]*+(?:""[^"]*+)*+)"|[^\t\n]*+)(?:\t|\r?(?:\n|\Z))')

# What csv says of a row, in words that tell what would be right.
_CSV_PROBLEMS = (
    ("unexpected end of data", "a quoted cell that begins here is not closed"),
    ("expected after", "text after the closing quote of a cell; inside a quoted cell write a quote twice"),
    ("new-line character", "a carriage return outside quotes; end lines with LF or CRLF"),
)


class _Malformed(Exception):
    """Text that is no table; line: where, 0 for the whole of it."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line

    def refusal(self, path: Path) -> InputError:
        return InputError(f"{path} line {self.line}: {self}" if self.line else f"{path}: {self}")


def read_csv(path: Path, quotes: bool | None) -> Table:
    """The rows of a CSV file (RFC 4180).

    The delimiter is a comma; or, if the header has no comma outside quotes, `;`, a tab or `|` if it has that.

    Args:
        path: the file.
        quotes: False if quotes are characters of the text.

    Raises:
        InputError: the file cannot be read, or is no table.
    """
    text = read_text(path)
    bare = _QUOTED_TEXT.sub("", _header(text))
    delimiter = next((sign for sign in ",;\t|" if sign in bare), ",")
    try:
        return _table(path, _rows(text, delimiter, quotes is not False))
    except _Malformed as error:
        raise error.refusal(path) from error


def read_tsv(path: Path, quotes: bool | None) -> Table:
    """The rows of a TSV file.

    GLUE's files have stray quotes that are characters of the text; what pandas writes is quoted. A file is
    quoted if a name in its header is, or if all of it can be read so and a cell needs its quotes.

    Args:
        path: the file.
        quotes: whether cells may be quoted; None to go by that rule.

    Raises:
        InputError: the file cannot be read, is no table, or is one with quotes and another one without.
    """
    text = read_text(path)
    if quotes is None and '"' not in text:
        quotes = False
    if quotes is None and _QUOTED_NAME.search(_header(text)):
        quotes = True
    try:
        return _undecided(path, text) if quotes is None else _table(path, _rows(text, "\t", quotes))
    except _Malformed as error:
        raise error.refusal(path) from error


def read_lines_of_text(path: Path) -> Table:
    """A text on each line, in a column "text"; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, or has no text.
    """
    lines = [
        (number, line) for number, line in enumerate(split_lines(read_text(path)), start=1) if line.strip()
    ]
    if not lines:
        raise InputError(f"{path}: no rows, the file is empty")
    places, texts = zip(*lines, strict=True)
    return Table(str(path), ("text",), {"text": texts}, places, "line")


def is_quoted_tsv(text: str) -> bool:
    """Whether a TSV is surely quoted: a name in its header is, or a cell that has to be."""
    if '"' not in text:
        return False
    if _QUOTED_NAME.search(_header(text)):
        return True
    return isinstance(_attempt(Path(), text, quotes=True), Table) and _needs_quotes(text) == "quote"


def _undecided(path: Path, text: str) -> Table:
    """A TSV with quotes, none of them in the header."""
    with_quotes = _attempt(path, text, quotes=True)
    evidence = _needs_quotes(text) if isinstance(with_quotes, Table) else None
    if isinstance(with_quotes, Table) and evidence == "quote":
        return with_quotes
    without = _attempt(path, text, quotes=False)
    if isinstance(with_quotes, Table) and evidence == "break":
        if isinstance(without, Table):
            # A sentence may open a quotation that a later row closes; reading it as one cell would lose rows.
            raise _Malformed(
                0,
                f"{len(with_quotes)} rows if cells are quoted, {len(without)} if quotes are characters of "
                "the text, and nothing tells which; quote the header too, or say which (quotes)",
            )
        return with_quotes
    if isinstance(without, Table):
        return without
    # The reading that came further is the one that was meant.
    if isinstance(with_quotes, _Malformed) and with_quotes.line > without.line:
        raise with_quotes
    raise without


def _attempt(path: Path, text: str, *, quotes: bool) -> Table | _Malformed:
    try:
        return _table(path, _rows(text, "\t", quotes))
    except _Malformed as error:
        return error


def _table(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Table:
    with _cells_of_any_size():
        return _columns(path, rows)


def _columns(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Table:
    line, names = next(rows, (0, []))
    if not names:
        raise _Malformed(0, "no rows, the file is empty")
    names = _named(names)
    check_names(names, f"{path} line {line}")
    columns: list[list[str]] = [[] for _ in names]
    places = []
    for line, row in rows:
        if len(row) != len(names):
            raise _Malformed(
                line, f"{len(row)} cells, expected {len(names)} ({listed(names)}): {quoted(row)}"
            )
        places.append(line)
        for column, cell in zip(columns, row, strict=True):
            column.append(cell)
    if not places:
        raise _Malformed(0, "no rows after the header")
    return Table(str(path), tuple(names), dict(zip(names, columns, strict=True)), tuple(places), "line")


def _named(names: list[str]) -> list[str]:
    """The names of the header; a first one that is empty is what pandas calls its index."""
    return ["index", *names[1:]] if not names[0] and "index" not in names and len(names) > 1 else names


def _rows(text: str, delimiter: str, quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """The line on which each row begins, with its cells; blank lines are none."""
    return _quoted_rows(text, delimiter) if quotes else _plain_rows(text, delimiter)


def _plain_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(split_lines(text), start=1):
        if line:
            yield number, line.split(delimiter)


def _quoted_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = next((words for sign, words in _CSV_PROBLEMS if sign in str(error)), str(error))
            raise _Malformed(line, f"{reason}: {quoted(split_lines(text)[line - 1])}") from error
        if row:
            yield line, row


def _lines(text: str) -> Iterator[str]:
    """The lines of a text with their ends, which are part of a quoted cell."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    # The limit is the process's, and other code may count on it.
    limit = csv.field_size_limit(_MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _header(text: str) -> str:
    match = _HEADER.match(text)
    return match[1] if match else ""


def _needs_quotes(text: str) -> str | None:
    """What in a well-formed quoted TSV needs quotes: a "quote" inside a cell, else a "break", or None."""
    evidence = None
    for match in _TSV_CELL.finditer(text):
        cell = match[1]
        if cell is not None and '""' in cell:
            return "quote"
        if cell is not None and any(sign in cell for sign in "\t\n\r"):
            evidence = "break"
    return evidence
