"""Scores pairs from cached prefixes: a known document costs only the query's own tokens."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice

from torch import Tensor

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.identity import name_of
from ragvl.mllm import (
    MLLM,
    ImageInputs,
    Prompt,
    encode_document,
    too_long,
)
from ragvl.prefix_cache import (
    CachedPrefix,
    Lease,
    LeaseFullError,
    PrefixBuilder,
    PrefixCache,
    PrefixTooLargeError,
)
from ragvl.reranker.answer_head import AnswerHead
from ragvl.reranker.chunks import ChunkRunner, Suffix
from ragvl.reranker.prompts import Prompts, shared_length
from ragvl.reranker.scorer import OnError
from ragvl.reranker.whole_prompts import WholePrompts
from ragvl.workers import Pending, Workers, ahead

logger = logging.getLogger(__name__)

_GROUP = 8  # documents whose prefixes are computed together, while the next's pictures are prepared
_BLOCK = 32  # documents from which on a block is full: their prefixes are in use at once

_Block = list[tuple[Document, CachedPrefix | None]]


@dataclass(frozen=True)
class _Started:
    """A document about to be scored.

    Attributes:
        index: its place in the call, or its first pair's.
        document: the document.
        key: its prefix's name.
        digest: its picture's.
        image: its picture, being prepared, or why it is bad; None where the cache has the prefix.
    """

    index: int
    document: Document
    key: str
    digest: str
    image: Pending[ImageInputs] | None


@dataclass
class _Supply:
    """Documents on their way to their prefixes.

    Attributes:
        started: about to be looked up.
        coming: those after them.
        lacking: what no tier has: prefixes by their keys, and whose they are.
    """

    started: deque[_Started]
    coming: Iterator[_Started]
    lacking: dict[str, tuple[Prompt, list[Document]]]


class CachedPrefixes:
    """Runs suffixes over prefixes that a `PrefixCache` keeps, and builds those that it lacks.

    It is a `Scorer`.

    Args:
        mllm: a model whose prefixes can be reused.
        prompts: writes the prompts.
        head: reads relevance.
        cache: keeps the prefixes.
        model: names the model as it is, and what it is computed with. It must not change while
            these prefixes are used: another model needs another `CachedPrefixes`.
        deterministic: a score's bits do not depend on what else was asked. Chunks have one shape
            on a GPU, and prefixes are computed together only where that changes nothing.
    """

    def __init__(
        self,
        mllm: MLLM,
        prompts: Prompts,
        head: AnswerHead,
        cache: PrefixCache,
        *,
        model: str,
        deterministic: bool,
    ) -> None:
        cache.attach(mllm)
        self._mllm = mllm
        self._prompts = prompts
        self._cache = cache
        self._model = model
        self._build = PrefixBuilder(mllm, cache.pool, exact=deterministic)
        self._run = ChunkRunner(mllm, head, cache.pool, deterministic=deterministic)
        self._whole = WholePrompts(mllm, prompts, head)
        self._deterministic = deterministic
        self._reported_whole = False

    def score(
        self, pairs: Sequence[tuple[str, Document]], batch_size: int | None, on_error: OnError
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Indices of pairs with their relevance (B,), in chunks; see `Scorer`.

        Where a cached prefix makes it NaN, the prefix is computed again, once. Prompts that differ
        from their document's prefix before the picture is over, as a chat template may write them,
        are scored whole, last.
        """
        again: list[int] = []
        apart: list[int] = []
        every = range(len(pairs))
        for suffixes, relevance in self._relevance(pairs, every, apart, batch_size, on_error):
            broken = set(self._drop_broken(suffixes, relevance))
            again += broken
            whole = [row for row, suffix in enumerate(suffixes) if suffix.index not in broken]
            yield [suffixes[row].index for row in whole], relevance[whole]
        for suffixes, relevance in self._relevance(pairs, again, apart, batch_size, on_error):
            self._drop_broken(suffixes, relevance)
            yield [suffix.index for suffix in suffixes], relevance
        if apart:
            yield from self._score_whole(apart, pairs, batch_size, on_error)

    def warm(self, documents: Iterable[Document], on_error: OnError) -> Iterator[str]:
        """Brings documents' prefixes into the cache; see `Scorer`."""
        with Workers() as workers:
            started = self._start(enumerate(documents), workers)
            for known, run in groupby(started, lambda one: one.image is None):
                if known and self._cache.is_scratch:  # there is no device tier to bring them up to
                    yield from ("known" for _ in run)
                    continue
                for block in self._blocks(run, on_error):
                    for _, entry in block:
                        yield "skipped" if entry is None else "known" if known else "built"

    # --- prefixes -------------------------------------------------------------------------------

    def _blocks(self, coming: Iterable[_Started], on_error: OnError) -> Iterator[_Block]:
        """Documents with their prefixes, as many as the device has room for; None where skipped.

        A block's prefixes are in use until the next is asked for.
        """
        supply = _Supply(deque(), iter(coming), {})
        while True:
            with self._cache.lease() as lease:
                block: _Block = []
                try:
                    while len(block) < _BLOCK and (part := self._next(supply, lease, on_error)):
                        block += part
                except LeaseFullError:  # what is left comes into the next
                    pass
                if not block:
                    return
                yield block

    def _next(self, supply: _Supply, lease: Lease, on_error: OnError) -> _Block:
        """A few more documents, with prefixes that `lease` holds; none if there are no more."""
        while True:
            if supply.lacking:
                return self._build_lacking(supply, lease)
            supply.started.extend(islice(supply.coming, _GROUP - len(supply.started)))
            if not supply.started:
                return []
            if found := self._look_up_group(supply, lease, on_error):
                return found

    def _look_up_group(self, supply: _Supply, lease: Lease, on_error: OnError) -> _Block:
        """The documents of a group that some tier has; what none has is then lacking."""
        found: _Block = []
        pictures: dict[str, ImageInputs] = {}
        wanting: dict[str, list[_Started]] = {}  # several where one comes twice
        try:
            while supply.started:
                started = supply.started[0]
                document, key = started.document, started.key
                if key in pictures:
                    wanting[key].append(started)
                else:
                    try:
                        # Prepared, but the same picture may have come before; or known, but evicted
                        image = None if started.image is None else started.image.result()
                        entry = self._cache.get(key, lease)
                        if entry is None:
                            pictures[key] = image or self._load_unchanged(document, started.digest)
                            wanting[key] = [started]
                        else:
                            found.append((document, entry))
                    except ImageError as error:
                        self._skip(error, on_error)
                        found.append((document, None))
                supply.started.popleft()
        except LeaseFullError:
            if not found and not pictures:
                raise
        pictured = [(wanting[key][0].document, image) for key, image in pictures.items()]
        for key, prefix in zip(pictures, self._prompts.prefixes(pictured), strict=True):
            usable = []
            for one in wanting[key]:
                if why := self._why_unusable(one, len(prefix)):
                    self._skip(why, on_error)
                    found.append((one.document, None))
                else:
                    usable.append(one.document)
            if usable:
                supply.lacking[key] = prefix, usable
        return found

    def _why_unusable(self, started: _Started, length: int) -> Exception | None:
        """Why nothing can be asked about a document whose prefix is so long."""
        if length >= self._mllm.max_length:
            return too_long(self._mllm, length + 1, [started.document], index=started.index)
        try:
            self._cache.check_fits(length)
        except PrefixTooLargeError as error:
            return PrefixTooLargeError(f"{started.document.name}: {error}")
        return None

    def _build_lacking(self, supply: _Supply, lease: Lease) -> _Block:
        """Computes as many of the prefixes that no tier has as there is room for."""
        prefixes = {key: prefix for key, (prefix, _) in supply.lacking.items()}
        built: _Block = []
        for entry in self._cache.build(prefixes, self._build, lease):
            _, documents = supply.lacking.pop(entry.key)
            built += [(document, entry) for document in documents]
        return built

    def _start(
        self, documents: Iterable[tuple[int, Document]], workers: Workers
    ) -> Iterator[_Started]:
        """Every document, with its picture being prepared if its prefix is not known."""
        return ahead((self._look_up(*one, workers) for one in documents), _GROUP)

    def _look_up(self, index: int, document: Document, workers: Workers) -> _Started:
        try:
            frame = self._prompts.frame(document)
            digest = document.digest()
        except ImageError as error:
            return _Started(index, document, "", "", workers.submit(partial(_fail, error)))
        key = name_of("prefix", digest, frame.before, self._model, self._cache.compression)
        known = key in self._cache
        load = partial(self._load_unchanged, document, digest)
        return _Started(index, document, key, digest, None if known else workers.submit(load))

    def _load_unchanged(self, document: Document, digest: str) -> ImageInputs:
        """The picture, if it is still the one that `digest` names."""
        image = encode_document(self._mllm, document)
        if document.digest() != digest:
            raise ImageError(f"{document.name} was changed while it was read")
        return image

    def _skip(self, error: Exception, on_error: OnError) -> None:
        if on_error == "raise":
            raise error
        logger.warning("skipped: %s", error)  # which names the document

    # --- suffixes -------------------------------------------------------------------------------

    def _suffixes(
        self,
        asked: Sequence[tuple[int, str, Document, CachedPrefix]],
        apart: list[int],
        on_error: OnError,
    ) -> list[Suffix]:
        """What is left of each prompt; `apart` gets those whose pictures are no part of it."""
        prompts = self._prompts.tokens(
            [(query, document, entry.expansion) for _, query, document, entry in asked]
        )
        suffixes = []
        for (index, query, document, entry), ids in zip(asked, prompts, strict=True):
            if len(ids) > self._mllm.max_length:
                error = too_long(self._mllm, len(ids), [document], index=index, question=query)
                self._skip(error, on_error)
                continue
            shared = shared_length(ids, entry.input_ids)
            rest = ids[shared:]
            if shared < len(entry.input_ids) and self._mllm.image_token_id in rest:
                apart.append(index)
                continue
            suffixes.append(Suffix(index, entry, shared, rest))
        return suffixes

    def _relevance(
        self,
        pairs: Sequence[tuple[str, Document]],
        chosen: Iterable[int],
        apart: list[int],
        batch_size: int | None,
        on_error: OnError,
    ) -> Iterator[tuple[Sequence[Suffix], Tensor]]:
        """Suffixes of the `chosen` pairs with their relevance (B,), in chunks.

        Pairs are taken document by document, so that a prefix is built once and held for no longer
        than its own pairs are at work. `apart` gets those that must be scored whole.
        """
        by_document: dict[int, list[int]] = {}
        for i in chosen:
            by_document.setdefault(id(pairs[i][1]), []).append(i)
        documents = [(indices[0], pairs[indices[0]][1]) for indices in by_document.values()]
        with Workers() as workers:
            for block in self._blocks(self._start(documents, workers), on_error):
                suffixes = self._suffixes(
                    [
                        (i, *pairs[i], entry)
                        for document, entry in block
                        if entry is not None
                        for i in by_document[id(document)]
                    ],
                    apart,
                    on_error,
                )
                for chunk in self._run.chunks(suffixes, batch_size):
                    yield chunk, self._run(chunk)

    def _score_whole(
        self,
        indices: Sequence[int],
        pairs: Sequence[tuple[str, Document]],
        batch_size: int | None,
        on_error: OnError,
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        if not self._reported_whole:
            self._reported_whole = True
            logger.warning(
                "the chat template writes something else before a picture for some questions: "
                "their prompts are scored whole (%d now)",
                len(indices),
            )
        chosen = [pairs[i] for i in indices]
        size = 1 if self._deterministic else batch_size
        for places, relevance in self._whole.score(chosen, size, on_error):
            yield [indices[place] for place in places], relevance

    def _drop_broken(self, suffixes: Sequence[Suffix], relevance: Tensor) -> list[int]:
        """Forgets prefixes that are at fault for a relevance of NaN; the pairs that have them.

        A record on a disk may hold NaN and a checksum that is right: written by a process whose
        memory was at fault, or by hand.
        """
        nan = [suffixes[row] for row in relevance.isnan().nonzero()[:, 0].tolist()]
        broken = {s.prefix.key for s in nan if self._cache.is_broken(s.prefix)}
        for key in broken:
            logger.warning("the prefix %s holds NaN or infinity and is forgotten", key)
            self._cache.drop(key)
        return [suffix.index for suffix in nan if suffix.prefix.key in broken]


def _fail(error: ImageError) -> ImageInputs:
    raise error
