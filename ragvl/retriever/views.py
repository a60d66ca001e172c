"""Vectors of documents beside the encoder that made them, searched alone or as one of two."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

from ragvl.arguments import checked_count
from ragvl.data.query import QueryLike
from ragvl.identity import name_of
from ragvl.retriever.encoding import Encoder, checked_queries
from ragvl.retriever.fusion import FUSED_DEPTH, Fusion, Order, OrderHits, fuse, parse_fusion
from ragvl.retriever.index import Selection, VectorIndex
from ragvl.retriever.kinds import Hits, kinds_of, search_in_turn


class View:
    """An encoder, and an index of what it makes of documents.

    Args:
        encoder: makes the vectors.
        index: holds those of documents; of no use here after it was added to or removed from.
        texts: ids of documents without a picture; there may be others among them.
    """

    def __init__(self, encoder: Encoder, index: VectorIndex, texts: Collection[str]) -> None:
        self.encoder = encoder
        self.index = index
        self._texts = texts

    @cached_property
    def _kinds(self) -> list[Selection]:
        """Kinds of documents that take turns; a text encoder's captions and texts compare."""
        return kinds_of(self.index, self._texts) if self.encoder.reads_pictures else []

    def search(self, queries: Sequence[QueryLike], k: int) -> list[Hits]:
        """The `k` best documents for each query, with their cosines.

        Raises:
            TypeError, ValueError, ImageError: see `Encoder.encode_queries`.
        """
        vectors = self.encoder.encode_queries(queries)
        return search_in_turn(self.index, vectors, k, self._kinds)


def search_views(
    views: Mapping[Order, View], queries: Sequence[QueryLike], k: int
) -> list[dict[Order, OrderHits]]:
    """What each order finds for each query, deep enough to be fused.

    A query without a text is one for the pictures' order alone.

    Args:
        views: by order.
        queries: what is searched for.
        k: how many documents are wanted in the end.

    Raises:
        TypeError, ValueError, ImageError: see `Encoder.encode_queries`; or `k` is below 1.
    """
    k = checked_count("k", k)  # before it is hidden by how deep the two are searched
    every = checked_queries(queries)
    filled = {order: view for order, view in views.items() if len(view.index)}
    looks = any(view.encoder.reads_pictures for view in filled.values())
    depth = max(k, FUSED_DEPTH) if len(views) > 1 else k
    found: list[dict[Order, OrderHits]] = [{} for _ in every]
    for order, view in filled.items():
        # Without an order of pictures, the encoder of texts says what is wrong with a query
        readable = [
            (query, of_query)
            for query, of_query in zip(every, found, strict=True)
            if view.encoder.reads_pictures or query.text is not None or not looks
        ]
        rows = view.search([query for query, _ in readable], depth)
        for (_, of_query), hits in zip(readable, rows, strict=True):
            of_query[order] = OrderHits(hits, len(view.index), view.index.__contains__)
    return found


def search_fused(
    views: Mapping[Order, View], fusion: Fusion, queries: Sequence[QueryLike], k: int
) -> list[Hits]:
    """The `k` best documents for each query by both orders; raises as `search_views` does."""
    return [fuse(found, fusion, k) for found in search_views(views, queries, k)]


def estimated_fusion(
    encoders: Mapping[Order, Encoder], fusion: str | None, retriever: str
) -> Fusion | None:
    """What `ragvl calibrate` estimated for two encoders, if it was for these.

    Args:
        encoders: those in use.
        fusion: the estimate's; None where there is none.
        retriever: what `retriever_name` called that which it was estimated for.
    """
    if fusion is None or len(encoders) < 2:
        return None
    estimated = parse_fusion(fusion)
    return estimated if retriever_name(encoders, estimated) == retriever else None


def retriever_name(encoders: Mapping[Order, Encoder], fusion: Fusion) -> str:
    """Names what decides an order: the fingerprint of one encoder, or of both and their fusion."""
    fingerprints = [encoder.fingerprint for encoder in encoders.values()]
    if len(fingerprints) == 1:
        return fingerprints[0]
    return name_of("fused", *fingerprints, fusion.name)
