"""`quantlib doctor`: this machine."""

from __future__ import annotations

from collections.abc import Callable

import typer

from quantlib.cli.app import print_json, wide_console
from quantlib.cli.words import Json


def command() -> Callable[..., None]:
    """The command."""
    return doctor


def doctor(json: Json = False) -> None:
    """Show this CPU, what runs fast on it, versions, and what is missing; measure its peak in a few seconds.

    Exit code 1 if something is broken.

    Example: quantlib doctor
    """
    from quantlib.experiment.diagnosis import diagnose

    found = diagnose()
    if json:
        print_json(found.as_json())
    else:
        out = wide_console()
        for name, value in found.lines():
            out.print(f"{name:<14} {value}", highlight=False, markup=False, soft_wrap=True)
    if found.problems:
        raise typer.Exit(1)
