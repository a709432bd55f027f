"""The code that makes an artifact, as part of its cache key: other code, other key.

`code_key` reads sources, and runs none of them. It follows

- a module, named with its room ("compression.quantize"): the module, every module of quantlib that it
  imports, at the top or inside a function, and so on. A package's `__init__` counts where something is taken
  from it, not where only a module below it is;
- a function, such as the one that fills a cache entry: its definition, and the definitions of its own room
  that it uses, one by one; modules of other rooms are followed as above. So a step of an experiment depends
  on the code that it uses, not on other imports of its module. A variable of an enclosing function counts
  with the statement that binds it. Parameters of an enclosing function are data, which the caller has to put
  into the key.

What is hashed is the syntax tree without docstrings, comments, positions, annotations of functions, and
imports for type checkers. So rewording and formatting change no key.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import FunctionType
from typing import Any

# Modules that change no artifact: texts for users, the cache itself, and the table of recipes, since the keys
# of what a recipe makes hold the recipe's fields.
DECIDE_NOTHING = frozenset(
    {
        "compression.recipes.table",
        "support.cache",
        "support.code",
        "support.console",
        "support.directories",
        "support.errors",
        "support.eviction",
        "support.exhaustion",
        "support.interruption",
        "support.locks",
        "support.progress",
        "support.scratch",
    }
)
ROOT = Path(__file__).parents[1]

Import = ast.Import | ast.ImportFrom
Scope = ast.Module | ast.FunctionDef


def code_key(*parts: str | Callable[..., object], ignore: Collection[str] = ()) -> dict[str, str]:
    """The SHA-256 of the code behind modules and functions of quantlib, {module or module:definition: hash}.

    Args:
        parts: modules, named with their room ("compression.quantize"), and functions.
        ignore: modules that do not change this artifact, besides `DECIDE_NOTHING`.

    Raises:
        ValueError: there is no such module, or a function is not made by a `def` in quantlib.
    """
    ignored = DECIDE_NOTHING.union(ignore)
    key: dict[str, str] = {}
    modules: list[str] = []
    for part in parts:
        if isinstance(part, str):
            modules.append(f"quantlib.{part}")
        else:
            definitions, imported = _follow(part)
            key |= definitions
            modules += imported
    followed: set[str] = set()
    while modules:
        module = modules.pop()
        name = module.removeprefix("quantlib.")
        if module not in followed and name not in ignored:
            followed.add(module)
            key[name] = _module_hash(module)
            modules += _imports(module)
    return dict(sorted(key.items()))


# Modules


def _file_of(module: str) -> Path | None:
    """The file of a module of quantlib, None if there is none."""
    stem = ROOT.joinpath(*module.split(".")[1:])
    return next((path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file()), None)


@cache
def _source(module: str) -> ast.Module:
    """The syntax tree of a module: only the parts that are hashed."""
    path = _file_of(module)
    if path is None:
        raise ValueError(f"no module {module}")
    tree: ast.Module = _HashedParts().visit(ast.parse(path.read_bytes()))
    return tree


class _HashedParts(ast.NodeTransformer):
    """Removes the parts of a tree that are not hashed: they change nothing when the code runs."""

    def visit_Expr(self, node: ast.Expr) -> Any:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        return node.orelse if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING") else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> Any:
        node.annotation = None
        return node


def _hash(nodes: Sequence[ast.AST]) -> str:
    return hashlib.sha256("\n".join(ast.dump(node) for node in nodes).encode()).hexdigest()


@cache
def _module_hash(module: str) -> str:
    return _hash([_source(module)])


@cache
def _imports(module: str) -> frozenset[str]:
    """The modules of quantlib that a module imports."""
    statements = [node for node in ast.walk(_source(module)) if isinstance(node, Import)]
    return frozenset(target for node in statements for _, target, _ in _targets(node, module))


def _targets(statement: Import, module: str) -> Iterator[tuple[str, str, str | None]]:
    """What an import takes from quantlib: (its name here, the module it is from, its name there or None)."""
    path = _file_of(module)
    package = module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
    for alias in statement.names:
        target, inner = alias.name, None
        if isinstance(statement, ast.ImportFrom):
            target = resolve_name("." * statement.level + (statement.module or ""), package)
            below = f"{target}.{alias.name}"
            if target.split(".")[0] == "quantlib":
                is_module = _file_of(below) is not None and alias.name not in _bindings(_source(target))
                target, inner = (below, None) if is_module else (target, alias.name)
        if target.split(".")[0] == "quantlib":
            yield alias.asname or alias.name, target, inner


# Functions


def _follow(function: Callable[..., object]) -> tuple[dict[str, str], list[str]]:
    """The hashes of a function and all definitions that it uses in its room; the modules of other rooms."""
    if not isinstance(function, FunctionType) or function.__name__ == "<lambda>":
        raise ValueError(f"{function!r} is not a function made by a def")
    start, line = _module_in(Path(inspect.getfile(function))), function.__code__.co_firstlineno
    return _follow_definition(start, line, function.__qualname__.replace(".<locals>", ""))


@cache
def _follow_definition(start: str, line: int, name: str) -> tuple[dict[str, str], list[str]]:
    definition, enclosing = _definition(line, _source(start))
    hashes: dict[str, str] = {}
    modules: list[str] = []
    pending: list[tuple[str, str, Sequence[ast.AST], Sequence[Scope]]] = []
    pending.append((start, name, [definition], enclosing))

    def follow_import(statement: Import, module: str, name: str | None, attribute: str | None) -> None:
        for bound, target, inner in _targets(statement, module):
            definition_name = inner or attribute
            if name not in (None, bound):
                continue
            if _room(target) == _room(start) and definition_name in _bindings(_source(target)):
                nodes = _bindings(_source(target))[definition_name]
                pending.append((target, definition_name, nodes, [_source(target)]))
            else:
                modules.append(target)

    while pending:
        module, label, nodes, scopes = pending.pop()
        if f"{module}:{label}" in hashes:
            continue
        hashes[f"{module}:{label}"] = _hash(nodes)
        for statement in _walk(nodes):
            if isinstance(statement, Import):
                follow_import(statement, module, None, None)
        for name, attribute in _names(nodes):
            binding = (scope for scope in scopes if name in _bindings(scope) or name in _parameters(scope))
            scope = next(binding, scopes[-1])
            for node in _bindings(scope).get(name, ()):
                if isinstance(node, Import):
                    follow_import(node, module, name, attribute)
                else:
                    inner = name if isinstance(scope, ast.Module) else f"{scope.name}.{name}"
                    pending.append((module, inner, _bindings(scope)[name], scopes))
    return {name.removeprefix("quantlib."): digest for name, digest in hashes.items()}, modules


def _module_in(path: Path) -> str:
    """The name of the module of quantlib in a file."""
    if not path.is_relative_to(ROOT):
        raise ValueError(f"{path} is not a module of quantlib")
    return ".".join(["quantlib", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def _room(module: str) -> list[str]:
    return module.split(".")[1:2]


def _definition(line: int, tree: ast.Module) -> tuple[ast.FunctionDef, list[Scope]]:
    """The function that begins at a line, with its decorators; the scopes around it, innermost first."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    node = next(f for f in functions if line == min([f.lineno, *(d.lineno for d in f.decorator_list)]))
    enclosing = [f for f in functions if f is not node and any(inner is node for inner in ast.walk(f))]
    return node, [*reversed(enclosing), tree]


