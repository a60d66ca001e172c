"""Vectors of documents beside the encoder that made them, searched alone or as one of two."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ragvl.arguments import checked_count
from ragvl.data.query import QueryLike
from ragvl.identity import name_of
from ragvl.retriever.encoding import Encoder, checked_queries
from ragvl.retriever.fusion import FUSED_DEPTH, Fusion, Order, OrderHits, fuse, parse_fusion
from ragvl.retriever.kinds import MixedIndex
from ragvl.retriever.store import Hits


class View:
    """An encoder, and an index of what it makes of documents.

    Args:
        encoder: makes the vectors.
        mixed: holds those of documents.

    Attributes:
        index: the FAISS index in `mixed`.
    """

    def __init__(self, encoder: Encoder, mixed: MixedIndex) -> None:
        self.encoder = encoder
        self.index = mixed.index
        self._mixed = mixed

    def search(
        self, queries: Sequence[QueryLike], k: int, among: Collection[str] | None = None
    ) -> list[Hits]:
        """The `k` best documents for each query, with their cosines.

        A dual encoder's pictures and texts take turns; a text encoder's captions and texts compare.

        Args:
            queries: what is searched for.
            k: how many.
            among: ids; search those of them only that the index holds.

        Raises:
            TypeError, ValueError, ImageError: see `Encoder.encode_queries`.
        """
        vectors = self.encoder.encode_queries(queries)
        in_turn = self.encoder.reads_pictures
        return self._mixed.search(vectors, k, among, in_turn=in_turn)

    def size(self, among: Collection[str] | None = None) -> int:
        """How many documents are searched."""
        return len(self.index) if among is None else sum(id in self.index for id in among)


def search_views(
    views: Mapping[Order, View],
    queries: Sequence[QueryLike],
    k: int,
    among: Collection[str] | None = None,
) -> list[dict[Order, OrderHits]]:
    """What each order finds for each query, deep enough to be fused.

    A query without a text is one for the pictures' order alone.

    Args:
        views: by order.
        queries: what is searched for.
        k: how many documents are wanted in the end.
        among: ids; search these documents only.

    Raises:
        TypeError, ValueError, ImageError: see `Encoder.encode_queries`; or `k` is below 1.
    """
    k = checked_count("k", k)  # before it is hidden by how deep the two are searched
    every = checked_queries(queries)
    sizes = {order: view.size(among) for order, view in views.items()}
    filled = {order: view for order, view in views.items() if sizes[order]}
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
        rows = view.search([query for query, _ in readable], depth, among)
        for (_, of_query), hits in zip(readable, rows, strict=True):
            of_query[order] = OrderHits(hits, sizes[order], view.index.__contains__)
    return found


def search_fused(
    views: Mapping[Order, View],
    fusion: Fusion,
    queries: Sequence[QueryLike],
    k: int,
    among: Collection[str] | None = None,
) -> list[Hits]:
    """The `k` best documents for each query by both orders; raises as `search_views` does."""
    return [fuse(found, fusion, k) for found in search_views(views, queries, k, among)]


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
