"""Builds the documentation site from docs/ and the docstrings, and checks what was built.

    python benchmarks/build_site.py    # `make docs`: writes build/site; exits 1 on any problem

Zensical itself fails on a broken link between documents. Beyond that, a problem is: what is said
of a docstring, a link or a picture of the built pages that leads nowhere, a page that no other
leads to, and anything that a page would load from another host.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_LOADED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src")}
_LOADED_LINKS = {"stylesheet", "preload", "icon", "preconnect", "dns-prefetch", "manifest"}
_NOT_FOUND = "404.html"  # whose addresses begin at the root of a host


def build(root: Path = ROOT) -> list[str]:
    """Builds `root`'s site, and returns what is wrong with it.

    Zensical is called by its Python module, in a process of its own.
    """
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=root,
        env=os.environ | {"NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said = _COLORS.sub("", done.stdout)
    if done.returncode:
        return [said]
    site = root / "build" / "site"
    if not (site / "index.html").is_file():
        return ["nothing was built"]
    return [
        *(line for line in said.splitlines() if re.match(r"griffe|.*warning", line, re.I)),
        *problems(site),
    ]


class Page(HTMLParser):
    """What a built page names, and where it leads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects a tag's ids and addresses."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and _LOADED_LINKS.intersection(given.get("rel", "").split()):
            self.loaded.append(given["href"])
        self.loaded += [given[name] for kind, name in _LOADED if kind == tag and name in given]


def problems(site: Path) -> Iterator[str]:
    """What is wrong with the pages of a built site."""
    paths = [path for path in sorted(site.rglob("*.html")) if path.name != _NOT_FOUND]
    pages = {path: Page(path) for path in paths}
    linked: set[Path] = set()
    for path, page in pages.items():
        where = path.relative_to(site)
        for address in page.loaded:
            if urlsplit(address).netloc:
                yield f"{where}: would load {address} from another host"
        for address in [*page.links, *page.loaded]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            to = to / "index.html" if to.is_dir() else to
            if not to.is_file():
                yield f"{where}: {address} leads nowhere"
            elif parts.fragment and unquote(parts.fragment) not in pages[to].anchors:
                yield f"{where}: {address} has no such anchor"
            if to != path:
                linked.add(to)
    for path in pages.keys() - linked:
        if path != site / "index.html":
            yield f"{path.relative_to(site)}: no page leads to it"


if __name__ == "__main__":
    found = build()
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        raise SystemExit(1)
    print(f"built {ROOT / 'build' / 'site' / 'index.html'}")
