"""Every command in the code blocks of the README and of docs/ is run, on tiny models, as it stands there.

A block in bash is run line by line in a project of its own. `<!-- parsed: why -->` above it says that its
commands are only read by the parsers of their programs. What a command of ours is not told is set to what is
quick. A command, option or file that is no more fails either way.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tiny
import typer
from packaging.requirements import Requirement
from test_docs import PAGES, ROOT, blocks, prose
from test_git import git
from warm import run_pytest

from quantlib.cli.main import SUBCOMMANDS, quantlib, subcommand
from quantlib.compression.recipes.file import read_recipe
from quantlib.experiment.gate_options import GateOptions
from quantlib.experiment.options import ExperimentOptions
from quantlib.harness import flags
from quantlib.support.cache import ENVIRONMENT_VARIABLE
from quantlib.support.configuration import read_configuration

# Written by the parser of each command itself; tests/test_quantlib.py holds it to that.
GENERATED = "commands.md"
# Blocks that CI runs as they stand there (.ci/run, and the test of the embedded default).
RUN_BY_CI = ("<!-- demo command -->", "<!-- test command -->")
# What stands for the user's own in a command.
PLACEHOLDERS = {
    "DIR_OR_HUB_ID": "checkpoints/tickets",
    "DIR": "checkpoints/tickets",
    "OUT_DIR": "out",
    "NAME=MODEL.onnx": "tiny=onnx/model.onnx",
    "baseline/TASK.json": "baseline/tickets.json",
    "data/test.csv": "test.csv",
}
QUICK: dict[str, Any] = {
    "seq_len": 32,
    "threads": 1,
    "timing_seconds": 0,
    "num_runs": 2,
    "warmup_runs": 0,
    "calibration_samples": 16,
    "recipes": "quant_2",
    "shapes": "1x8",
    "gate_seconds": 0.01,
    "gate_launches": 2,
    "gate_max_others": 1,
    "max_drop_points": 100,
}
SETTINGS = """
[run]
seq_len = 32
threads = 1
num_runs = 2
warmup_runs = 0
timing_seconds = 0.0
calibration_samples = 16
recipes = ["quant_2"]

[gate]
shapes = ["1x8"]
gate_launches = 2
gate_seconds = 0.01
gate_max_others = 1.0
"""


@dataclass(frozen=True)
class Block:
    """Commands in bash. mark: the comment above it, empty without one."""

    page: Path
    number: int
    mark: str
    text: str

    @property
    def id(self) -> str:
        """The page, and the number of the block on it."""
        return f"{self.page.relative_to(ROOT).as_posix()}-{self.number}"

    @property
    def parsed(self) -> bool:
        """Whether it is not run."""
        return self.mark.startswith("<!-- parsed: ") or self.mark in RUN_BY_CI

    @property
    def same(self) -> tuple[tuple[str, ...], ...]:
        """What is alike in blocks of which one has to be run."""
        without_paths = ((words[0].removeprefix(".venv/bin/"), *words[1:]) for words in self.commands)
        return tuple(words for words in without_paths if words[0] != "pip")

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command; placeholders stand for what the project has."""
        parts = [part for line in self.text.splitlines() for part in line.split("&&")]
        # Where its output goes is the shell's.
        split = [shlex.split(part.split(" >> ")[0], comments=True) for part in parts]
        return [[PLACEHOLDERS.get(word, word) for word in words if word != "..."] for words in split if words]


