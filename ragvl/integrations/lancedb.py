"""LanceDB: a reranker of search results that sees a column of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ragvl.extras import extra
from ragvl.integrations.common import Content, Ranking
from ragvl.messages import quoted, shown
from ragvl.reranker import Reranker

with extra("lancedb", "lancedb"):
    import pyarrow as pa
    from lancedb.rerankers import Reranker as BaseReranker


class RagVLReranker(BaseReranker):
    """Orders what a vector, full-text or hybrid search found by relevance, pictures included.

    A row's text is the caption of its picture; a row whose picture is null is a text. Relevance, a
    probability, is in the column `_relevance_score`.

    Args:
        model: a hub id or a folder; the address of a `ragvl serve`; or a `ragvl.Reranker`.
        column: holds the texts; None if there are none.
        image_column: holds the pictures: files' bytes, paths, data: URLs, or structs of "bytes" and
            "path"; None if there are none.
        return_score: "relevance", or "all" to keep the scores of the searches, too.
        allow_urls: hosts that pictures behind http(s) URLs are fetched from, by default none;
            see `made_documents` of `ragvl.integrations.common`.
        kwargs: what else `Reranker.from_pretrained` takes, such as `device`, `dtype` and
            `prefix_cache`, or `ragvl.Client` of an address.

    Raises:
        OSError, ValueError, TypeError: the model cannot be loaded; see `Reranker.from_pretrained`.
        ValueError: both columns are None, or another value of `return_score`.

    Example:
        >>> reranker = RagVLReranker(folder)
        >>> table.search(vector).limit(20).rerank(reranker, "What color is the boat?").to_arrow()
    """

    def __init__(
        self,
        model: str | Path | Reranker,
        column: str | None = "text",
        image_column: str | None = "image",
        return_score: Literal["relevance", "all"] = "relevance",
        *,
        allow_urls: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(return_score)
        if column is None and image_column is None:
            raise ValueError("column and image_column are both None: there is nothing to rank by")
        self.column = column
        self.image_column = image_column
        self._ranking = Ranking(model, kwargs, allow_urls=allow_urls).opened()

    def rerank_hybrid(
        self, query: str, vector_results: pa.Table, fts_results: pa.Table
    ) -> pa.Table:
        """Rows of both searches, each once, the most relevant first.

        Raises:
            ValueError: a column is missing, or a row cannot be used; the message says which.
        """
        merge = self._merge_and_keep_scores if self.score == "all" else self.merge_results
        return self._ranked(query, merge(vector_results, fts_results))

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        """What a vector search found; see `rerank_hybrid`."""
        return self._ranked(query, vector_results)

    def rerank_fts(self, query: str, fts_results: pa.Table) -> pa.Table:
        """What a full-text search found; see `rerank_hybrid`."""
        return self._ranked(query, fts_results)

    def _ranked(self, query: str, rows: pa.Table) -> pa.Table:
        ranked = self._ranking.rank(query, self._contents(rows))
        scores = pa.array([one.score for one in ranked], type=pa.float32())
        found = rows.take(pa.array([one.index for one in ranked], type=pa.int64()))
        return self._keep_relevance_score(found.append_column("_relevance_score", scores))

    def _contents(self, rows: pa.Table) -> list[Content]:
        texts, images = self._cells(rows, self.column), self._cells(rows, self.image_column)
        return [Content(text, image) for text, image in zip(texts, images, strict=True)]

    def _cells(self, rows: pa.Table, column: str | None) -> list[Any]:
        if column is None:
            return [None] * len(rows)
        if column not in rows.column_names:
            raise ValueError(
                f"the results have no column {quoted(column)}: select it, or name another; they "
                f"have {shown(', '.join(rows.column_names))}"
            )
        return rows[column].to_pylist()
