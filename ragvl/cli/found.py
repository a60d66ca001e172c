"""What `ragvl search` and `ragvl ask` found: as a table, as JSON, and as a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from ragvl.cli.documents import content
from ragvl.data.document import Document
from ragvl.data.faces import Face, picture_url
from ragvl.data.query import Query
from ragvl.messages import shown
from ragvl.output import print_table
from ragvl.reranker import RankedDocument
from ragvl.retriever import RetrievedDocument

_CAPTION_SHOWN = 80  # characters, in a table


@dataclass(frozen=True)
class FoundDocument:
    """A document that was retrieved.

    Attributes:
        id: its id in the index.
        document: the document.
        place: in the retriever's order, from 1.
        retrieval_score: what the retriever ordered it by.
        ranked: what reranking says of it, a score of NaN where it could not be used; None where
            nothing was reranked.
    """

    id: str
    document: Document
    place: int
    retrieval_score: float
    ranked: RankedDocument | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the reranker could use it, if there was one."""
        return self.ranked is None or not math.isnan(self.ranked.score)

    @property
    def is_kept(self) -> bool:
        """Whether it reached the reranker's threshold."""
        return self.ranked is not None and self.ranked.kept

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        retrieved = {"retrieved": self.place, "retrieval_score": self.retrieval_score}
        reranked = {}
        if (ranked := self.ranked) is not None:
            reranked = {"relevance": ranked.score, "raw": ranked.raw, "kept": ranked.kept}
        return {"id": self.id, **content(self.document, self.id), **retrieved, **reranked}


@dataclass(frozen=True)
class Found:
    """What was found for a question.

    Attributes:
        query: the question.
        index: what was searched: a folder, or an address in Milvus.
        num_documents: that it holds.
        documents: the candidates, the most relevant first; without a reranker in the retriever's
            order.
        threshold: from what relevance they are kept; None without a reranker.
        retriever_weight: how much the retriever's order counted in reranking.
    """

    query: Query
    index: str
    num_documents: int
    documents: Sequence[FoundDocument]
    threshold: float | None
    retriever_weight: float = 0.0

    @classmethod
    def of(
        cls,
        query: Query,
        index: str,
        num_documents: int,
        retrieved: Sequence[RetrievedDocument],
        ranked: Sequence[RankedDocument] | None,
        threshold: float | None,
        retriever_weight: float = 0.0,
    ) -> Found:
        """The documents of a retriever's order, in that of the reranker if there was one."""
        order = range(len(retrieved)) if ranked is None else [one.index for one in ranked]
        documents = [
            FoundDocument(
                retrieved[i].id,
                retrieved[i].document,
                i + 1,
                retrieved[i].score,
                None if ranked is None else ranked[place],
            )
            for place, i in enumerate(order)
        ]
        return cls(query, index, num_documents, documents, threshold, retriever_weight)

    def as_json(self, top_k: int) -> dict[str, Any]:
        """What `--json` prints, with the first `top_k` documents."""
        image = self.query.image
        pictured = {} if image is None else {"query_picture": self.query.pictures[0].path}
        reranked = {} if self.threshold is None else {"threshold": self.threshold}
        weighed = {"retriever_weight": self.retriever_weight} if self.retriever_weight else {}
        return {
            "query": self.query.text or "",
            **pictured,
            "index": self.index,
            "num_documents": self.num_documents,
            "num_candidates": len(self.documents),
            **reranked,
            **weighed,
            "results": [one.as_json() for one in self.documents[:top_k]],
        }


@dataclass(frozen=True)
class Answered:
    """An answer, and what it is from.

    Attributes:
        text: the answer.
        evidence: the documents that the generator was given; there may be none.
    """

    text: str
    evidence: Sequence[FoundDocument]


def print_found(documents: Sequence[FoundDocument]) -> None:
    """Prints a table with a row a document."""
    has_captions = any(one.document.caption for one in documents)
    is_reranked = any(one.ranked is not None for one in documents)
    columns = ["document", *(["caption"] if has_captions else []), "retrieved"]
    columns += ["relevance", "kept"] if is_reranked else ["score"]
    rows = []
    for one in documents:
        row = [one.id]
        if has_captions:
            row.append(shown(one.document.caption or "", _CAPTION_SHOWN))
        row.append(str(one.place))
        if one.ranked is None:
            row.append(f"{one.retrieval_score:.4f}")
        else:
            row.append(f"{one.ranked.score:.4f}" if one.is_usable else "cannot be used")
            row.append("yes" if one.is_kept else "no")
        rows.append(row)
    print_table(columns, rows, numbers=("retrieved", "relevance", "score"), paths=("document",))


def write_page(found: Found, path: Path, answer: Answered | None = None) -> None:
    """Writes a page that needs no other file: the question, the answer, the documents found.

    Args:
        found: what was found.
        path: the HTML file.
        answer: the answer, if there is one.
    """
    source = (files("ragvl.cli") / "found.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    orders = {"Retrieved": sorted(found.documents, key=lambda one: one.place)}
    if found.threshold is not None:
        orders = {"Reranked": list(found.documents), **orders}
    page = environment.from_string(source).render(
        found=found,
        answer=answer,
        evidence=[] if answer is None else [one.id for one in answer.evidence],
        orders=orders,
        faces={one.id: Face.of(one.document) for one in found.documents},
        asked=[picture_url(picture) for picture in found.query.pictures],
    )
    # Half a character, as a broken file name has, must not lose the page
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
