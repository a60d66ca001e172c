"""Scores pairs from cached prefixes: a known document costs only the query's own tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from weakref import WeakKeyDictionary

from torch import Tensor

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.identity import name_of
from ragvl.mllm import MLLM, Prompt, Prompting, encode_document, too_long
from ragvl.prefix_cache import CachedPrefix, PictureSupply, PrefixCache, PrefixSupply
from ragvl.reranker.chunks import Suffix
from ragvl.reranker.heads import Head
from ragvl.reranker.prompts import Prompts, shared_length
from ragvl.reranker.runner import ChunkRunner
from ragvl.reranker.scorer import OnError, skip
from ragvl.reranker.whole_prompts import WholePrompts

logger = logging.getLogger(__name__)


class DocumentPrefixes:
    """Names and makes documents' prefixes, for one model as it is and one template.

    Args:
        prompting: the model's.
        prompts: writes the prompts.
        scope: what else a prefix depends on: the model's name, and how the cache compresses it.
    """

    def __init__(
        self, prompting: Prompting, prompts: Prompts, scope: tuple[str, str | None]
    ) -> None:
        self._prompting = prompting
        self._prompts = prompts
        self._scope = scope
        # Digest and key: rendering the prompt's beginning and hashing it takes longer than a lookup
        self._keys: WeakKeyDictionary[Document, tuple[str, str]] = WeakKeyDictionary()

    def key(self, document: Document, digest: str) -> str:
        """Names the prefix of `document` with a picture of this digest."""
        known = self._keys.get(document)
        if known is None or known[0] != digest:
            before = self._prompts.before_query(document)
            known = self._keys[document] = digest, name_of("prefix", digest, before, *self._scope)
        return known[1]

    def make(self, document: Document, digest: str, index: int) -> Prompt:
        """The prefix's tokens and picture; thread-safe.

        Raises:
            ImageError: the picture cannot be used, or is no longer the one of this digest.
            PromptTooLongError: no query would fit behind it.
        """
        image = encode_document(self._prompting, document)
        if document.digest() != digest:
            raise ImageError(f"{document.name} was changed while it was read")
        prefix = self._prompts.prefix(document, image)
        if len(prefix) >= self._prompting.max_length:
            raise too_long(self._prompting, len(prefix) + 1, [document], index=index)
        return prefix


class _WantedDocument:
    """A document whose prefix is wanted; see `ragvl.prefix_cache.supply.Wanted`.

    Attributes:
        document: the document.
        index: its place in the call, or its first pair's.
    """

    def __init__(self, prefixes: DocumentPrefixes, index: int, document: Document) -> None:
        self.document = document
        self.index = index
        self._prefixes = prefixes
        self._digest = ""

    @property
    def name(self) -> str:
        return self.document.name

    def key(self) -> str:
        self._digest = self.document.digest()
        return self._prefixes.key(self.document, self._digest)

    def prefix(self) -> Prompt:
        return self._prefixes.make(self.document, self._digest, self.index)


class CachedPrefixes:
    """Runs suffixes over the prefixes that a `PrefixSupply` gives; a `Scorer`.

    Args:
        mllm: a model whose prefixes can be reused.
        prompts: writes the prompts.
        head: reads scores.
        cache: keeps the prefixes.
        model: names the model as it is, and what it is computed with. It must not change while
            these prefixes are used: another model needs another `CachedPrefixes`.
        deterministic: a score's bits do not depend on its company. Chunks have one shape on a GPU,
            and prefixes are computed together only where that changes nothing.
    """

    def __init__(
        self,
        mllm: MLLM,
        prompts: Prompts,
        head: Head,
        cache: PrefixCache,
        *,
        model: str,
        deterministic: bool,
    ) -> None:
        self._prompting = mllm.prompting
        self._prompts = prompts
        self._supply = PrefixSupply(mllm, cache, exact=deterministic)
        self._prefixes = DocumentPrefixes(mllm.prompting, prompts, (model, cache.compression))
        self._run = ChunkRunner(mllm, head, self._supply.pool, deterministic=deterministic)
        pictures = PictureSupply(mllm, cache, model=model)
        self._whole = WholePrompts(mllm, prompts, head, pictures)
        self._deterministic = deterministic
        self._reported_whole = False

    def warm(self, documents: Iterable[Document], on_error: OnError) -> Iterator[str]:
        """Brings documents' prefixes into the cache, and prepares what questions will run.

        See `Scorer`.
        """
        skipped = []

        def refuse(error: Exception) -> None:
            skip(error, on_error)
            skipped.append("skipped")

        wanted = (_WantedDocument(self._prefixes, *numbered) for numbered in enumerate(documents))
        examples: dict[int, tuple[Document, CachedPrefix]] = {}  # by how many pages they take
        for one, prefix, known in self._supply.warm(wanted, refuse):
            yield "known" if known else "built"
            if prefix is not None:
                examples.setdefault(len(prefix.pages), (one.document, prefix))
        yield from skipped
        for pages, (document, prefix) in examples.items():
            (ids,) = self._prompts.tokens([("", document, prefix.expansion)])
            self._run.prepare(pages, len(ids) - shared_length(ids, prefix.input_ids))

    def score(
        self, pairs: Sequence[tuple[str, Document]], batch_size: int | None, on_error: OnError
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Indices of pairs with their raw scores (B,), in chunks; see `Scorer`.

        Where a cached prefix makes one NaN, the prefix is computed again, once. Prompts that differ
        from their document's prefix before the picture is over, as a chat template may write them,
        are scored whole, last.
        """
        apart: list[int] = []
        chosen: Sequence[int] = range(len(pairs))
        for is_last in (False, True):
            again: list[int] = []
            for suffixes, raw in self._chunks(pairs, chosen, apart, batch_size, on_error):
                nan = raw.isnan().nonzero()[:, 0].tolist()
                broken = self._supply.forget_broken(suffixes[row].prefix for row in nan)
                again += [suffix.index for suffix in suffixes if suffix.prefix.key in broken]
                rows = [i for i, s in enumerate(suffixes) if is_last or s.prefix.key not in broken]
                yield [suffixes[row].index for row in rows], raw[rows]
            chosen = again
        if apart:
            yield from self._score_whole(apart, pairs, batch_size, on_error)

    def _chunks(
        self,
        pairs: Sequence[tuple[str, Document]],
        chosen: Iterable[int],
        apart: list[int],
        batch_size: int | None,
        on_error: OnError,
    ) -> Iterator[tuple[Sequence[Suffix], Tensor]]:
        """Suffixes of the `chosen` pairs with their raw scores (B,).

        Pairs are taken document by document, so that a prefix is built once and held for no longer
        than its own pairs are at work. `apart` gets the pairs that must be scored whole.
        """
        by_document: dict[int, list[int]] = {}
        for i in chosen:
            by_document.setdefault(id(pairs[i][1]), []).append(i)
        wanted = [
            _WantedDocument(self._prefixes, indices[0], pairs[indices[0]][1])
            for indices in by_document.values()
        ]
        for block in self._supply.blocks(wanted, partial(skip, on_error=on_error)):
            held = [
                (i, *pairs[i], prefix)
                for one, prefix in block
                for i in by_document[id(one.document)]
            ]
            suffixes = self._suffixes(held, apart, on_error)
            for chunk in self._run.chunks(suffixes, batch_size):
                yield chunk, self._run(chunk)

    def _suffixes(
        self,
        held: Sequence[tuple[int, str, Document, CachedPrefix]],
        apart: list[int],
        on_error: OnError,
    ) -> list[Suffix]:
        """What is left of each prompt; `apart` gets those whose pictures are no part of it."""
        prompts = self._prompts.tokens(
            [(query, document, prefix.expansion) for _, query, document, prefix in held]
        )
        suffixes = []
        max_length = self._prompting.max_length
        for (index, query, document, prefix), ids in zip(held, prompts, strict=True):
            if len(ids) > max_length:
                error = too_long(self._prompting, len(ids), [document], index=index, question=query)
                skip(error, on_error)
                continue
            shared = shared_length(ids, prefix.input_ids)
            rest = ids[shared:]
            if shared < len(prefix.input_ids) and self._prompting.image_token_id in rest:
                apart.append(index)
                continue
            suffixes.append(Suffix(index, prefix, shared, rest))
        return suffixes

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
        for places, raw in self._whole.score(chosen, size, on_error):
            yield [indices[place] for place in places], raw
