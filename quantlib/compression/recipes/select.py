"""Recipes by name: rows of the tables, and files; and what each of them is on an engine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from quantlib.compression.recipes.file import read_recipe
from quantlib.compression.recipes.recipe import Recipe
from quantlib.compression.recipes.table import PEERS, RECIPES
from quantlib.compression.variants import at_engine, split_engine
from quantlib.machine.engines import Engine, get_engine
from quantlib.support.errors import InputError

_PRUNED = re.compile(r"prune(?P<percent>[1-9][0-9]?)_(?P<base>.+)")


@dataclass(frozen=True)
class Asked:
    """A recipe that was asked for, and the engine that was named with it (quant_1@openvino); None for any."""

    recipe: Recipe
    engine: str | None = None


def asked_recipes(names: tuple[str, ...]) -> tuple[Asked, ...]:
    """The recipes of these names, in their order; `all` stands for the whole table, which has no peers.

    A name that ends in .toml is a recipe file, as `read_recipe` reads it. Behind an @ an engine may stand.

    Raises:
        InputError: an unknown name, one given twice, a file that is no recipe, an unknown engine, or one that
            the recipe is not for.
    """
    if names == ("all",):
        return tuple(map(Asked, RECIPES.values()))
    asked: dict[tuple[str, str | None], Asked] = {}
    recipes: dict[str, Recipe] = {}
    for written in names:
        name, engine = split_engine(written)
        if name == "all":
            raise InputError("'all' stands alone: it names every recipe")
        recipe = recipes[name] if name in recipes else _named(name)
        if any(other.name == recipe.name for key, other in recipes.items() if key != name):
            raise InputError(f"recipe {recipe.name!r} is given twice")
        recipes[name] = recipe
        if engine is not None:
            why_not = reason_against(recipe, get_engine(engine))
            if why_not:
                raise InputError(f"recipe {written}: {why_not}")
        if (name, engine) in asked:
            raise InputError(f"recipe {_shown(recipe, engine)!r} is given twice")
        asked[name, engine] = Asked(recipe, engine)
    return tuple(asked.values())


def get_recipes(names: tuple[str, ...]) -> tuple[Recipe, ...]:
    """The recipes of these names, each once, whatever engines are named with them.

    Raises:
        InputError: as `asked_recipes`.
    """
    return tuple({each.recipe.name: each.recipe for each in asked_recipes(names)}.values())


def _shown(recipe: Recipe, engine: str | None) -> str:
    return recipe.name if engine is None else at_engine(recipe.name, engine)


def _named(name: str) -> Recipe:
    if not name.endswith(".toml"):
        return known_recipe(name)
    recipe = read_recipe(Path(name))
    if recipe.name in RECIPES | PEERS:
        raise InputError(f"{name}: the name {recipe.name!r} is taken by the table; choose another")
    if _PRUNED.fullmatch(recipe.name):
        raise InputError(
            f"{name}: the name {recipe.name!r} is that of a recipe of the table on a pruned model; choose "
            "another that does not begin with prune, a percentage and _"
        )
    return recipe


def unpruned(name: str) -> str:
    """The name of the recipe without the neurons that are pruned before it: quant_2 for prune50_quant_2."""
    pruned = _PRUNED.fullmatch(name)
    return pruned["base"] if pruned else name


def known_recipe(name: str) -> Recipe:
    """The recipe of a name: a row of the tables, or one on a pruned model (`prune50_quant_2`).

    Raises:
        InputError: there is none of this name.
    """
    if name in PEERS:
        return PEERS[name]
    pruned = _PRUNED.fullmatch(name)
    base = pruned["base"] if pruned else name
    if base not in RECIPES:
        raise InputError(
            f"unknown recipe {name!r}; known: all, {', '.join(RECIPES)}, each of them on a model that has "
            "lost, for example, half of its neurons (prune50_quant_2), what other tools make "
            f"({', '.join(PEERS)}), or a file that ends in .toml"
        )
    if not pruned:
        return RECIPES[base]
    percent = int(pruned["percent"])
    summary = f"{percent} % of the neurons pruned, then {RECIPES[base].summary}"
    return replace(RECIPES[base], name=name, summary=summary, prune=percent / 100)


def reason_against(recipe: Recipe, engine: Engine) -> str:
    """Why an engine cannot run what a recipe makes; empty where it can."""
    if not engine.quantizers:
        return f"{engine.label} is for models in float"
    if recipe.quantizer not in engine.quantizers:
        return f"the models of {recipe.quantizer} are not for {engine.label}"
    if engine.operators == "microsoft" or recipe.quantizer != "quantlib":
        return ""
    own = f"that {engine.label} does not know"
    if recipe.mode != "static" or recipe.activation_type == "QUInt16":
        return f"{recipe.mode} recipes with these activations need operators {own}"
    if recipe.embeddings == "int4" or recipe.storage == "int4":
        return f"4 bits need operators {own}"
    if any(precision != "float" for _, precision in recipe.nodes):
        return f"exceptions other than float need operators {own}"
    return ""


def on_engine(recipe: Recipe, engine: Engine) -> Recipe:
    """A recipe as an engine takes it: of ONNX's own operators, QDQ with unsigned activations.

    Raises:
        ValueError: it is not for the engine, see `reason_against`.
    """
    if reason_against(recipe, engine):
        raise ValueError(f"{recipe.name} is not for {engine.name}")
    if engine.operators == "microsoft" or recipe.quantizer != "quantlib":
        return recipe
    return replace(
        recipe,
        format="QDQ",
        activation_type="QUInt8",
        summary=f"{recipe.summary}; for {engine.label} as QDQ, U8S8",
    )


def distinct_on(recipes: Iterable[Recipe], engine: Engine) -> tuple[Recipe, ...]:
    """The recipes that an engine can run, as it takes them; of several that are one there, the first."""
    distinct: dict[str, Recipe] = {}
    for recipe in recipes:
        if not reason_against(recipe, engine):
            there = on_engine(recipe, engine)
            # Where nothing is changed for the engine, whoever names two recipes means two.
            distinct.setdefault(recipe.name if there is recipe else repr(there.file_key()), there)
    return tuple(distinct.values())
