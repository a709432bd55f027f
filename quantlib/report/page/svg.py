"""A figure of matplotlib as SVG inside a page: themed by the page, read aloud, without styles of its own."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = 5
"""How many colours of series there are; markers should say the same without colour."""
# Stand-ins for the page's colours, which differ between light, dark and print: style.css paints the classes.
PAINTS: Mapping[str, str] = {
    "ink": "#000001",
    "muted": "#000002",
    "grid": "#000003",
    "paper": "#000004",
    "good": "#000005",
    "bad": "#000006",
    **{f"series-{number}": f"#0000{16 + number:02x}" for number in range(1, SERIES + 1)},
}
_CLASS_OF = {colour: name for name, colour in PAINTS.items()}
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_FONT_SIZE = re.compile(r"([\d.]+)px")
# Of matplotlib's settings: letters stay text, ids do not change from run to run.
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quantlib",
    "text.parse_math": False,
    "text.color": PAINTS["ink"],
    "axes.labelcolor": PAINTS["ink"],
    "axes.edgecolor": PAINTS["muted"],
    "xtick.color": PAINTS["muted"],
    "ytick.color": PAINTS["muted"],
    "xtick.labelcolor": PAINTS["ink"],
    "ytick.labelcolor": PAINTS["ink"],
    "grid.color": PAINTS["grid"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def settings() -> Any:
    """Matplotlib's settings for a figure of a page, as a context; draw in it, in the colours of `PAINTS`."""
    import matplotlib as mpl

    return mpl.rc_context(_SETTINGS)


def inline_svg(
    figure: Figure,
    name: str,
    title: str,
    description: str,
    hints: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
) -> Any:
    """A figure as an SVG element for a template, as wide as its place.

    Colours of `PAINTS` become classes, which the page's style paints; attributes of style become presentation
    attributes, since the page's policy blocks styles of elements. Where an artist has a URL, it is a link.

    Args:
        figure: drawn within `settings`.
        name: unlike that of any other figure of the page; ids begin with it.
        title: what a screen reader says first.
        description: what the figure shows, in a sentence or two.
        hints: {gid of an artist: what is shown where the pointer rests on it}.
        links: {URL of an artist: what it leads to, in words}.

    Raises:
        ValueError: a hint for an artist that the figure has not.
        KeyError: a URL without words.
    """
    from markupsafe import Markup
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    with settings():
        # Not by savefig, which draws everything twice.
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(file, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314  # matplotlib's, made a moment ago
    _drop(root, "metadata", "style")
    for element in root.iter():
        _restyle(element)
    _add_hints(root, hints or {})
    _name_links(root, links or {})
    _name_ids(root, name)
    _describe(root, name, title, description)
    return Markup(ElementTree.tostring(_without_namespace(root), encoding="unicode"))  # noqa: S704  # escaped


def _drop(parent: ElementTree.Element, *tags: str) -> None:
    for child in list(parent):
        if child.tag in {_SVG + tag for tag in tags}:
            parent.remove(child)
        else:
            _drop(child, *tags)


def _restyle(element: ElementTree.Element) -> None:
    """Styles to attributes, stand-ins for colours to classes, and no white space between elements."""
    element.text, element.tail = (
        None if text and not text.strip() else text for text in (element.text, element.tail)
    )
    declarations = [part.split(":", 1) for part in element.attrib.pop("style", "").split(";") if ":" in part]
    for key, value in ((key.strip(), value.strip()) for key, value in declarations):
        if key == "font":
            size = _FONT_SIZE.search(value)
            if size is not None:
                element.set("font-size", size[1])
            if "bold" in value or " 700" in f" {value}":
                element.set("font-weight", "bold")
        elif key == "font-size":
            element.set(key, value.removesuffix("px"))
        elif key != "font-family":  # the page's
            element.set(key, value)
    classes = []
    for key in ("fill", "stroke"):
        paint = _CLASS_OF.get(element.get(key, "").lower())
        if paint is not None:
            del element.attrib[key]
            classes.append(f"{key}-{paint}")
    if element.tag == _SVG + "text" and "fill" not in element.attrib and not classes:
        classes.append("fill-ink")
    if classes:
        element.set("class", " ".join(classes))


def _add_hints(root: ElementTree.Element, hints: Mapping[str, str]) -> None:
    groups = {element.get("id"): element for element in root.iter() if element.get("id")}
    for gid, words in hints.items():
        if gid not in groups:
            raise ValueError(f"no artist of the figure has the gid {gid!r}")
        hint = ElementTree.Element(_SVG + "title")
        hint.text = words
        groups[gid].insert(0, hint)


def _name_links(root: ElementTree.Element, links: Mapping[str, str]) -> None:
    """Links in HTML's words, each with its name.

    The page has them in a table too: the keyboard need not stop at every point of a figure.
    """
    for link in root.iter(_SVG + "a"):
        target = link.attrib.pop(_HREF)
        link.set("href", target)
        link.set("tabindex", "-1")
        name = ElementTree.Element(_SVG + "title")
        name.text = links[target]
        link.insert(0, name)


def _name_ids(root: ElementTree.Element, name: str) -> None:
    """Keep the ids that are referred to, each with the figure's name before it."""
    named: set[str] = set()
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key in (_HREF, "href") and value.startswith("#"):
                named.add(value[1:])
                element.attrib.pop(key)
                element.set("href", f"#{name}-{value[1:]}")
            elif "url(#" in value:
                named.update(_REFERENCE.findall(value))
                element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
    for element in root.iter():
        identity = element.attrib.pop("id", None)
        if identity in named:
            element.set("id", f"{name}-{identity}")


def _describe(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    # The content of an img is not read aloud, so that links in it would be lost.
    root.set("role", "img" if root.find(f".//{_SVG}a") is None else "group")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for place, (tag, words) in enumerate((("title", title), ("desc", description))):
        child = ElementTree.Element(_SVG + tag, {"id": f"{name}-{tag}"})
        child.text = words
        root.insert(place, child)


def _without_namespace(root: ElementTree.Element) -> ElementTree.Element:
    """HTML knows svg by its name; a prefix would hide it."""
    for element in root.iter():
        element.tag = str(element.tag).removeprefix(_SVG)
    return root
