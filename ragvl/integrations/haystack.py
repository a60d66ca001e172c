"""Haystack: a ranker that sees pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ragvl.extras import extra
from ragvl.integrations.common import Content, Ranking
from ragvl.reranker import Reranker, Threshold

with extra("haystack", "haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict


@component
class RagVLRanker:
    """Orders documents by relevance, their pictures included.

    A document's picture is its `blob`, where that is a picture, or named in its `meta`; `content`
    is its caption then. A document without one is a text. Documents that come back are copies whose
    `score` is relevance, a probability.

    Args:
        model: a hub id or a folder; the address of a `ragvl serve`; or a `ragvl.Reranker`, with
            which a pipeline cannot be written to a file.
        top_k: how many come back at most; all by default.
        score_threshold: leave out what does not reach it: a probability, or the name of one that
            was estimated for the model. By default nothing is left out.
        image_meta_field: where a document's `meta` has its picture: a path, a data: URL.
        allow_urls: hosts that pictures behind http(s) URLs are fetched from, by default none;
            see `made_documents` of `ragvl.integrations.common`.
        model_kwargs: what else `Reranker.from_pretrained` takes, such as `device`, `dtype` and
            `prefix_cache`, or `ragvl.Client` of an address.

    Raises:
        ValueError: a number or a host is none. The model is loaded by `warm_up`.

    Example:
        >>> pipeline.add_component("ranker", RagVLRanker(model=folder, top_k=2))
        >>> pipeline.connect("retriever.documents", "ranker.documents")
    """

    def __init__(
        self,
        model: str | Path | Reranker,
        top_k: int | None = None,
        score_threshold: Threshold | None = None,
        image_meta_field: str = "image",
        allow_urls: Sequence[str] = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.image_meta_field = image_meta_field
        self.allow_urls = allow_urls
        self.model_kwargs = model_kwargs
        self._ranking = Ranking(
            model, model_kwargs, top_k=top_k, threshold=score_threshold, allow_urls=allow_urls
        )

    def warm_up(self) -> None:
        """Loads the model.

        Raises:
            ValueError, TypeError, OSError: it cannot be loaded; see `Reranker.from_pretrained`.
        """
        self._ranking.opened()

    def to_dict(self) -> dict[str, Any]:
        """What a pipeline's file says of it.

        Raises:
            ValueError: its model is a loaded `Reranker`, which no file can hold.
        """
        if isinstance(self.model, Reranker):
            raise ValueError(
                "RagVLRanker(model=) holds a loaded Reranker, which cannot be written: give its "
                "folder or hub id"
            )
        return default_to_dict(
            self,
            model=str(self.model),
            top_k=self.top_k,
            score_threshold=self.score_threshold,
            image_meta_field=self.image_meta_field,
            allow_urls=list(self.allow_urls),
            model_kwargs=self.model_kwargs,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RagVLRanker:
        """The component that `to_dict` wrote."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: Threshold | None = None,
    ) -> dict[str, list[Document]]:
        """The most relevant documents first.

        Args:
            query: the question.
            documents: what to order.
            top_k: in the place of the component's.
            score_threshold: in the place of the component's.

        Raises:
            ValueError: the query is empty, or a document cannot be used; the message names it.
        """
        contents = [self._content(one) for one in documents]
        ranked = self._ranking.rank(query, contents, top_k=top_k, threshold=score_threshold)
        return {"documents": [replace(documents[one.index], score=one.score) for one in ranked]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: Threshold | None = None,
    ) -> dict[str, list[Document]]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k, score_threshold)

    def _content(self, document: Document) -> Content:
        image: Any = document.meta.get(self.image_meta_field)
        blob = document.blob
        if blob is not None and (blob.mime_type or "image/").startswith("image/"):
            image = blob.data
        return Content(document.content, image, document.id)
