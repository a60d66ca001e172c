"""Scores pairs from cached prefixes: a known document costs only the query's own tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from weakref import WeakKeyDictionary

from torch import Tensor

from ragvl.data.document import Document
from ragvl.data.images import DocumentError, ImageError
from ragvl.data.picture import Picture
from ragvl.data.query import Query
from ragvl.identity import name_of
from ragvl.mllm import MLLM, Prompt, Prompting, PromptTooLongError, encode_picture, too_long
from ragvl.prefix_cache import (
    CachedPrefix,
    PictureSupply,
    PrefixCache,
    PrefixSupply,
    Supplied,
    SuppliedPicture,
    picture_suffix_problem,
)
from ragvl.reranker.chunks import Suffix
from ragvl.reranker.heads import Head
from ragvl.reranker.prompts import Prompts, shared_length
from ragvl.reranker.runner import ChunkRunner
from ragvl.reranker.scorer import Refuse, Scored
from ragvl.reranker.whole_prompts import WholePrompts
from ragvl.workers import Workers

logger = logging.getLogger(__name__)

Queried = tuple[Query, Document]
_SHORT_QUERY = Query("a")


class DocumentPrefixes:
    """Names and makes documents' prefixes, for one model as it is and one template.

    Args:
        prompting: the model's.
        prompts: writes the prompts.
        scope: what else a prefix depends on: the model's name, how the cache compresses it, and how
            much of pictures it keeps.
        window: how long prompts may be because of it; None where it is no matter.
    """

    def __init__(
        self,
        prompting: Prompting,
        prompts: Prompts,
        scope: tuple[str, str | None, float],
        window: int | None,
    ) -> None:
        self._prompting = prompting
        self._prompts = prompts
        self._scope = scope
        self._window = window
        # Rendering a prompt's beginning and hashing it takes longer than a lookup: the last key of
        # each document, with the digests and the instruction that it was made of
        self._keys: WeakKeyDictionary[Document, tuple[object, str]] = WeakKeyDictionary()

    def key(self, document: Document, digests: Sequence[str], instruction: str | None) -> str:
        """Names the prefix of `document` with pictures of these digests."""
        made_of = digests, instruction
        known = self._keys.get(document)
        if known is None or known[0] != made_of:
            before = self._prompts.before_query(document, instruction)
            known = made_of, name_of("prefix", *digests, before, *self._scope)
            self._keys[document] = known
        return known[1]

    def make(
        self, document: Document, digests: Sequence[str], instruction: str | None, index: int
    ) -> Prompt:
        """The prefix's tokens and pictures; thread-safe.

        Raises:
            DocumentError: a picture cannot be used, or is no longer the one of its digest.
            PromptTooLongError: no query would fit behind it.
        """
        images = [encode_picture(self._prompting, picture) for picture in document.pictures]
        if _digests(document) != digests:
            raise ImageError(f"{document.name} was changed while it was read")
        prefix = self._prompts.prefix(document, images, instruction)
        self.check_length(len(prefix) + 1, document, index)
        return prefix

    def check_length(
        self, length: int, document: Document, index: int, query: Query | None = None
    ) -> None:
        """Refuses a prompt, or its beginning, of too many tokens.

        Raises:
            PromptTooLongError: the message names its document.
        """
        if length > (most := self._prompts.max_length):
            raise too_long(most, length, [document], index=index, query=query)
        if self._window is not None and length > self._window:
            raise PromptTooLongError(
                f"the prompt about {document.name} has {length} tokens, of which some layers see "
                f"{self._window} at a time: without all tokens of pictures (image_tokens=1) they "
                "would see others",
                index=index,
                length=length,
                max_length=self._window,
            )


def _digests(document: Document) -> list[str]:
    return [picture.digest() for picture in document.pictures]


class _WantedDocument:
    """A document whose prefix is wanted; see `ragvl.prefix_cache.supply.Wanted`.

    Attributes:
        document: the document.
        pairs: the places of its pairs, or its own, in the call.
    """

    def __init__(
        self,
        prefixes: DocumentPrefixes,
        pairs: Sequence[int],
        document: Document,
        instruction: str | None = None,
    ) -> None:
        self.document = document
        self.pairs = pairs
        self._instruction = instruction
        self._prefixes = prefixes
        self._digests: list[str] = []

    @property
    def name(self) -> str:
        return self.document.name

    def key(self) -> str:
        self._digests = _digests(self.document)
        return self._prefixes.key(self.document, self._digests, self._instruction)

    def prefix(self) -> Prompt:
        index, *_ = self.pairs
        return self._prefixes.make(self.document, self._digests, self._instruction, index)


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
        share = cache.image_tokens_of(mllm)
        self._prefixes = DocumentPrefixes(
            mllm.prompting,
            prompts,
            (model, cache.compression, share),
            mllm.kv_layout.window if share < 1 else None,  # which counts kept tokens only
        )
        self._run = ChunkRunner(mllm, head, self._supply.pool, deterministic=deterministic)
        self._mllm = mllm
        self._pictures = PictureSupply(mllm, cache, model=model)
        self._whole = WholePrompts(mllm, prompts, head, self._pictures, deterministic=deterministic)
        self._reported_whole = False

    def warm(self, documents: Iterable[Document], refuse: Refuse) -> Iterator[tuple[int, bool]]:
        """Brings documents' prefixes into the cache, and prepares what questions will run.

        See `Scorer`.
        """
        wanted = (
            _WantedDocument(self._prefixes, [i], document) for i, document in enumerate(documents)
        )
        examples: dict[int, tuple[Document, CachedPrefix]] = {}  # by how many pages they take
        for one, prefix, known in self._supply.warm(wanted, _refusing(refuse)):
            yield one.pairs[0], known
            if prefix is not None:
                examples.setdefault(len(prefix.pages), (one.document, prefix))
        for pages, (document, prefix) in examples.items():
            (ids,) = self._prompts.tokens([(_SHORT_QUERY, document, prefix.expansions)])
            own = len(ids) - shared_length(ids, prefix.input_ids)
            self._run.prepare(pages, max(1, own - 1))  # without the query's

    def is_warm(self, document: Document, instruction: str | None) -> bool:
        """Whether its prefix is in the cache; see `Scorer`."""
        key = self._prefixes.key(document, _digests(document), instruction)
        return key in self._supply

    def score(
        self, pairs: Sequence[Queried], batch_size: int | None, refuse: Refuse
    ) -> Iterator[Scored]:
        """Raw scores, in chunks; see `Scorer`.

        Where a cached prefix makes one NaN, the prefix is computed again, once. Scored whole, last,
        are pairs whose prompts differ from their document's prefix before its pictures are over, as
        a chat template may write them, or anywhere in it where layers carry states; and those whose
        query has a picture that cannot go on from a prefix.
        """
        apart: list[int] = []
        pictured = {i for i, (query, _) in enumerate(pairs) if query.pictures}
        going_on = {
            i for i in pictured if self._pictures_go_on and self._pictures_last(pairs[i][1])
        }
        pictured -= going_on
        chosen = [i for i in range(len(pairs)) if i not in pictured]
        with Workers() as workers:
            call = self._pictures.call(workers)
            taken = {p: call.take(p) for i in going_on for p in pairs[i][0].pictures}
            yield from self._score_cached(pairs, chosen, taken, apart, batch_size, refuse)
        if apart and not self._reported_whole:
            self._reported_whole = True
            logger.warning(
                "some questions change the prompt where its document's prefix cannot be left: "
                "their prompts are scored whole (%d now)",
                len(apart),
            )
        apart += sorted(pictured)
        whole = [pairs[i] for i in apart]
        places = _placed(refuse, apart)
        for scored in self._whole.score(whole, batch_size, places):
            yield replace(scored, indices=[apart[place] for place in scored.indices])

    def _pictures_last(self, document: Document) -> bool:
        """Whether a query's pictures stand behind the document's."""
        return not (document.pictures and self._prompts.template.query_pictures_first)

    @cached_property
    def _pictures_go_on(self) -> bool:
        """Whether a query's picture can be in a suffix; where not, a line of the log says why."""
        if problem := picture_suffix_problem(self._mllm):
            logger.warning("queries with pictures are scored whole: %s", problem)
        return problem is None

    def _score_cached(
        self,
        pairs: Sequence[Queried],
        chosen: Sequence[int],
        taken: Mapping[Picture, SuppliedPicture],
        apart: list[int],
        batch_size: int | None,
        refuse: Refuse,
    ) -> Iterator[Scored]:
        for is_last in (False, True):
            again: list[int] = []
            for suffixes, raw in self._chunks(pairs, chosen, taken, apart, batch_size, refuse):
                nan = raw.isnan().nonzero()[:, 0].tolist()
                broken = self._supply.forget_broken(suffixes[row].prefix for row in nan)
                again += [suffix.index for suffix in suffixes if suffix.prefix.key in broken]
                rows = [i for i, s in enumerate(suffixes) if is_last or s.prefix.key not in broken]
                done = [suffixes[row] for row in rows]
                yield Scored(
                    [suffix.index for suffix in done],
                    raw[rows],
                    [suffix.shared + len(suffix.input_ids) for suffix in done],
                    [suffix.shared if suffix.known else 0 for suffix in done],
                )
            chosen = again

    def _chunks(
        self,
        pairs: Sequence[Queried],
        chosen: Iterable[int],
        taken: Mapping[Picture, SuppliedPicture],
        apart: list[int],
        batch_size: int | None,
        refuse: Refuse,
    ) -> Iterator[tuple[Sequence[Suffix], Tensor]]:
        """Suffixes of the `chosen` pairs with their raw scores (B,).

        Pairs are taken document by document, so that a prefix is built once and held for no longer
        than its own pairs are at work. `taken` are queries' pictures; `apart` gets the pairs that
        must be scored whole.
        """
        by_prefix: dict[tuple[int, str | None], list[int]] = {}
        for i in chosen:
            query, document = pairs[i]
            by_prefix.setdefault((id(document), query.instruction), []).append(i)
        wanted = [
            _WantedDocument(self._prefixes, indices, pairs[indices[0]][1], instruction)
            for (_, instruction), indices in by_prefix.items()
        ]
        for block in self._supply.blocks(wanted, _refusing(refuse)):
            held = [(i, *pairs[i], one) for one in block for i in one.wanted.pairs]
            suffixes = self._suffixes(held, taken, apart, refuse)
            for chunk in self._run.chunks(suffixes, batch_size):
                yield chunk, self._run(chunk)

    def _suffixes(
        self,
        held: Sequence[tuple[int, Query, Document, Supplied[_WantedDocument]]],
        taken: Mapping[Picture, SuppliedPicture],
        apart: list[int],
        refuse: Refuse,
    ) -> list[Suffix]:
        """What is left of each prompt; `apart` gets those whose pictures are no part of it."""
        every = []
        for index, query, document, supplied in held:
            try:
                pictures = [taken[picture].seen() for picture in query.pictures]
            except DocumentError as error:
                refuse([index], error)
            else:
                every.append((index, query, document, supplied, pictures))
        prompts = self._prompts.tokens(
            [
                (
                    query,
                    document,
                    (*supplied.prefix.expansions, *(one.expansion for one in pictures)),
                )
                for _, query, document, supplied, pictures in every
            ]
        )
        suffixes = []
        for (index, query, document, supplied, pictures), ids in zip(every, prompts, strict=True):
            try:
                self._prefixes.check_length(len(ids), document, index, query)
            except PromptTooLongError as error:
                refuse([index], error)
                continue
            prefix = supplied.prefix
            shared = shared_length(ids, prefix.input_ids)
            if shared < len(prefix.input_ids) and self._cannot_go_on(prefix, shared):
                apart.append(index)
                continue
            known = supplied.known
            suffixes.append(Suffix(index, prefix, shared, ids[shared:], pictures, known))
        return suffixes

    def _cannot_go_on(self, prefix: CachedPrefix, shared: int) -> bool:
        """Whether a prompt cannot start from an earlier token than its prefix's last.

        A picture would not be whole; and a state is known behind the last token alone.
        """
        image_token_id = self._prompting.image_token_id
        return image_token_id in prefix.input_ids[shared:] or bool(self._supply.pool.state_pages)


def _refusing(refuse: Refuse) -> Callable[[_WantedDocument, Exception], None]:
    """Has a wanted document's pairs refused."""
    return lambda wanted, error: refuse(wanted.pairs, error)


def _placed(refuse: Refuse, places: Sequence[int]) -> Refuse:
    """Has pairs refused that stand at `places` of another list."""
    return lambda own, error: refuse([places[place] for place in own], error)
