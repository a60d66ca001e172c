"""Renders the figures of benchmarks/results into the documents' tables and plots.

A document says where a table goes, and what stands between the marks is replaced:

    <!-- begin table: fast_rerank -->
    <!-- end table: fast_rerank -->

    python benchmarks/render.py           # writes README.md, docs/*.md and the plots in docs/
    python benchmarks/render.py --check   # changes nothing; exits 1 if one is out of date
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer
from plots import PLOTS
from tables import TABLES, Load, Result

ROOT = Path(__file__).resolve().parent.parent
_TABLE = re.compile(
    r"(?P<begin><!-- begin table: (?P<name>\w+) -->\n).*?(?P<end><!-- end table: (?P=name) -->)",
    re.DOTALL,
)
_MARK = re.compile(r"<!-- (?:begin|end) table: \w+ -->")


def render(text: str, load: Load) -> str:
    """`text` with every marked table filled in.

    Raises:
        ValueError: a mark without its other half, or of an unknown table.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"unknown table {name!r}; known: {', '.join(TABLES)}")
        return f"{match['begin']}{TABLES[name](load)}\n{match['end']}"

    stray = _MARK.search(_TABLE.sub("", text))
    if stray:
        raise ValueError(f"{stray[0]} has no other half")
    return _TABLE.sub(fill, text)


def main(
    check: Annotated[bool, typer.Option(help="Change nothing; exit 1 if out of date.")] = False,
    root: Annotated[Path, typer.Option(help="The repository.")] = ROOT,
) -> None:
    """Render benchmarks/results into README.md and docs/."""

    def load(name: str) -> Result | None:
        path = root / "benchmarks" / "results" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    rendered = {}
    for path in [*root.glob("README.md"), *sorted(root.glob("docs/*.md"))]:
        try:
            rendered[path] = render(path.read_text(encoding="utf-8"), load)
        except ValueError as error:
            raise SystemExit(f"{path}: {error}") from error
    for name, plot in PLOTS.items():
        drawn = plot(load)
        if drawn is not None:
            rendered[root / "docs" / f"{name}.svg"] = drawn

    outdated = False
    for path, text in rendered.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        outdated = True
        print(f"{path}: {'out of date; run `make tables`' if check else 'rendered'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and outdated:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
