"""`WarmPrefixes`: prefixes of a dataset's documents, into a folder that all workers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.distributed.batches import Batch, texts, with_columns
from ragvl.distributed.documents import DocumentColumns, messages
from ragvl.distributed.partition import content_name
from ragvl.distributed.worker import assigned_device, loading
from ragvl.prefix_cache import PrefixCache
from ragvl.reranker import Reranker

BUILT, KNOWN = "built", "known"


class WarmPrefixes:
    """Computes each document's prefix into a cache, for `ray.data.Dataset.map_batches`.

    Takes batches of any format. After `partition_by_document` each prefix is computed once in the
    whole cluster. A row whose document cannot be used gets a message in the error column.

    Args:
        model: a reranker's folder or hub id, which must be there on each worker.
        prefix_cache: where prefixes are kept: its folder, of a file system that workers share.
        outcome_column: gets "built", "known", or nothing.
        error_column: gets messages.
        device: "auto" is the GPU that Ray gave (`num_gpus`), else the CPU.
        versions: the driver's `ragvl.distributed.versions()`, to refuse workers with others.
        load: `image_column` and the like, see `DocumentColumns`; and what else
            `Reranker.from_pretrained` takes.

    Raises:
        OSError: there is no such model on this node; the message names it.
        VersionMismatchError: versions differ.
        ValueError: of a setting, or of the model.
    """

    def __init__(
        self,
        model: str | Path,
        prefix_cache: PrefixCache,
        *,
        outcome_column: str = "prefix",
        error_column: str = "error",
        device: str = "auto",
        versions: Mapping[str, str] | None = None,
        **load: Any,
    ) -> None:
        self._columns = DocumentColumns.taken_from(load)
        self._outcome_column, self._error_column = outcome_column, error_column
        with loading(versions):
            self.reranker = Reranker.from_pretrained(
                model, device=assigned_device(device), prefix_cache=prefix_cache, **load
            )

    def __call__(self, batch: Batch) -> Batch:
        """The batch with outcomes and errors.

        Raises:
            UnknownColumnError: a column is not there.
        """
        outcomes = warm_each(self.reranker, self._columns.documents(batch))
        done = [one if isinstance(one, str) else None for one in outcomes]
        return with_columns(
            batch,
            {self._outcome_column: texts(done), self._error_column: texts(messages(outcomes))},
        )


def warm_each(
    reranker: Reranker, documents: Sequence[Document | Exception]
) -> list[str | Exception]:
    """Of each document whether its prefix was built or known, or why there is none.

    Of several of one content the first is the one that was built.
    """
    outcomes: dict[int, str | Exception] = {}
    distinct: dict[str, Document] = {}
    places: dict[str, list[int]] = {}
    for place, document in enumerate(documents):
        if isinstance(document, Exception):
            outcomes[place] = document
            continue
        try:
            name = content_name(document)
        except DocumentError as error:
            outcomes[place] = error
            continue
        distinct.setdefault(name, document)
        places.setdefault(name, []).append(place)
    warmed = reranker.warm_each(list(distinct.values()))
    for (first, *others), outcome in zip(places.values(), warmed, strict=True):
        outcomes[first] = outcome
        outcomes |= dict.fromkeys(others, KNOWN if outcome == BUILT else outcome)
    return [outcomes[place] for place in range(len(documents))]
