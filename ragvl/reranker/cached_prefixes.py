"""Scores pairs from cached prefixes: a known document costs only the query's own tokens."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from torch import Tensor

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.mllm import (
    MLLM,
    ImageInputs,
    PoolFullError,
    PromptTooLongError,
)
from ragvl.prefix_cache import CachedPrefix, PrefixCache
from ragvl.reranker.answer_head import AnswerHead
from ragvl.reranker.chunks import ChunkRunner, Suffix
from ragvl.reranker.images import NUM_THREADS, load_image
from ragvl.reranker.prompts import Prompts, shared_length

logger = logging.getLogger(__name__)

_BLOCK = 32  # documents whose prefixes are in use at once
_AHEAD = 8  # documents whose pictures are prepared before it is their turn


@dataclass(frozen=True)
class _Started:
    """A document about to be scored.

    Attributes:
        document: the document.
        key: its prefix's name.
        digest: its picture's.
        image: its picture, being prepared, or why it is bad; None where the cache has the prefix.
    """

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
        deterministic: chunks have one shape on a GPU, so that a score's bits do not depend on
            what else was asked. (On a CPU they never do.)
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
        documents = [pairs[indices[0]][1] for indices in by_document.values()]
        asked = list(by_document.values())
        for block in self._blocks(documents, on_error):
            try:
                suffixes = self._suffixes(
                    [(i, *pairs[i], entry) for n, entry in block for i in asked[n]], on_error
                )
                for chunk in self._run.chunks(suffixes, batch_size):
                    yield [suffix.index for suffix in chunk], self._run(chunk)
            finally:
                self._cache.release(entry for _, entry in block)

    def warm(self, documents: Iterable[Document], on_error: str) -> Iterator[str]:
        """Brings documents' prefixes into the cache; for each "built", "known" or "skipped"."""
        for started in self._start(documents):
            known = started.image is None
            if known and self._cache.is_scratch:  # there is no device tier to bring it up to
                yield "known"
                continue
            entry = self._entry(started, on_error)
            if entry is None:
                yield "skipped"
                continue
            self._cache.release([entry])
            yield "known" if known else "built"

    # --- prefixes -------------------------------------------------------------------------------

    def _blocks(
        self, documents: Sequence[Document], on_error: str
    ) -> Iterator[list[tuple[int, CachedPrefix]]]:
        """Documents' numbers with their prefixes, as many as the device has room for.

        Prefixes are in use, and the caller's to release.
        """
        block: list[tuple[int, CachedPrefix]] = []
        try:
            for number, started in enumerate(self._start(documents)):
                while True:
                    try:
                        entry = self._entry(started, on_error)
                        break
                    except PoolFullError:
                        if block:
                            full, block = block, []
                            yield full
                        else:  # other threads hold it all, and will be done
                            time.sleep(1e-3)
                if entry is not None:
                    block.append((number, entry))
                if len(block) == _BLOCK:
                    full, block = block, []
                    yield full
            if block:
                full, block = block, []
                yield full
        finally:  # a document was bad, and the others of its block were not handed over
            self._cache.release(entry for _, entry in block)

    def _start(self, documents: Iterable[Document]) -> Iterator[_Started]:
        """Every document, with its picture being prepared if its prefix is not known."""
        coming = iter(documents)
        started: deque[_Started] = deque()
        try:
            while True:
                started.extend(map(self._look_up, islice(coming, _AHEAD - len(started))))
                if not started:
                    return
                yield started.popleft()
        finally:
            for one in started:
                if one.image is not None:
                    one.image.cancel()

    def _look_up(self, document: Document) -> _Started:
        frame = self._prompts.frame(document)
        try:
            digest = document.digest()
        except ImageError as error:
            failed: Future[ImageInputs] = Future()
            failed.set_exception(error)
            return _Started(document, "", "", failed)
        key = self._key(digest, frame.before)
        known = key in self._cache
        image = None if known else self._threads.submit(self._load_unchanged, document, digest)
        return _Started(document, key, digest, image)

    def _key(self, digest: str, before: str) -> str:
        parts = (digest, before, self._mllm.fingerprint, str(self._cache.compression))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _load_unchanged(self, document: Document, digest: str) -> ImageInputs:
        """The picture, if it is still the one that `digest` names."""
        image = load_image(self._mllm, document)
        if document.digest() != digest:
            raise ImageError(f"{document.name} was changed while it was read")
        return image

    def _entry(self, started: _Started, on_error: str) -> CachedPrefix | None:
        """The document's prefix, in use; None where it is skipped."""
        document = started.document
        try:
            # Prepared, but the same picture may have come before; or known, but evicted since
            image = None if started.image is None else started.image.result()
            entry = self._cache.get(started.key)
            if entry is not None:
                return entry
            if image is None:
                image = self._load_unchanged(document, started.digest)
            prefix = self._prompts.prefix(document, image)
            if len(prefix) >= self._mllm.max_length:
                raise PromptTooLongError(0, len(prefix) + 1, self._mllm.max_length)
            return self._cache.build(started.key, prefix)
        except (ImageError, PromptTooLongError) as error:
            if on_error == "raise":
                raise
            logger.warning("skipped %s: %s", document.name, error)
            return None

    # --- suffixes -------------------------------------------------------------------------------

    def _suffixes(
        self, asked: Sequence[tuple[int, str, Document, CachedPrefix]], on_error: str
    ) -> list[Suffix]:
        prompts = self._prompts.tokens(
            [(query, document, entry.expansion) for _, query, document, entry in asked]
        )
        suffixes = []
        for (index, _, document, entry), ids in zip(asked, prompts, strict=True):
            if len(ids) > self._mllm.max_length:
                error = PromptTooLongError(index, len(ids), self._mllm.max_length)
                if on_error == "raise":
                    raise error
                logger.warning("skipped %s: %s", document.name, error)
                continue
            shared = shared_length(ids, entry.input_ids)
            suffixes.append(Suffix(index, entry, shared, ids[shared:]))
        return suffixes

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="ragvl-images")