def blocks_of(page: Path) -> Iterator[Block]:
    pattern = r"(?:^(<!--[^\n]*-->)\n+)?^```bash\n(.*?)^```"
    found = re.finditer(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for number, match in enumerate(found, start=1):
        yield Block(page, number, match[1] or "", match[2])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
# The first of those that are the same; the others are parsed.
TO_RUN = list({block.same: block for block in reversed(BLOCKS) if not block.parsed}.values())


def test_blocks_are_found() -> None:
    """As many as there are, and none hides in another kind of block."""
    assert len(BLOCKS) == sum(len(blocks(page, "bash")) for page in PAGES)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        assert {language for language, _ in fenced} <= {"", "bash", "python", "toml", "text"}, page.name
        assert not re.search(r"^\n    \S", prose(page), re.MULTILINE), f"{page.name}: an indented block"
        if page.name == GENERATED:
            continue
        for output in (code for language, code in fenced if language in ("", "text")):
            assert not re.search(r"^(\S*/)?(quantlib|pytest|python3?|pip|tox) ", output, re.MULTILINE), (
                page.name
            )


def test_a_command_that_is_no_more_fails() -> None:
    for words in (
        "quantlib forget",
        "quantlib run --no-such-option",
        "quantlib history --since",
        "python bench/no_such_script.py",
        "python bench/scaling.py out --no-such-option",
        "python bench/load.py --no-such-option",
        "pip install 'bert-quantlib[no-such-extra]'",
        "pytest-benchmark forget",
        "forget",
    ):
        with pytest.raises((AssertionError, SystemExit, FileNotFoundError, typer.TyperException)):
            parse(shlex.split(words))


# Programs


def parse(words: Sequence[str]) -> None:
    """Let a command's own parser read it; nothing is run."""
    program, *rest = words
    match program.removeprefix(".venv/bin/"):
        case "quantlib":
            assert rest[0] in SUBCOMMANDS, words
            read_by(subcommand(rest[0]), rest[1:])
        case "python" | "python3":
            parse_python(rest)
        case "pip":
            parse_pip(rest)
        case "pytest":
            parse_pytest(rest)
        case "pytest-benchmark":
            from pytest_benchmark.cli import make_parser

            make_parser().parse_args(rest)
        case "bash":
            assert (ROOT / rest[0]).is_file(), words
        case _:
            raise AssertionError(f"no parser for {words}")


def read_by(command: Any, words: Sequence[str]) -> None:
    command.make_context("it", list(words))


def parse_python(words: Sequence[str]) -> None:
    if words[0] == "-m":
        if words[1] == "pytest":
            parse_pytest(words[2:])
        else:
            assert words[1] == "venv", words
        return
    script = ROOT / words[0]
    if script.name == "quantization_experiments.py":
        read_by(subcommand("run"), words[1:])
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(script.parent))
        patch.setattr(sys, "argv", [str(script), *words[1:]])
        patch.setattr(
            "quantlib.cli.app.run_app", lambda app, _: read_by(typer.main.get_command(app), words[1:])
        )
        patch.setattr("argparse.ArgumentParser.parse_args", parsed_only)
        with pytest.raises((_Parsed, SystemExit)) as ended:
            runpy.run_path(str(script), run_name="__main__")
    assert not (isinstance(ended.value, SystemExit) and ended.value.code), words


class _Parsed(Exception):
    """Raised once the arguments are read."""


def parsed_only(parser: Any) -> None:
    arguments, unknown = parser.parse_known_args()
    assert not unknown, f"{sys.argv}: {unknown}"
    raise _Parsed(arguments)


