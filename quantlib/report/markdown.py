"""GitHub's Markdown: text that stays text, and rows of tables."""

from __future__ import annotations

from collections.abc import Sequence

_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "`": "\\`", "\n": " ", "\r": " "}
)


def escape(text: str) -> str:
    """A text that makes no tag, no code and no further cell."""
    return text.translate(_ESCAPES)


def literal(text: str) -> str:
    """A text of the user's data as code: nothing in it makes a link, a picture or a mention."""
    words = " ".join(text.replace("`", "'").split()).replace("|", "\\|")
    return f"`{words}`" if words else ""


def row(cells: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"
