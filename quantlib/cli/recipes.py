"""`quantlib recipes`: the table of recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from quantlib.cli.app import print_json, wide_console
from quantlib.cli.words import Json


def command() -> Callable[..., None]:
    """The command."""
    return recipes


def recipes(json: Json = False) -> None:
    """List the recipes: what each does, and what it is for. A star marks those that a run takes by default.

    Example: quantlib recipes
    """
    from quantlib.compression.recipes import DEFAULT_RECIPES, PEERS, RECIPES
    from quantlib.support.console import plain_table

    if json:
        print_json({name: asdict(recipe) for name, recipe in (RECIPES | PEERS).items()})
        return
    table = plain_table()
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it does")
    for name, recipe in (RECIPES | PEERS).items():
        words = recipe.summary + (f" (not to be shipped: {recipe.report_only})" if recipe.report_only else "")
        table.add_row(name + "*" * (name in DEFAULT_RECIPES), words)
    wide_console().print(table)