def parse_pip(words: Sequence[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert words[0] == "install", words
    for word in words[1:]:
        known_flags = ("-q", "-c", "-e", "-r", "--no-deps", "--require-hashes", "--no-build-isolation")
        if word in known_flags or (ROOT / word).is_file():
            continue
        requirement = Requirement(word.replace(".[", "bert-quantlib[", 1))
        known = set(project["optional-dependencies"])
        assert requirement.name != project["name"] or requirement.extras <= known, word


def parse_pytest(words: Sequence[str]) -> None:
    """Every flag is one of pytest's, of the plugins that the tests install, or of quantlib's."""
    ours = {flag["flag"] for _, options in flags.declared() for flag in options.values()}
    for word in words:
        name = word.partition("=")[0]
        assert not name.startswith("--") or name in ours | flags_of_pytest(), word


@cache
def flags_of_pytest() -> frozenset[str]:
    with TemporaryDirectory() as directory:
        result = run_pytest("--help", "-p", "no:quantlib", cwd=Path(directory))
    assert result.ret == 0
    return frozenset(re.findall(r"--[a-z][a-z_-]*", str(result.stdout)))


def run(words: Sequence[str], project: Path) -> None:
    """Run a command in a project; it has to succeed."""
    program, *rest = words
    match program.removeprefix(".venv/bin/"):
        case "quantlib":
            assert quantlib([*rest, *quick(rest)]) == 0, words
        case "pytest":
            assert run_pytest(*rest, cwd=project).ret == 0, words
        case "pip":
            parse_pip(rest)  # the packages are there
        case "pytest-benchmark":
            subprocess.run([sys.executable, "-m", "pytest_benchmark", *rest], cwd=project, check=True)
        case _:
            raise AssertionError(f"nothing runs {words}: mark its block as parsed, and say why")


def quick(words: Sequence[str]) -> list[str]:
    """Flags that make a command quick, if it has them and is not told already."""
    named = {parameter.name: parameter.opts[0] for parameter in subcommand(words[0]).params}
    chosen = {name: value for name, value in QUICK.items() if name in named and named[name] not in words}
    return [word for name, value in chosen.items() for word in (named[name], str(value))]


# A project


@pytest.fixture(scope="session")
def fresh(tiny_teacher: Path, tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, texts, pairs, checkpoints and an ONNX file where the pages have them. To be copied."""
    root = tmp_path_factory.mktemp("docs") / "tickets"
    (root / "data").mkdir(parents=True)
    rows = tiny.sentences(80, 9)
    text = "text,category\n" + "".join(f"{text},LABEL_{label}\n" for text, label in rows)
    for name in ("test.csv", "data/test.csv"):
        (root / name).write_text(text, encoding="utf-8")
    (root / "texts.txt").write_text("".join(f"{text}\n" for text, _ in rows), encoding="utf-8")
    pairs = [f"{a},{b},{k % 5}\n" for k, ((a, _), (b, _)) in enumerate(pairwise(rows))]
    (root / "pairs.csv").write_text("sentence1,sentence2,score\n" + "".join(pairs), encoding="utf-8")
    shutil.copytree(tiny_teacher, root / "checkpoints" / "tickets")
    tiny.write_embedding_model(root / "models" / "all-MiniLM-L6-v2", tiny_teacher)
    (root / "onnx").mkdir()
    shutil.copy(tiny_onnx, root / "onnx" / "model.onnx")
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(tiny_teacher / name, root / "onnx" / name)
    return root


@pytest.fixture(scope="session")
def ready(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after `quantlib init`, in git, with a baseline and the pages' own tests. To be copied."""
    root = shutil.copytree(fresh, tmp_path_factory.mktemp("docs") / "tickets")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert quantlib(["init", "test.csv", "--teacher", "checkpoints/tickets"]) == 0
    with (root / "quantlib.toml").open("a", encoding="utf-8") as file:
        file.write(SETTINGS)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    git(root, "tag", "v1.0")
    return root


def needs_a_project_that_is_set_up(block: Block) -> bool:
    programs = {" ".join(words[:2]).removeprefix(".venv/bin/") for words in block.commands}
    return "quantlib init" not in programs and bool(
        {"pytest bench", "quantlib gate", "quantlib history"} & programs
    )


@pytest.mark.parametrize("block", [b for b in BLOCKS if b not in TO_RUN], ids=lambda block: block.id)
def test_commands_that_take_long_are_parsed(block: Block) -> None:
    assert not block.parsed or block.mark in RUN_BY_CI or re.fullmatch(r"<!-- parsed: \S.+ -->", block.mark)
    for words in block.commands:
        parse(words)


@pytest.mark.parametrize("block", TO_RUN, ids=lambda block: block.id)
def test_commands_run(
    block: Block,
    fresh: Path,
    ready: Path,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = ready if needs_a_project_that_is_set_up(block) else fresh
    project = shutil.copytree(source, tmp_path / "tickets")
    monkeypatch.chdir(project)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(cache_dir / "docs"))
    for words in block.commands:
        if "init" in words:
            run(words, project)
            with (project / "quantlib.toml").open("a", encoding="utf-8") as file:
                file.write(SETTINGS)
            continue
        run(words, project)
        if "--gate-update" in words:
            commit_baselines(project)


def commit_baselines(project: Path) -> None:
    """What the pages tell to do with a new baseline; and one under another name, as one page has it."""
    if (project / ".git").is_dir():
        git(project, "add", "-A")
        git(project, "commit", "-q", "-m", "baseline")
    for path in project.glob("bench/baseline/*.json"):
        shutil.copy(path, project / "other.json")


def test_examples_of_the_commands() -> None:
    """`Example:` in the help of each, and so in docs/commands.md."""
    for name in SUBCOMMANDS:
        text = " ".join((subcommand(name).help or "").split())
        # What stands between several of them, or behind one, is no part of it.
        parts = re.split(r"(?=quantlib [a-z]+ )", text.split("Example: ")[1] + " ")
        examples = [re.split(r", | \(|\)| >> ", part)[0] for part in parts if part.startswith("quantlib ")]
        assert examples, name
        for example in examples:
            parse(shlex.split(example))


def test_commands_and_options_in_the_text_exist() -> None:
    declared = {option for name in SUBCOMMANDS for p in subcommand(name).params for option in p.opts}
    declared |= {flag["flag"] for _, options in flags.declared() for flag in options.values()}
    declared |= flags_of_pytest() | {"--help", "--help-all", "--install-completion"}
    declared |= {
        "--seconds",
        "--timeout",
        "--upgrade",
        "--rows",
        "--kill-seconds",
    }  # of scripts and pytest-timeout
    for page in PAGES:
        for code in re.findall(r"`(?!git )([^`\n]+)`", prose(page)):
            unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]\b(?!-)", code)) - declared
            assert not unknown, f"{page.name}: `{code}`"
            if code.startswith("quantlib ") and code.split()[1].islower():
                assert code.split()[1] in SUBCOMMANDS or code.split()[1].startswith("--"), code


# Python and TOML


def test_the_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    tiny.write_checkpoint(tmp_path / "my-checkpoint", max_position_embeddings=128)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert 0 < Path("model_dynamic.onnx").stat().st_size < Path("model.onnx").stat().st_size


def test_the_tests_of_the_pages_run(
    ready: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/own-repository.md; a limit on the score of random weights is none."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(cache_dir / "docs"))
    project = shutil.copytree(ready, tmp_path / "tickets")
    code = "\n".join(blocks(ROOT / "docs" / "own-repository.md", "python")).replace("> 0.8", ">= 0")
    tests = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    assert tests[-1] == "test_the_rare_class_stays"
    (project / "bench" / "test_quantized.py").write_text(code, encoding="utf-8")
    result = run_pytest("bench", cwd=project)
    assert result.ret == 0
    result.assert_outcomes(passed=6, deselected=1)


@pytest.mark.parametrize("page", ["own-task.md", "pruning.md", "recipes.md"])
def test_files_in_toml_are_read(page: str, tmp_path: Path) -> None:
    for code in blocks(ROOT / "docs" / page, "toml"):
        if "[task]" in code:
            (tmp_path / "quantlib.toml").write_text(code, encoding="utf-8")
            of_run, _ = read_configuration(tmp_path / "quantlib.toml").values(ExperimentOptions, GateOptions)
            assert of_run["task"] == "tickets"
        else:
            (tmp_path / "mine.toml").write_text(code, encoding="utf-8")
            assert read_recipe(tmp_path / "mine.toml").name == "mine"
