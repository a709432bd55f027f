"""Templates to a page: text escaped, styles and script inside, everything else forbidden by its policy."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = resources.files("quantlib.report.page") / "templates"


def render(template: str, **values: Any) -> str:
    """A page from a template of this package; it begins with `{% extends "base.html.j2" %}`.

    Values are escaped wherever they stand. `{{ name | text }}` also keeps the direction of a text that the
    user's data holds to itself. The page's only style is style.css, and its only script page.js: a `style` or
    an `onclick` in a template would be blocked.

    Args:
        template: the name of its file.
        values: what it asks for; a name that is missing is an error.
    """
    style, script = _asset("style.css"), _asset("page.js")
    return (
        _environment()
        .get_template(template)
        .render(style=_inside(style), script=_inside(script), policy=policy(style, script), **values)
    )


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy that allows this style and this script, by their hashes, and no more."""
    return (
        f"default-src 'none'; style-src '{_source(style)}'; script-src '{_source(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


@cache
def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _inside(text: str) -> Any:
    """Text of this package, as it is."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704  # not from data


def own_direction(value: object) -> Any:
    """Text of the user's data: escaped, and with marks of direction that end where it ends."""
    from markupsafe import Markup, escape

    return Markup(f"<bdi>{escape(value)}</bdi>")  # noqa: S704  # escaped


def breaking(name: object) -> Any:
    """A name that may be broken after each underscore, escaped."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(part) for part in str(name).split("_"))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("quantlib.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"text": own_direction, "breaking": breaking}
    return environment
