"""Parameters of a command, made from the fields of options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from quantlib.support.options import COMMAND, Option, options_of


def offering(cls: type, function: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    """A command that calls `function` with what was given for each option of a dataclass, by field name."""

    def command(**given: Any) -> None:
        function(given)

    parameters = [_parameter(item) for item in options_of(cls, COMMAND)]
    command.__doc__ = function.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(command)["__signature__"] = inspect.Signature(parameters)
    return command


def _parameter(item: Option) -> inspect.Parameter:
    kind: Any = item.kind
    default = item.text_default
    if item.is_switch:
        default = False
    elif item.many and not item.comma:
        kind, default = list[kind] | None, None
    elif default is None:
        kind = kind | None
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, typer.Option(item.flag, help=item.help, metavar=item.metavar)],
    )
