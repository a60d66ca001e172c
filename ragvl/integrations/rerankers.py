"""The library `rerankers`: a ranker that sees pictures.

Once this module is imported, `rerankers.Reranker(folder, model_type="RagVLRanker")` makes one, too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragvl.extras import extra
from ragvl.integrations.common import Content, Ranking
from ragvl.reranker import Reranker

with extra("rerankers", "rerankers"):
    from rerankers.documents import Document
    from rerankers.models import AVAILABLE_RANKERS
    from rerankers.models.ranker import BaseRanker
    from rerankers.results import RankedResults, Result


class RagVLRanker(BaseRanker):
    """Orders texts and pictures by relevance.

    A string is a text. A picture is a `Document(document_type="image")` with `base64` or
    `image_path`; its `text` is its caption.

    Args:
        model_name_or_path: a hub id or a folder; the address of a `ragvl serve`; or a
            `ragvl.Reranker`.
        verbose: taken, as every ranker does; nothing is printed.
        allow_urls: hosts that pictures behind http(s) URLs are fetched from, by default none;
            see `made_documents` of `ragvl.integrations.common`.
        kwargs: what else `Reranker.from_pretrained` takes, such as `device`, `dtype` and
            `prefix_cache`, or `ragvl.Client` of an address.

    Raises:
        OSError, ValueError, TypeError: the model cannot be loaded; see `Reranker.from_pretrained`.

    Example:
        >>> ranker = RagVLRanker(folder)
        >>> page = Document(document_type="image", image_path="page-7.png", doc_id="page 7")
        >>> ranker.rank("What color is the boat?", [page]).top_k(1)
    """

    def __init__(
        self,
        model_name_or_path: str | Path | Reranker,
        verbose: int = 1,
        *,
        allow_urls: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self.verbose = verbose
        self._ranking = Ranking(model_name_or_path, kwargs, allow_urls=allow_urls).opened()

    def rank(
        self,
        query: str,
        docs: str | Document | Sequence[str | Document],
        doc_ids: Sequence[str | int] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> RankedResults:
        """The most relevant first; `rank_async` is the same in a thread.

        Args:
            query: the question.
            docs: one document or several; they stay as they are, results hold copies.
            doc_ids: what to call them, in the place of their own; by default their numbers.
            metadata: in the place of their own.

        Raises:
            ValueError: the query is empty, a document cannot be used, which the message names, or
                there are more or fewer names than documents.
        """
        documents = _listed(docs, doc_ids, metadata)
        ranked = self._ranking.rank(query, [_content(one) for one in documents])
        results = [
            Result(document=documents[one.index], score=one.score, rank=place)
            for place, one in enumerate(ranked, 1)
        ]
        return RankedResults(results=results, query=query, has_scores=True)

    def score(self, query: str, doc: str | Document) -> float:
        """One document's relevance; raises what `rank` does."""
        return self.rank(query, doc).results[0].score


AVAILABLE_RANKERS["RagVLRanker"] = RagVLRanker


def _listed(
    docs: str | Document | Sequence[str | Document],
    doc_ids: Sequence[str | int] | None,
    metadata: Sequence[dict[str, Any]] | None,
) -> list[Document]:
    given = [docs] if isinstance(docs, str | Document) else docs
    documents = [Document(one) if isinstance(one, str) else copy.copy(one) for one in given]
    for name, values in (("doc_ids", doc_ids), ("metadata", metadata)):
        if values is not None and len(values) != len(documents):
            raise ValueError(f"{len(documents)} documents, and {len(values)} {name}")
    for place, document in enumerate(documents):
        if doc_ids is not None:
            document.doc_id = doc_ids[place]
        elif document.doc_id is None:
            document.doc_id = place
        if metadata is not None:
            document.metadata = metadata[place]
    return documents


def _content(document: Document) -> Content:
    image = document.image_path
    if document.base64:
        image = f"data:;base64,{document.base64}"
    return Content(document.text, image, f"doc_id={document.doc_id}")
