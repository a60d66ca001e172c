"""Documents get their tables and plots, and nothing else of them changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from common import RESULTS
from render import ROOT, TABLES, main, render

DOCUMENT = """# Title

<!-- begin table: fast_rerank -->
what stood here before
<!-- end table: fast_rerank -->

Text between.

<!-- begin table: demo -->
<!-- end table: demo -->
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    shutil.copytree(RESULTS, tmp_path / "benchmarks" / "results")
    (tmp_path / "README.md").write_text(DOCUMENT)
    (tmp_path / "docs" / "plain.md").write_text("No table here.\n")
    return tmp_path


@pytest.mark.slow
def test_round_trip(repository: Path) -> None:
    with pytest.raises(SystemExit) as out_of_date:
        main(check=True, root=repository)
    assert out_of_date.value.code == 1
    assert (repository / "README.md").read_text() == DOCUMENT, "--check must change nothing"

    main(root=repository)
    text = (repository / "README.md").read_text()
    main(check=True, root=repository)
    assert text.startswith("# Title\n\n<!-- begin table: fast_rerank -->\n|")
    assert "what stood here before" not in text
    assert "\n\nText between.\n\n" in text
    assert (repository / "docs" / "plain.md").read_text() == "No table here.\n"

    path = repository / "benchmarks" / "results" / "fast_rerank_cpu.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "rounds": result["rounds"] + 1}))
    with pytest.raises(SystemExit):
        main(check=True, root=repository)


def test_a_result_that_is_missing_is_named(repository: Path) -> None:
    (repository / "benchmarks" / "results" / "demo.json").unlink()
    with pytest.raises(SystemExit, match=r"demo\.json is missing"):
        main(root=repository)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- begin table: demo -->\n", "no other half"),
        ("<!-- end table: demo -->\n", "no other half"),
        ("<!-- begin table: demo -->\n<!-- end table: fast_rerank -->\n", "no other half"),
        ("<!-- begin table: demos -->\n<!-- end table: demos -->\n", "unknown table 'demos'"),
    ],
)
def test_wrong_marks_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        render(text, {})


def test_a_wrong_mark_names_its_document(repository: Path) -> None:
    (repository / "docs" / "plain.md").write_text("<!-- begin table: demo -->\n")
    with pytest.raises(SystemExit, match=r"plain\.md"):
        main(root=repository)


@pytest.mark.slow
def test_the_documents_here_are_up_to_date() -> None:
    main(check=True, root=ROOT)


def test_every_table_has_a_place() -> None:
    text = "".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
    assert [name for name in TABLES if f"<!-- begin table: {name} -->" not in text] == []
