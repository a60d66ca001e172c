"""The demo's world for each framework: what it finds for a question, and how ragvl ranks that."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ragvl import Document, RankedDocument
from ragvl.server import stages
from ragvl.server.stages import Stages

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Asked(NamedTuple):
    """A question, what was retrieved for it, and how ragvl's own reranker orders that."""

    question: str
    documents: list[Document]
    ranked: list[RankedDocument]

    @property
    def scores(self) -> list[tuple[str | None, float]]:
        """Ids and scores, the most relevant first."""
        return [(one.document.id, one.score) for one in self.ranked]


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    """Frameworks would report to their makers."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
        yield


@pytest.fixture(scope="session")
def asked(demo: Stages) -> Asked:
    question = demo.examples[0]
    documents = [hit.document for hit in demo.retriever.retrieve(question, 8)]
    return Asked(question, documents, demo.reranker.rank(question, documents, progress=False))


@pytest.fixture
def run_example(demo: Stages, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """`run_example(name)` runs it on the demo that is loaded, and gives what it defines."""
    monkeypatch.setattr(stages, "load_demo", lambda **_: demo)

    def run(name: str) -> dict[str, Any]:
        framework = name.removeprefix("with_").removesuffix(".py")
        pytest.importorskip(f"ragvl.integrations.{framework}")
        return runpy.run_path(str(EXAMPLES / name))

    return run
