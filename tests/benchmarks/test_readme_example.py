"""The README's example gives what the README says."""

from __future__ import annotations

import json

import pytest
import readme_example
from common import RESULTS


@pytest.mark.slow
def test_the_command_answers_as_the_document_says() -> None:
    said = json.loads((RESULTS / "readme_example.json").read_text())["results"]
    given = readme_example.ranked()["results"]
    hint = "the model or the pictures have changed: run benchmarks/readme_example.py, `make tables`"
    assert [one["id"] for one in given] == [one["id"] for one in said], hint
    assert [one["kept"] for one in given] == [one["kept"] for one in said], hint
    relevance = [one["relevance"] for one in said]
    assert [one["relevance"] for one in given] == pytest.approx(relevance, abs=1e-3), hint
