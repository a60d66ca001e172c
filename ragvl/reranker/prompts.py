"""From a query and a document to the text of a prompt, and where in it the query begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ragvl.arguments import check_characters
from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.data.query import Query
from ragvl.mllm import (
    CaptionLimit,
    ImageInputs,
    Prompt,
    Prompting,
    common_prefix_length,
    encode_picture,
)
from ragvl.reranker.lengths import NO_LIMITS, Cuts, Lengths
from ragvl.reranker.templates import Template, pictures_in_order

_ONE_PICTURE = "the chat template numbers pictures: a prompt may have one"
# Queries without a common character: what their prompts share, every query's prompt shares
_PROBES = ("a", "1")
# Texts without a common end, of unlike lengths
_ENDS = ("0", "1 2 3 4")


class Prompts:
    """Writes one model's prompts.

    Args:
        prompting: the model's.
        template: what to write.
        caption_tokens: cuts captions to so many tokens; None cuts none.
        lengths: of the checkpoint's prompts; longer ones are cut.

    Attributes:
        template: as given.
        captions: cuts captions.
        cuts: what was cut because of `lengths`.

    Raises:
        ValueError: `caption_tokens` is below 1.
    """

    def __init__(
        self,
        prompting: Prompting,
        template: Template,
        caption_tokens: int | None = None,
        lengths: Lengths = NO_LIMITS,
    ) -> None:
        self._prompting = prompting
        self.template = template
        self.captions = CaptionLimit(prompting, caption_tokens)
        self.cuts = Cuts()
        self._lengths = lengths
        self._by_instruction: dict[str | None, Lengths] = {}
        # None: as it is, since a value must not keep its own key
        self._known: WeakKeyDictionary[Document, Document | None] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self._prompting,
            self.template,
            self.captions.max_tokens,
            self._lengths,
        )

    @property
    def max_length(self) -> int:
        """How many tokens a prompt may have."""
        most = self._prompting.max_length
        return min(most, self._lengths.prompt or most)

    def check(self, query: Query, document: Document) -> None:
        """Refuses what the template has no place for, before any work.

        Raises:
            ValueError: the query holds it.
            DocumentError: the document does.
        """
        self.template.check(self._prompting, query, document)
        self._check_pictures(document)
        if self._prompting.numbers_pictures and len(query.pictures + document.pictures) > 1:
            raise ValueError(f"{query.name}: {_ONE_PICTURE}")

    def check_document(self, document: Document) -> None:
        """Refuses a document that the template has no place for; see `check`."""
        self.check(Query(_PROBES[0]), document)

    def text(self, query: Query, document: Document) -> str:
        """The whole prompt, chat template included.

        Raises:
            DocumentError: see `before_query`.
        """
        return self.template.write(self._prompting, query, self._shortened(document))

    def before_query(self, document: Document, instruction: str | None = None) -> str:
        """What this document's prompts begin with, whatever the query.

        Args:
            document: the document.
            instruction: the queries'.

        Raises:
            DocumentError: the template has no place for what the document holds, needs a caption
                and the document has none, or that is no text that a tokenizer takes.
        """
        shortened = self._shortened(document)
        return self.template.before_query(self._prompting, shortened, instruction)

    def tokens(self, parts: Sequence[tuple[Query, Document, Sequence[str]]]) -> list[list[int]]:
        """The token ids of the prompts of (query, document, its pictures' expansions).

        Those that cannot be cut have more than `max_length`: they would lose a picture, or all
        that they say of the query or of the document.
        """
        whole = self._whole_tokens(parts)
        return [self._cut(ids, *part) for ids, part in zip(whole, parts, strict=True)]

    def prompt(self, query: Query, document: Document, images: Sequence[ImageInputs]) -> Prompt:
        """The whole prompt, tokenised.

        Args:
            query: the query.
            document: the document.
            images: the pictures of both; see `pictures_in_order`.
        """
        prompt = self._prompting.encode_prompt(self.text(query, document), images)
        ids = [*prompt.input_ids, *self.template.ending]
        expansions = [image.expansion for image in images]
        return Prompt(self._cut(ids, query, document, expansions), prompt.images)

    def prefix(
        self, document: Document, images: Sequence[ImageInputs], instruction: str | None = None
    ) -> Prompt:
        """The tokens that every query's prompt about a document begins with.

        Read off token ids of whole prompts: a merge across the boundary costs a token, never
        correctness. Where a chat template writes something else for some queries before the last
        picture is over, it is the first one's up to its end; other prompts share less of it.

        Args:
            document: the document.
            images: its pictures.
            instruction: the queries'.
        """
        expansions = [image.expansion for image in images]
        probes = [Query(probe, instruction=instruction) for probe in _PROBES]
        first, second = self._whole_tokens([(probe, document, expansions) for probe in probes])
        length = common_prefix_length(first, second)
        if self._prompting.image_token_id in first[length:]:
            length = len(first) - first[::-1].index(self._prompting.image_token_id)
        return Prompt(first[:length], tuple(images))

    def _whole_tokens(
        self, parts: Sequence[tuple[Query, Document, Sequence[str]]]
    ) -> list[list[int]]:
        texts = [
            self._prompting.expand(self.text(query, document), expansions)
            for query, document, expansions in parts
        ]
        return [[*ids, *self.template.ending] for ids in self._prompting.tokenize(texts)]

    def _cut(
        self, ids: list[int], query: Query, document: Document, expansions: Sequence[str]
    ) -> list[int]:
        """A prompt's tokens, or as many as the checkpoint takes, if that leaves what matters."""
        cut = self._within(ids, query.instruction)
        if len(cut) == len(ids) or not self._says_of_both(cut, query, document, expansions):
            return ids
        name = f"about {document.name} and the {query.name}"
        self.cuts.add("prompts", len(cut), name, (id(query), id(document)))
        return cut

    def _within(self, ids: list[int], instruction: str | None) -> list[int]:
        if self._lengths.prompt is None or len(ids) <= self._lengths.prompt:
            return ids
        tokenizer = self._prompting.tokenizer
        special, picture = tokenizer.all_special_ids, self._prompting.image_token_id
        return self._lengths_after(instruction).cut(ids, special, picture)

    def _lengths_after(self, instruction: str | None) -> Lengths:
        """The limits, with the number of tokens at the end of prompts of this instruction."""
        if not self._lengths.keep_end:
            return self._lengths
        if instruction not in self._by_instruction:
            pairs = [(Query(text, instruction=instruction), Document(text=text)) for text in _ENDS]
            try:
                first, second = self._whole_tokens([(*pair, ()) for pair in pairs])
                last = common_prefix_length(first[::-1], second[::-1])
                lengths = dataclasses.replace(self._lengths, last=last)
            except ValueError:  # no place for texts, or no room: all that is too long is an error
                lengths = NO_LIMITS
            self._by_instruction[instruction] = lengths
        return self._by_instruction[instruction]

    def _says_of_both(
        self, cut: list[int], query: Query, document: Document, expansions: Sequence[str]
    ) -> bool:
        """Whether a prompt that was cut still depends on both; pictures are never cut."""
        others = []
        if not query.pictures:
            probes = [Query(probe, instruction=query.instruction) for probe in _PROBES]
            others.append([(probe, document, expansions) for probe in probes])
        if not document.pictures:
            others.append([(query, Document(text=probe), expansions) for probe in _PROBES])
        return all(
            any(self._within(ids, query.instruction) != cut for ids in self._whole_tokens(group))
            for group in others
        )

    def _shortened(self, document: Document) -> Document:
        """The document as it goes into prompts; never another one."""
        if document not in self._known:
            check_caption(document)
            self._check_pictures(document)
            self._known[document] = self._made_shorter(document)
        shorter = self._known[document]
        if shorter is not None and shorter.caption == document.caption:
            self.cuts.add("documents", self._lengths.text or 0, document.name, id(document))
        return shorter or document

    def _check_pictures(self, document: Document) -> None:
        if len(document.pictures) > 1 and self._prompting.numbers_pictures:
            raise DocumentError(f"{document.name}: {_ONE_PICTURE}")

    def _made_shorter(self, document: Document) -> Document | None:
        """The document with its texts cut, or None where nothing is to be cut."""
        if (shortened := self.captions.shortened(document)) is not document:
            return shortened
        if (most := self._lengths.text) is None or document.pictures:
            return None
        texts = [self._cut_text(part, most) for part in document.parts if isinstance(part, str)]
        return None if texts == [*document.parts] else Document(parts=texts, id=document.id)

    def _cut_text(self, text: str, most: int) -> str:
        """A text, or as much of it as `most` tokens say.

        As the authors of such a limit do it: cut through a character, its rest is a U+FFFD.
        """
        tokenizer = self._prompting.tokenizer
        escaped = self._prompting.escape(text)
        ids = tokenizer(escaped, add_special_tokens=False, verbose=False).input_ids
        return text if len(ids) <= most else tokenizer.decode(ids[:most])


def check_caption(document: Document) -> None:
    """Refuses a caption that no tokenizer takes.

    Raises:
        DocumentError: it holds half a character; the message names the document.
    """
    try:
        check_characters(document.caption or "")
    except ValueError as error:
        raise DocumentError(f"{document.name}: its caption holds {error}") from None


def split_prompt(
    prompting: Prompting, prompts: Prompts, query: Query, document: Document
) -> tuple[list[int], list[int]]:
    """A prompt's token ids: what every query's prompt about `document` shares, and the rest."""
    prompts.check(query, document)
    encoded = {
        picture: encode_picture(prompting, picture)
        for picture in (*document.pictures, *query.pictures)
    }
    images = [encoded[picture] for picture in pictures_in_order(prompts.template, query, document)]
    ids = prompts.prompt(query, document, images).input_ids
    own = [encoded[picture] for picture in document.pictures]
    shared = shared_length(ids, prompts.prefix(document, own, query.instruction).input_ids)
    return ids[:shared], ids[shared:]


def shared_length(ids: Sequence[int], prefix: Sequence[int]) -> int:
    """How many tokens a prompt shares with a prefix; its last token is always its own."""
    if ids[: len(prefix)] == prefix and len(ids) > len(prefix):
        return len(prefix)
    return min(common_prefix_length(ids, prefix), len(ids) - 1)
