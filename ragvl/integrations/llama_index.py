"""LlamaIndex: a node postprocessor that sees pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, PrivateAttr

from ragvl.extras import extra
from ragvl.integrations.common import Content, Ranking
from ragvl.reranker import Reranker, Threshold

with extra("llama-index", "llama_index"):
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import (
        BaseNode,
        ImageNode,
        MetadataMode,
        NodeWithScore,
        QueryBundle,
    )


class RagVLRerank(BaseNodePostprocessor):
    """Orders retrieved nodes by relevance, `ImageNode`s and multimodal nodes included.

    A node's text is the caption of its picture, if it has one. Nodes come back as new
    `NodeWithScore`s around the same nodes; their score is relevance, a probability.

    Attributes:
        model: a hub id or a folder; the address of a `ragvl serve`; or a `ragvl.Reranker`.
        top_n: how many come back at most; None for all.
        threshold: leave out what does not reach it: a probability, or the name of one that was
            estimated for the model. By default nothing is left out.
        image_key: where the metadata of a node that is text has a picture: a path, a file's bytes,
            a PIL image, an array, a data: URL.
        allow_urls: hosts that pictures behind http(s) URLs are fetched from, by default none;
            see `made_documents` of `ragvl.integrations.common`.
        metadata_mode: how much of a node's metadata is in its text; by default nothing, as models
            that know captions were trained.
        model_kwargs: what else `Reranker.from_pretrained` takes, such as `device`, `dtype` and
            `prefix_cache`, or `ragvl.Client` of an address.

    Raises:
        OSError, ValueError, TypeError: the model cannot be loaded; see `Reranker.from_pretrained`.

    Example:
        >>> engine = index.as_query_engine(node_postprocessors=[RagVLRerank(model=folder, top_n=2)])
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    model: str | Path | Reranker
    top_n: int | None = Field(None, ge=1)
    threshold: Threshold | None = None
    image_key: str = "image"
    allow_urls: tuple[str, ...] = ()
    metadata_mode: MetadataMode = MetadataMode.NONE
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

    @classmethod
    def class_name(cls) -> str:
        """What it is called in serialised components."""
        return "RagVLRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """The most relevant nodes first; the asynchronous form is the same in a thread.

        Raises:
            ValueError: there is no query, or a node cannot be used; the message names it.
        """
        if query_bundle is None:
            raise ValueError("there is no query to rank by: give query_str= or query_bundle=")
        told = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: str(self.model),
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=told) as event:
            contents = [self._content(one.node) for one in nodes]
            ranked = self._ranking.rank(query_bundle.query_str, contents)
            found = [NodeWithScore(node=nodes[one.index].node, score=one.score) for one in ranked]
            event.on_end(payload={EventPayload.NODES: found})
        return found

    def _content(self, node: BaseNode) -> Content:
        text = node.get_content(metadata_mode=self.metadata_mode)
        return Content(text, _image(node) or node.metadata.get(self.image_key), node.node_id)


def _image(node: BaseNode) -> str | None:
    """A node's own picture: a data: URL, a path or a URL."""
    if isinstance(node, ImageNode):
        data, path, url = node.image, node.image_path, node.image_url
    elif (resource := getattr(node, "image_resource", None)) is not None:
        data, path, url = (resource.data or b"").decode(), resource.path, resource.url
    else:
        return None
    if data:
        return data if data[:5].lower() == "data:" else f"data:;base64,{data}"
    return str(path or url or "") or None
