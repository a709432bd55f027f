"""Parameters of a command, made from the fields of options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from quantlib.cli.app import new_app
from quantlib.support.configuration import Configuration, find_configuration, read_configuration
from quantlib.support.errors import InputError
from quantlib.support.options import COMMAND, Option, from_flags, options_of

_CONFIG = typer.Option(
    "--config",
    help="Configuration file; default: quantlib.toml, or [tool.quantlib] of pyproject.toml, if there.",
)


def offering(
    classes: type[Any] | tuple[type[Any], ...], function: Callable[..., None], *, whole: bool = False
) -> Callable[..., None]:
    """A command that builds the options of dataclasses and calls `function` with them.

    The flags go before what the configuration file says.

    Args:
        classes: a dataclass of options, or several that share no name.
        function: takes the options first; its other parameters are parameters of the command as well.
        whole: show all options in the help, not only the usual ones.
    """
    kinds = classes if isinstance(classes, tuple) else (classes,)

    def command(given: Mapping[str, Any], beside: Mapping[str, Any], config: Path | None) -> None:
        configured = configuration(config)
        options = [from_flags(cls, given, COMMAND, of_class(configured, cls)) for cls in kinds]
        function(*options, **beside)

    others = list(inspect.signature(function).parameters)[len(kinds) :]
    return _command(kinds, function, others, command, whole=whole, config=True)


def offering_flags(
    cls: type[Any], function: Callable[..., None], *, whole: bool = False
) -> Callable[..., None]:
    """A command that calls `function` with the flags of a dataclass of options, by field name.

    Args:
        cls: the dataclass. function, whole: as for `offering`.
    """

    def command(given: Mapping[str, Any], beside: Mapping[str, Any], _: Path | None) -> None:
        function(given, **beside)

    others = list(inspect.signature(function).parameters)[1:]
    return _command((cls,), function, others, command, whole=whole, config=False)


def _command(
    kinds: tuple[type[Any], ...],
    function: Callable[..., None],
    own: list[str],
    call: Callable[[Mapping[str, Any], Mapping[str, Any], Path | None], None],
    *,
    whole: bool,
    config: bool,
) -> Callable[..., None]:
    """A function with a parameter for each option and for each of `own`, those of `function`, for typer."""

    def command(**given: Any) -> None:
        given.pop("help_all", None)
        beside = {name: given.pop(name) for name in own}
        call(given, beside, given.pop("config", None))

    def show_all(ctx: typer.Context, asked: bool) -> None:
        if asked:
            app = new_app()
            app.command()(_command(kinds, function, own, call, whole=True, config=config))
            shown = typer.main.get_command(app)
            print(shown.get_help(type(ctx)(shown, info_name=ctx.command_path)))
            raise typer.Exit

    hints = get_type_hints(function, include_extras=True)
    of_function = inspect.signature(function).parameters
    parameters = [
        of_function[name].replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]) for name in own
    ]
    parameters += [
        _parameter(item, hidden=item.advanced and not whole)
        for cls in kinds
        for item in options_of(cls, COMMAND)
    ]
    if config:
        parameters.append(_own_parameter("config", None, Annotated[Path | None, _CONFIG]))
    if not whole:
        every = typer.Option("--help-all", help="Show every option.", is_eager=True, callback=show_all)
        parameters.append(_own_parameter("help_all", False, Annotated[bool, every]))
    command.__doc__ = function.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(command)["__signature__"] = inspect.Signature(parameters)
    return command


def _own_parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def configuration(path: Path | None) -> Configuration:
    """The configuration of a command: the file that is named, else what lies in the working directory."""
    if path is None:
        return find_configuration(Path())
    if not path.is_file():
        raise InputError(f"--config {path}: no such file")
    return read_configuration(path)


def of_class(configured: Configuration, cls: type) -> dict[str, Any]:
    """What the file says of the options of a class; what it says of other options is checked too.

    Raises:
        InputError: see `Configuration.values`.
    """
    from quantlib.experiment.gate_options import GateOptions
    from quantlib.experiment.options import ExperimentOptions

    experiment, gate = configured.values(ExperimentOptions, GateOptions)
    names = {item.name for item in options_of(cls)}
    return {name: value for name, value in (experiment | gate).items() if name in names}


def _parameter(item: Option, *, hidden: bool) -> inspect.Parameter:
    """A parameter whose default is None, so that what is given is known from what is not."""
    kind: Any = bool if item.is_switch else item.kind
    if item.pairs or (item.many and not item.comma):
        kind = list[kind]
    if item.comma:
        kind = str
    shown = "" if item.is_switch or not item.shown_default else f" [default: {item.shown_default}]"
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            kind | None,
            typer.Option(item.flag, help=item.help + shown, metavar=item.metavar, hidden=hidden),
        ],
    )
