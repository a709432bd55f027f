"""The command line: `quantlib` with its subcommands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from quantlib import __version__
from quantlib.cli.app import new_app, run_app

# A line for each, so that the list of them needs none of their modules.
SUBCOMMANDS = {
    "run": "Quantize a teacher, measure every variant and a student, and print one table.",
    "init": "Look at your rows and your checkpoint, and write quantlib.toml, tests and a workflow.",
    "check": "Show what a run would read and do, and about how long it takes.",
    "export": "Write a checkpoint as an ONNX model.",
    "quantize": "Quantize an ONNX model by a recipe.",
    "evaluate": "Score an ONNX model on rows with labels.",
    "benchmark": "Time ONNX models beside each other.",
    "compare": "Compare ONNX classifiers: accuracy or agreement, size, latency.",
    "sweep": "Run tasks x checkpoints x students x recipes x engines, here or on a cluster.",
    "explain": "Show what 8 bits cost each layer.",
    "profile": "Show where the time of an ONNX model goes.",
    "gate": "Compare with a baseline; exit code 1 if something got worse.",
    "history": "Show speedup, drop and size over the commits of a repository.",
    "report": "Make the page of a run again, or of all tasks; or print a summary in Markdown.",
    "recipes": "List the recipes.",
    "cache": "Show what the cache holds, or clear it.",
    "doctor": "Show what this machine runs fast, and what is missing.",
}


class Subcommands(TyperGroup):
    """The group of subcommands; the module of one is loaded when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order in which a user meets them."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name; None if there is none."""
        return subcommand(cmd_name) if cmd_name in SUBCOMMANDS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of them, without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


def subcommand(name: str) -> Any:
    """A subcommand as a command of its own."""
    module = importlib.import_module(f"quantlib.cli.{'cache_command' if name == 'cache' else name}")
    single = new_app()
    single.command()(module.command())
    command = typer.main.get_command(single)
    command.name = name
    return command


def _version(asked: bool) -> None:
    if asked:
        print(f"quantlib {__version__}")
        raise typer.Exit


def _group() -> typer.Typer:
    group = typer.Typer(
        cls=Subcommands,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="Which int8 variant of a fine-tuned BERT can ship on a CPU: build, measure, hold by a gate.",
        epilog="quantlib COMMAND --help says more. Options may stand in quantlib.toml too.",
    )

    @group.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", help="Show the version.", callback=_version, is_eager=True
        ),
    ) -> None:
        pass

    return group


def quantlib(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of all subcommands and return its exit code; see `run_app`."""
    words = sys.argv[1:] if arguments is None else arguments
    return run_app(_group(), words or ["--help"], "quantlib")
