"""Rerank documents for a query in one call."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

# Heavy imports wait for the first call, so that `import ragvl` is quick.
if TYPE_CHECKING:
    from ragvl.data.document import DocumentLike
    from ragvl.data.query import QueryLike
    from ragvl.reranker import RankedDocument, Reranker, Threshold


def fast_rerank(
    query: QueryLike,
    documents: Iterable[DocumentLike],
    *,
    model: str | Path | Reranker,
    top_k: int | None = None,
    threshold: Threshold = "natural",
    preset: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
) -> list[RankedDocument]:
    """Documents by relevance to `query`, the most relevant first.

    Args:
        query: a text, a picture, or a `Query` of both.
        documents: `Document`s of any kinds, or bare image paths or pictures; see `Reranker.rank`.
        model: a hub id or a folder of any image-text-to-text model, or a `Reranker`. The model
            loaded last is kept for the next call.
        top_k: how many to return; all by default.
        threshold: "natural" (0.5) or a probability; decides `kept`.
        preset: the name of what the checkpoint was trained on; see `Reranker.from_pretrained`. Of a
            `Reranker`, its own.
        device: "auto" is CUDA where it is present. Of a `Reranker`, its own.
        dtype: "auto" is bfloat16 on a GPU and float32 on a CPU. Of a `Reranker`, its own.

    Returns:
        At most `top_k` `RankedDocument(index, document, score, kept)`; `score` is relevance, the
        probability of Yes against No.

    Raises:
        ValueError: an empty query, no documents, `top_k` below 1, a threshold outside 0..1.
        DocumentError: a document cannot be used, such as a picture that cannot be read; the message
            names it.

    Examples:
        >>> ranked = ragvl.fast_rerank("What color is the roof?", ["a.jpg", "b.jpg"], model=folder)
        >>> [r.index for r in ranked if r.kept]
        [1]
    """
    if isinstance(model, (str, Path)):
        from ragvl.reranker import checked_request

        documents = checked_request(query, documents, top_k, threshold)
        model = _load(str(model), preset, device, dtype)
    return model.rank(query, documents, top_k=top_k, threshold=threshold)


@lru_cache(maxsize=1)
def _load(path: str, preset: str, device: str, dtype: str) -> Reranker:
    from ragvl.reranker import Reranker

    return Reranker.from_pretrained(path, preset=preset, device=device, dtype=dtype)