def _walk(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        yield from ast.walk(node)


def _names(nodes: Sequence[ast.AST]) -> set[tuple[str, str | None]]:
    """The names that code uses but does not bind, each with the attribute that is read of it, or None."""
    inside: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            inside |= _parameters(node).union(_bindings(node))
    attributes = {id(node.value): node.attr for node in _walk(nodes) if isinstance(node, ast.Attribute)}
    names = [n for n in _walk(nodes) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    return {(name.id, attributes.get(id(name))) for name in names if name.id not in inside}


def _parameters(scope: Scope) -> set[str]:
    return (
        set()
        if isinstance(scope, ast.Module)
        else {a.arg for a in ast.walk(scope.args) if isinstance(a, ast.arg)}
    )


@cache
def _bindings(scope: Scope) -> dict[str, list[ast.AST]]:
    """What binds each name of a scope: definitions, imports, assignments; for loops and `with` their head."""
    bindings: dict[str, list[ast.AST]] = {}
    statements: list[ast.AST] = list(scope.body)
    for node in statements:  # grows by the statements inside of statements
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bindings.setdefault(node.name, []).append(node)
        elif isinstance(node, Import):
            for alias in node.names:
                bindings.setdefault(alias.asname or alias.name, []).append(node)
        else:
            blocks = [
                inner
                for inner in ast.iter_child_nodes(node)
                if isinstance(inner, ast.stmt | ast.excepthandler)
            ]
            statements += blocks
            head = (
                [inner for inner in ast.iter_child_nodes(node) if inner not in blocks] if blocks else [node]
            )
            for name in {
                n.id for n in _walk(head) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }:
                bindings.setdefault(name, []).extend(head)
    return bindings
