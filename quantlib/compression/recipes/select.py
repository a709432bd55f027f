"""Recipes by name: rows of the table, and files."""

from __future__ import annotations

from pathlib import Path

from quantlib.compression.recipes.file import read_recipe
from quantlib.compression.recipes.recipe import Recipe
from quantlib.compression.recipes.table import RECIPES
from quantlib.support.errors import InputError


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
            if recipe.name in RECIPES:
                raise InputError(f"{name}: the name {recipe.name!r} is taken by the table; choose another")
        elif name in RECIPES:
            recipe = RECIPES[name]
        else:
            raise InputError(
                f"unknown recipe {name!r}; known: all, {', '.join(RECIPES)}, or a file that ends in .toml"
            )
        if recipe.name in recipes:
            raise InputError(f"recipe {recipe.name!r} is given twice")
        recipes[recipe.name] = recipe
    return tuple(recipes.values())
