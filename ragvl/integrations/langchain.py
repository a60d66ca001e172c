"""LangChain: a document compressor that sees pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragvl.extras import extra
from ragvl.integrations.common import Content, Ranking
from ragvl.reranker import Reranker, Threshold

with extra("langchain", "langchain_core"):
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, Field, PrivateAttr


class RagVLReranker(BaseDocumentCompressor):
    """Orders retrieved documents by relevance, their pictures included.

    A document's picture is named in its metadata, and `page_content` is its caption then; a
    document without one is a text. Documents that come back are copies with
    `metadata["relevance_score"]`, a probability.

    Attributes:
        model: a hub id or a folder; the address of a `ragvl serve`; or a `ragvl.Reranker`.
        top_n: how many come back at most; None for all.
        threshold: leave out what does not reach it: a probability, or the name of one that was
            estimated for the model. By default nothing is left out.
        image_key: where a document's metadata has its picture: a path, a file's bytes, a PIL image,
            an array, a data: URL.
        allow_urls: hosts that pictures behind http(s) URLs are fetched from, by default none;
            see `made_documents` of `ragvl.integrations.common`.
        model_kwargs: what else `Reranker.from_pretrained` takes, such as `device`, `dtype` and
            `prefix_cache`, or `ragvl.Client` of an address.

    Raises:
        OSError, ValueError, TypeError: the model cannot be loaded; see `Reranker.from_pretrained`.

    Example:
        >>> reranker = RagVLReranker(model=folder, top_n=2)
        >>> reranker.compress_documents(
        ...     [Document("The harbour", metadata={"image": "a.jpg"})], "What color is the boat?"
        ... )
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    model: str | Path | Reranker
    top_n: int | None = Field(None, ge=1)
    threshold: Threshold | None = None
    image_key: str = "image"
    allow_urls: tuple[str, ...] = ()
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    _ranking: Ranking = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Loads the model."""
        super().model_post_init(context)
        self._ranking = Ranking(
            self.model,
            self.model_kwargs,
            top_k=self.top_n,
            threshold=self.threshold,
            allow_urls=self.allow_urls,
        ).opened()

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002  there is nothing on the way to tell of
    ) -> list[Document]:
        """The most relevant documents first; `acompress_documents` is the same in a thread.

        Raises:
            ValueError: the query is empty, or a document cannot be used; the message names it.
        """
        contents = [
            Content(one.page_content, one.metadata.get(self.image_key), one.id) for one in documents
        ]
        ranked = self._ranking.rank(query, contents)
        return [_scored(documents[one.index], one.score) for one in ranked]


def _scored(document: Document, score: float) -> Document:
    return document.model_copy(update={"metadata": {**document.metadata, "relevance_score": score}})
