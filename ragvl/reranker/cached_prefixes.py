"""Scores pairs from cached prefixes: a known document costs only the query's own tokens."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice

from torch import Tensor

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.mllm import (
    MLLM,
    ImageInputs,
    PoolFullError,
    Prompt,
)
from ragvl.prefix_cache import CachedPrefix, PrefixBuilder, PrefixCache
from ragvl.reranker.answer_head import AnswerHead
from ragvl.reranker.chunks import ChunkRunner, Suffix
from ragvl.reranker.images import NUM_THREADS, load_image
from ragvl.reranker.prompts import Prompts, shared_length, too_long

logger = logging.getLogger(__name__)

_GROUP = 8  # documents whose prefixes are computed together, while the next's pictures are prepared
_BLOCK = 32  # documents whose prefixes are in use at once


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
    image: Future[ImageInputs] | None


class CachedPrefixes:
    """Runs suffixes over prefixes that a `PrefixCache` keeps, and builds those that it lacks.

    Args:
        mllm: a model whose prefixes can be reused.
        prompts: writes the prompts.
        head: reads relevance.
        cache: keeps the prefixes.
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
        deterministic: bool,
    ) -> None:
        cache.attach(mllm)
        self._mllm = mllm
        self._prompts = prompts
        self._cache = cache
        self._build = PrefixBuilder(mllm, cache.pool, exact=deterministic)
        self._run = ChunkRunner(mllm, head, cache.pool, deterministic=deterministic)

    def score(
        self, pairs: Sequence[tuple[str, Document]], batch_size: int | None, on_error: str
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Indices of pairs with their relevance (B,), in chunks; skipped pairs are left out.

        Pairs are taken document by document, so that a prefix is built once and held for no longer
        than its own pairs are at work.
        """
        by_document: dict[int, list[int]] = {}
        for i, (_, document) in enumerate(pairs):
            by_document.setdefault(id(document), []).append(i)
        documents = [(indices[0], pairs[indices[0]][1]) for indices in by_document.values()]
        for block in self._blocks(self._start(documents), on_error):
            try:
                suffixes = self._suffixes(
                    [
                        (i, *pairs[i], entry)
                        for document, entry in block
                        if entry is not None
                        for i in by_document[id(document)]
                    ],
                    on_error,
                )
                for chunk in self._run.chunks(suffixes, batch_size):
                    yield [suffix.index for suffix in chunk], self._run(chunk)
            finally:
                self._release(block)

    def warm(self, documents: Iterable[Document], on_error: str) -> Iterator[str]:
        """Brings documents' prefixes into the cache; for each "built", "known" or "skipped"."""
        for known, run in groupby(
            self._start(enumerate(documents)), lambda started: started.image is None
        ):
            if known and self._cache.is_scratch:  # there is no device tier to bring them up to
                yield from ("known" for _ in run)
                continue
            for block in self._blocks(run, on_error):
                self._release(block)
                for _, entry in block:
                    yield "skipped" if entry is None else "known" if known else "built"

    # --- prefixes -------------------------------------------------------------------------------

    def _blocks(self, coming: Iterable[_Started], on_error: str) -> Iterator[_Block]:
        """Documents with their prefixes, as many as the device has room for; None where skipped.

        Prefixes are in use, and the caller's to release.
        """
        block: _Block = []
        try:
            for loaded in self._loaded(iter(coming), on_error):
                block += loaded or []
                if block and (loaded is None or len(block) >= _BLOCK):
                    full, block = block, []
                    yield full
                elif loaded is None:  # other threads hold it all, and will be done
                    time.sleep(1e-3)
            if block:
                full, block = block, []
                yield full
        finally:  # a document was bad, and the others of its block were not handed over
            self._release(block)

    def _loaded(self, coming: Iterator[_Started], on_error: str) -> Iterator[_Block | None]:
        """Documents with their prefixes, a few at a time.

        None where the device is full: the caller releases some, and it is tried again.
        """
        while group := list(islice(coming, _GROUP)):
            lacking: dict[str, ImageInputs] = {}
            wanting: dict[str, list[_Started]] = {}  # several where one comes twice
            for started in group:
                document, key = started.document, started.key
                if key in lacking:
                    wanting[key].append(started)
                    continue
                try:
                    # Prepared, but the same picture may have come before; or known, but evicted
                    image = None if started.image is None else started.image.result()
                    entry = yield from self._get(key)
                    if entry is None:
                        lacking[key] = image or self._load_unchanged(document, started.digest)
                        wanting[key] = [started]
                    else:
                        yield [(document, entry)]
                except ImageError as error:
                    self._skip(error, on_error)
                    yield [(document, None)]
            pictured = [(wanting[key][0].document, image) for key, image in lacking.items()]
            prefixes = dict(zip(lacking, self._prompts.prefixes(pictured), strict=True))
            for key in [key for key, p in prefixes.items() if len(p) >= self._mllm.max_length]:
                length = len(prefixes.pop(key)) + 1
                for one in wanting.pop(key):
                    why = too_long(self._mllm, one.index, None, one.document, length)
                    self._skip(why, on_error)
                    yield [(one.document, None)]
            documents = {key: [one.document for one in users] for key, users in wanting.items()}
            yield from self._built(prefixes, documents)

    def _get(self, key: str) -> Generator[None, None, CachedPrefix | None]:
        while True:
            try:
                return self._cache.get(key)
            except PoolFullError:
                yield None

    def _built(
        self, prefixes: Mapping[str, Prompt], documents: Mapping[str, Sequence[Document]]
    ) -> Iterator[_Block | None]:
        """The prefixes that no tier has, together or, where there is little room, in parts."""
        parts = deque([list(prefixes)] if prefixes else [])
        while parts:
            part = parts.popleft()
            try:
                entries = self._cache.build({key: prefixes[key] for key in part}, self._build)
            except PoolFullError:
                half = len(part) // 2
                parts.extendleft(keys for keys in (part[half:], part[:half]) if keys)
                yield None
                continue
            # Further users of a prefix that is in use already
            again = [
                (document, self._cache.get(entry.key))
                for entry in entries
                for document in documents[entry.key][1:]
            ]
            yield [(documents[entry.key][0], entry) for entry in entries] + again

    def _release(self, block: _Block) -> None:
        self._cache.release(entry for _, entry in block if entry is not None)

    def _start(self, documents: Iterable[tuple[int, Document]]) -> Iterator[_Started]:
        """Every document, with its picture being prepared if its prefix is not known."""
        coming = iter(documents)
        started: deque[_Started] = deque()
        model = self._mllm.fingerprint  # once a call: it looks at every weight
        try:
            while True:
                following = islice(coming, _GROUP - len(started))
                started.extend(self._look_up(*numbered, model) for numbered in following)
                if not started:
                    return
                yield started.popleft()
        finally:
            for one in started:
                if one.image is not None:
                    one.image.cancel()

    def _look_up(self, index: int, document: Document, model: str) -> _Started:
        frame = self._prompts.frame(document)
        try:
            digest = document.digest()
        except ImageError as error:
            failed: Future[ImageInputs] = Future()
            failed.set_exception(error)
            return _Started(index, document, "", "", failed)
        parts = (digest, frame.before, model, str(self._cache.compression))
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        known = key in self._cache
        image = None if known else self._threads.submit(self._load_unchanged, document, digest)
        return _Started(index, document, key, digest, image)

    def _load_unchanged(self, document: Document, digest: str) -> ImageInputs:
        """The picture, if it is still the one that `digest` names."""
        image = load_image(self._mllm, document)
        if document.digest() != digest:
            raise ImageError(f"{document.name} was changed while it was read")
        return image

    def _skip(self, error: Exception, on_error: str) -> None:
        if on_error == "raise":
            raise error
        logger.warning("skipped: %s", error)  # which names the document

    # --- suffixes -------------------------------------------------------------------------------

    def _suffixes(
        self, asked: Sequence[tuple[int, str, Document, CachedPrefix]], on_error: str
    ) -> list[Suffix]:
        prompts = self._prompts.tokens(
            [(query, document, entry.expansion) for _, query, document, entry in asked]
        )
        suffixes = []
        for (index, query, document, entry), ids in zip(asked, prompts, strict=True):
            if len(ids) > self._mllm.max_length:
                error = too_long(self._mllm, index, query, document, len(ids))
                self._skip(error, on_error)
                continue
            shared = shared_length(ids, entry.input_ids)
            suffixes.append(Suffix(index, entry, shared, ids[shared:]))
        return suffixes

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="ragvl-images")
