"""The documentation site builds without a word of complaint, and says something of every name."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import pytest
from build_site import ROOT, Page, build, problems

import ragvl

PACKAGES = [
    "ragvl",
    *(f"ragvl.{init.parent.name}" for init in sorted((ROOT / "ragvl").glob("*/__init__.py"))),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built elsewhere than `make docs` does."""
    root = tmp_path_factory.mktemp("site")
    for name in ("ragvl", "benchmarks", "CHANGELOG.md"):
        (root / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "zensical.toml", root)
    shutil.copytree(ROOT / "docs", root / "docs")
    assert build(root) == []
    return root / "build" / "site"


@pytest.mark.slow
def test_every_public_name_has_an_entry(site: Path) -> None:
    entries = {anchor for path in site.rglob("*.html") for anchor in Page(path).anchors}
    for package in PACKAGES:
        if package == "ragvl.cli":
            continue  # is called from a shell
        module = import_module(package)
        for name in getattr(module, "__all__", ()):
            places = {f"{package}.{name}", f"{package}.{name}.{name}"}
            if getattr(ragvl, name, None) is getattr(module, name):
                places.add(f"ragvl.{name}")
            assert places & entries, f"no page has an entry of {package}.{name}"


@pytest.mark.slow
def test_every_word_can_be_searched_for(site: Path) -> None:
    found = (site / "search.json").read_text()
    assert "relevance_head" in found and "prefix" in found


def test_the_changelog_links_to_no_document() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "](docs/" not in text, "it is a page of the site, too: write `docs/NAME.md`"


HEAD = "<!doctype html><title>A page</title>"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="gone.html">x</a>', "gone.html leads nowhere"),
        ('<img src="gone.svg">', "gone.svg leads nowhere"),
        ('<a href="#gone">x</a>', "#gone has no such anchor"),
        ('<a href="index.html#gone">x</a>', "index.html#gone has no such anchor"),
        ('<script src="https://a.example/b.js"></script>', "would load https://a.example/b.js"),
        ('<link rel="stylesheet" href="//a.example/b.css">', "would load //a.example/b.css"),
        ('<img src="https://a.example/b.png">', "would load https://a.example/b.png"),
    ],
)
def test_what_is_wrong_with_a_page_is_named(tmp_path: Path, body: str, problem: str) -> None:
    (tmp_path / "index.html").write_text(f'{HEAD}<a href="page.html">page</a>')
    (tmp_path / "page.html").write_text(HEAD + body)
    (found,) = problems(tmp_path)
    assert found.startswith("page.html: ") and problem in found


def test_a_page_that_no_other_leads_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(f'{HEAD}<a href="folder/">x</a><a href="#here" id="here">')
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text(f'{HEAD}<a href="https://a.example/">x</a>')
    (tmp_path / "alone.html").write_text(f'{HEAD}<a href="alone.html">x</a>')
    assert list(problems(tmp_path)) == ["alone.html: no page leads to it"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("[x](gone.md)", "page does not exist"),
        ("[x](index.md#gone)", "anchor does not exist"),
        ("::: package.gone", "package.gone"),
        ("::: package.one", "Parameter 'other' does not appear"),
    ],
)
def test_what_is_wrong_with_a_document_fails_the_build(
    tmp_path: Path, page: str, problem: str
) -> None:
    (tmp_path / "zensical.toml").write_text(
        '[project]\nsite_name = "x"\nsite_dir = "build/site"\nuse_directory_urls = false\n'
        '[project.plugins.mkdocstrings.handlers.python]\npaths = ["."]\n'
    )
    (tmp_path / "package.py").write_text(
        '"""A package."""\ndef one(it: int) -> None:\n    """One.\n\n    Args:\n'
        '        other: which is none.\n    """\n'
    )
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Title\n\n{page}\n")
    assert any(problem in one for one in build(tmp_path))
