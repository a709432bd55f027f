"""Recipes by name: rows of the table, and files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from quantlib.compression.recipes.file import read_recipe
from quantlib.compression.recipes.recipe import Recipe
from quantlib.compression.recipes.table import RECIPES
from quantlib.support.errors import InputError

_PRUNED = re.compile(r"prune(?P<percent>[1-9][0-9]?)_(?P<base>.+)")


def get_recipes(names: tuple[str, ...]) -> tuple[Recipe, ...]:
    """The recipes of these names, in their order; `all` stands for the whole table.

    A name that ends in .toml is a recipe file, as `read_recipe` reads it.

    Raises:
        InputError: an unknown name, one given twice, or a file that is no recipe.
    """
    if names == ("all",):
        return tuple(RECIPES.values())
    recipes: dict[str, Recipe] = {}
    for name in names:
        if name == "all":
            raise InputError("'all' stands alone: it names every recipe")
        if name.endswith(".toml"):
            recipe = read_recipe(Path(name))
            if recipe.name in RECIPES or _PRUNED.fullmatch(recipe.name):
                raise InputError(f"{name}: the name {recipe.name!r} is taken by the table; choose another")
        else:
            recipe = known_recipe(name)
        if recipe.name in recipes:
            raise InputError(f"recipe {recipe.name!r} is given twice")
        recipes[recipe.name] = recipe
    return tuple(recipes.values())


def unpruned(name: str) -> str:
    """The name of the recipe without the neurons that are pruned before it: quant_2 for prune50_quant_2."""
    pruned = _PRUNED.fullmatch(name)
    return pruned["base"] if pruned else name


def known_recipe(name: str) -> Recipe:
    """The recipe of a name: a row of the table, or one of its rows on a pruned model (`prune50_quant_2`).

    Raises:
        InputError: there is none of this name.
    """
    pruned = _PRUNED.fullmatch(name)
    base = pruned["base"] if pruned else name
    if base not in RECIPES:
        raise InputError(
            f"unknown recipe {name!r}; known: all, {', '.join(RECIPES)}, each of them on a model that has "
            "lost, for example, half of its neurons (prune50_quant_2), or a file that ends in .toml"
        )
    if not pruned:
        return RECIPES[base]
    percent = int(pruned["percent"])
    summary = f"{percent} % of the neurons pruned, then {RECIPES[base].summary}"
    return replace(RECIPES[base], name=name, summary=summary, prune=percent / 100)
