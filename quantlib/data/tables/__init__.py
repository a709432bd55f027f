"""A user's rows: `read` finds their form; `delimited`, `jsonl`, `arrow` and `hub` make a `Table` of them."""

from quantlib.data.tables.read import read_table
from quantlib.data.tables.table import Table

__all__ = ["Table", "read_table"]
