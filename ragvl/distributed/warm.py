"""`WarmPrefixes`: prefixes of a dataset's documents, into a folder that all workers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from itertools import islice, tee
from pathlib import Path
from typing import Any, Literal, TypeVar

from ragvl.blocks import MapBlocks, Works
from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.distributed.batches import Batch, texts, with_columns
from ragvl.distributed.documents import DocumentColumns, messages
from ragvl.distributed.partition import content_name
from ragvl.distributed.worker import assigned_device, loading
from ragvl.prefix_cache import PrefixCache
from ragvl.prefix_cache.payloads import Kind
from ragvl.progress import ProgressBar
from ragvl.reranker import Reranker, WarmReport
from ragvl.reranker.scorer import Refuse, refuse_by

BUILT, KNOWN, SKIPPED = "built", "known", "skipped"

_NAME, _WARM = "name", "warm"
_DOCUMENTS_AT_ONCE = 32

Item = TypeVar("Item")
Named = tuple[str, Document]
Sent = tuple[Kind | None, list[Document]]


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


def warming_works(reranker: Reranker) -> Works:
    """What `warm_documents` has done."""
    return {_NAME: _names, _WARM: partial(_warm, reranker)}


def _names(documents: Sequence[Document]) -> list[str | DocumentError]:
    """What names each document's content, or why nothing does."""
    names: list[str | DocumentError] = []
    for document in documents:
        try:
            names.append(content_name(document))
        except DocumentError as error:
            names.append(error)
    return names


def _warm(reranker: Reranker, sent: Sent) -> tuple[list[str | Exception], Kind | None]:
    """Each document's outcome, and what the cache keeps of prefixes, which `sent` may say."""
    kind, documents = sent
    tiers = reranker.prefix_cache.below
    if kind is not None:
        tiers.decide(kind)
    return list(reranker.warm_each(documents)), tiers.kind


def warm_documents(
    reranker: Reranker,
    documents: Iterable[Document],
    map_blocks: MapBlocks,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> WarmReport:
    """`Reranker.warm` by several processes, which share the folder of the reranker's cache.

    Each prefix is computed once, and the folder gets the records that one process would write.

    Args:
        reranker: as it is sent to the processes.
        documents: documents, whose pictures' paths mean the same in all of them.
        map_blocks: does `warming_works` of the reranker.
        on_error: "raise" at a document that cannot be used, or "skip" it.
        progress: show a bar.

    Raises:
        DocumentError, PromptTooLongError, ValueError: see `Reranker.warm`.
    """
    total = len(documents) if isinstance(documents, Sized) else None
    with ProgressBar(total=total, desc="warm", unit="doc", disable=not progress) as bar:
        warming = _Warming(map_blocks, refuse_by(on_error), bar)
        distinct = warming.distinct(documents)
        kind, size = reranker.prefix_cache.below.kind, 1
        # Where it is not said what is kept, the first prefix that is computed decides for all
        while kind is None and not warming.counts[BUILT]:
            if not (block := list(islice(distinct, size))):
                break
            (kind,) = warming.warm([block], kind)
            size = min(2 * size, _DOCUMENTS_AT_ONCE)
        for _ in warming.warm(_batches(distinct), kind):
            pass
    return warming.report()


class _Warming:
    """The state of a call of `warm_documents`.

    Attributes:
        counts: documents by what became of them.
    """

    def __init__(self, map_blocks: MapBlocks, refuse: Refuse, bar: ProgressBar) -> None:
        self.counts: Counter[str] = Counter()
        self._map_blocks, self._refuse, self._bar = map_blocks, refuse, bar
        self._repeats: dict[str, int] = {}  # by name
        self._refused: set[str] = set()  # names

    def distinct(self, documents: Iterable[Document]) -> Iterator[Named]:
        """The first document of each content, and its name."""
        asked, kept = tee(_batches(documents))
        for done, block in zip(self._map_blocks(_NAME, asked), kept, strict=True):
            for name, document in zip(done.result, block, strict=True):
                if isinstance(name, Exception):
                    self._refuse([], name)
                    self.counts[SKIPPED] += 1
                elif name in self._repeats:
                    self._repeats[name] += 1
                else:
                    self._repeats[name] = 0
                    yield name, document
                    continue
                self._bar.update()

    def warm(self, blocks: Iterable[list[Named]], kind: Kind | None) -> Iterator[Kind | None]:
        """Has blocks warmed; of each, what its process keeps."""
        asked, kept = tee(blocks)
        sent = ((kind, [document for _, document in block]) for block in asked)
        for done, block in zip(self._map_blocks(_WARM, sent), kept, strict=True):
            outcomes, decided = done.result
            for (name, _), outcome in zip(block, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    self._refuse([], outcome)
                    self._refused.add(name)
                    outcome = SKIPPED
                self.counts[outcome] += 1
            self._bar.update(len(block))
            yield decided

    def report(self) -> WarmReport:
        """What became of all documents."""
        counts = self.counts.copy()
        for name, repeats in self._repeats.items():
            counts[SKIPPED if name in self._refused else KNOWN] += repeats
        return WarmReport(counts[BUILT], counts[KNOWN], counts[SKIPPED])


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items, so many at a time."""
    iterator = iter(items)
    while batch := list(islice(iterator, _DOCUMENTS_AT_ONCE)):
        yield batch
