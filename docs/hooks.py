"""What mkdocs does not do by itself: the page of changes, and no part of a page from elsewhere."""

from __future__ import annotations

import logging
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# A warning fails a strict build.
_log = logging.getLogger("mkdocs.hooks")
# Attributes whose target a browser fetches by itself; a link is only followed.
_FETCHED = {"src", "srcset", "data", "poster"}
_FETCHED_LINKS = {"stylesheet", "preload", "preconnect", "dns-prefetch", "icon", "modulepreload"}


def on_files(files: Any, config: Any) -> Any:
    """Add CHANGELOG.md, which lies beside docs/, as a page."""
    from mkdocs.structure.files import File

    changelog = Path(config["config_file_path"]).with_name("CHANGELOG.md")
    files.append(File.generated(config, "changes.md", abs_src_path=str(changelog)))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Warn of each thing that a page would fetch from another host."""
    finder = _Fetched()
    finder.feed(output)
    for target in finder.targets:
        if urlsplit(target).netloc:
            _log.warning("%s: fetches %s", page.file.src_path, target)
    return output


class _Fetched(HTMLParser):
    """Collects what a browser fetches of a page; styles written into the page among it."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the targets of a tag."""
        values = {name: value or "" for name, value in attrs}
        self.targets += [values[name] for name in _FETCHED if name in values]
        if tag == "link" and _FETCHED_LINKS & set(values.get("rel", "").split()):
            self.targets.append(values.get("href", ""))
        self._in_style = tag == "style"

    def handle_data(self, data: str) -> None:
        """Take what a style imports."""
        if self._in_style:
            self.targets += [part.split(")")[0].strip("\"'") for part in data.split("url(")[1:]]
