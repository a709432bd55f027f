"""Recipes: what they are, the table of them, their files, and how they are chosen by name."""

from quantlib.compression.recipes.file import read_recipe, write_recipe
from quantlib.compression.recipes.recipe import PRECISIONS, Precision, Recipe
from quantlib.compression.recipes.select import (
    Asked,
    asked_recipes,
    distinct_on,
    get_recipes,
    on_engine,
    reason_against,
    unpruned,
)
from quantlib.compression.recipes.table import DEFAULT_RECIPES, PEERS, RECIPES

__all__ = [
    "DEFAULT_RECIPES",
    "PEERS",
    "PRECISIONS",
    "RECIPES",
    "Asked",
    "Precision",
    "Recipe",
    "asked_recipes",
    "distinct_on",
    "get_recipes",
    "on_engine",
    "read_recipe",
    "reason_against",
    "unpruned",
    "write_recipe",
]
