"""`RerankPairs`: relevance of a dataset's rows, a query and a document each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragvl.data.document import Document
from ragvl.data.query import Query
from ragvl.distributed.batches import Batch, column, numbers, texts, with_columns
from ragvl.distributed.documents import DocumentColumns, messages
from ragvl.distributed.worker import assigned_device, loading
from ragvl.reranker import Reranker, ScoredPair


class RerankPairs:
    """Adds the relevance of each row's document to its query, for `ray.data.Dataset.map_batches`.

    Takes batches of any format. Scores are bitwise those of `Reranker.score` with as many threads.
    A prefix is computed once for a batch, and kept by the worker as far as its cache goes; after
    `partition_by_document` all rows of a document are one worker's. A row that cannot be scored
    gets no score and a message in the error column.

    Args:
        model: a reranker's folder or hub id, which must be there on each worker.
        query_column: queries: texts, pictures, or {"text": ..., "image": ..., "instruction": ...}.
        score_column: gets relevance, float32.
        error_column: gets messages.
        device: "auto" is the GPU that Ray gave (`num_gpus`), else the CPU.
        batch_size: at most so many prompts in one forward pass; as many as pay by default.
        versions: the driver's `ragvl.distributed.versions()`, to refuse workers with others.
        load: `image_column` and the like, see `DocumentColumns`; and what else
            `Reranker.from_pretrained` takes, such as `template` or `prefix_cache`.

    Raises:
        OSError: there is no such model on this node; the message names it.
        VersionMismatchError: versions differ.
        ValueError: of a setting, or of the model.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        query_column: str = "query",
        score_column: str = "score",
        error_column: str = "error",
        device: str = "auto",
        batch_size: int | None = None,
        versions: Mapping[str, str] | None = None,
        **load: Any,
    ) -> None:
        self._columns = DocumentColumns.taken_from(load)
        self._query_column, self._batch_size = query_column, batch_size
        self._score_column, self._error_column = score_column, error_column
        with loading(versions):
            self.reranker = Reranker.from_pretrained(model, device=assigned_device(device), **load)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with scores and errors.

        Raises:
            UnknownColumnError: a column is not there.
        """
        queries = [_query(value) for value in column(batch, self._query_column)]
        documents = self._columns.documents(batch)
        outcomes: list[ScoredPair | Exception | None] = []
        pairs: dict[int, tuple[Query, Document]] = {}
        for place, (query, document) in enumerate(zip(queries, documents, strict=True)):
            if isinstance(query, Exception):
                outcomes.append(query)
            elif isinstance(document, Exception):
                outcomes.append(document)
            else:
                outcomes.append(None)
                pairs[place] = query, document
        scored = self.reranker.score_each(pairs.values(), batch_size=self._batch_size)
        for place, one in zip(pairs, scored, strict=True):
            outcomes[place] = one
        scores = [one.score if isinstance(one, ScoredPair) else None for one in outcomes]
        return with_columns(
            batch,
            {self._score_column: numbers(scores), self._error_column: texts(messages(outcomes))},
        )


def _query(value: Any) -> Query | Exception:
    if value is None:
        return ValueError("the row has no query")
    try:
        return Query.of(value)
    except (TypeError, ValueError) as error:
        return error
