"""Recipes: what they are, the table of them, their files, and how they are chosen by name."""

from quantlib.compression.recipes.file import read_recipe, write_recipe
from quantlib.compression.recipes.recipe import PRECISIONS, Precision, Recipe
from quantlib.compression.recipes.select import get_recipes, unpruned
from quantlib.compression.recipes.table import DEFAULT_RECIPES, RECIPES

__all__ = [
    "DEFAULT_RECIPES",
    "PRECISIONS",
    "RECIPES",
    "Precision",
    "Recipe",
    "get_recipes",
    "read_recipe",
    "unpruned",
    "write_recipe",
]
