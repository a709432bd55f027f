"""The README and the pages under docs/: their links, commands and examples are right."""

from __future__ import annotations

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import quantlib
from quantlib.compression.recipes.file import read_recipe

ROOT = Path(quantlib.__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = sorted(path.name for path in (ROOT / "quantlib").iterdir() if (path / "__init__.py").is_file())

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks in that language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """The targets of links and pictures, but for those on the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not target.startswith(("http:", "https:"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link} has no such heading"


def test_the_readme_is_short() -> None:
    assert README.stat().st_size < 12_000


def test_the_readme_leads_to_every_page() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(README)}
    assert set((ROOT / "docs").glob("*.md")) <= linked


def test_the_readme_lists_the_rooms_in_their_order() -> None:
    table = README.read_text(encoding="utf-8").split("<!-- rooms -->")[1].split("<!-- /rooms -->")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(listed) == ROOMS
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    assert ["__main__", *listed] == [room for layer in layers for room in layer.split(" | ")]


def test_the_site_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"([\w-]+\.md)$", text, re.MULTILINE)
    assert sorted(listed) == sorted([*(path.name for path in (ROOT / "docs").glob("*.md")), "changes.md"])


def test_every_public_name_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"members: \[(.*)\]", text)
    assert sorted(", ".join(listed).split(", ")) == sorted(quantlib.__all__)


def test_what_a_page_fetches_is_found() -> None:
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    page = SimpleNamespace(file=SimpleNamespace(src_path="a.md"))
    warned: list[object] = []
    log = SimpleNamespace(warning=lambda *words: warned.append(words[2]))
    hooks["on_post_page"].__globals__["_log"] = log
    text = """<a href="https://a.example/">x</a><img src="b.png"><script src="https://c.example/c.js"></script>
    <link rel="stylesheet" href="//d.example/d.css"><link rel="canonical" href="https://e.example/">
    <style>@import url("https://f.example/f.css");</style>"""
    assert hooks["on_post_page"](text, page, None) == text
    assert warned == ["https://c.example/c.js", "//d.example/d.css", "https://f.example/f.css"]


@each_page
def test_modules_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = re.findall(r"(?<![\w/.])quantlib(?:\.(?!(?:toml|yml)\b)\w+)+", text)
    names += re.findall(rf"`((?:{'|'.join(ROOMS)})(?:\.(?!html\b)\w+)+)`", text)
    for name in {name.removeprefix("quantlib.") for name in names}:
        item: object = quantlib
        path = "quantlib"
        for part in name.split("."):
            path += f".{part}"
            if not hasattr(item, part):
                importlib.import_module(path)
            item = getattr(item, part)


@each_page
def test_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/.])((?:bench|tests|docs|quantlib|\.github)/[\w./-]*[\w/])", text):
        path = ROOT / name.replace("TASK", "BBC-News")
        assert path.exists(), f"{page.name}: {name} does not exist"


@pytest.mark.parametrize(
    "script",
    [
        "quantization_experiments.py",
        "bench/scaling.py",
        "bench/distillation.py",
        "bench/peers_accuracy.py",
        "bench/similarity_task.py",
        "bench/gate_power.py",
        "bench/load.py",
        "bench/record_traces.py",
        "bench/calibration_memory.py",
        "bench/step_memory.py",
        "bench/sweep_scaling.py",
        "bench/faults/kills.py",
        "bench/faults/bad_places.py",
        "bench/faults/endurance.py",
    ],
)
def test_options_exist(script: str) -> None:
    commands = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    options = {
        option
        for command in commands
        if script in command
        for option in re.findall(r" (--[a-z-]+)", command.split(script, 1)[1].split("#")[0])
    }
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, "--help"]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert options <= set(re.findall(r"--[a-z-]+", process.stdout))


@each_page
def test_python_examples(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("quantlib"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), block


def test_recipe_file_example(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "recipes.md", "toml")
    (tmp_path / "mine.toml").write_text(block, encoding="utf-8")
    assert dict(read_recipe(tmp_path / "mine.toml").nodes) == {
        "layer.4.ffn_out": "int16",
        "classifier": "float",
    }
