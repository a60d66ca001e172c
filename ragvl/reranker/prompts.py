"""From a query and a document to the text of a prompt, and where in it the query begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ragvl.arguments import check_characters
from ragvl.data.document import Document
from ragvl.mllm import (
    CaptionLimit,
    ImageInputs,
    Prompt,
    Prompting,
    common_prefix_length,
    encode_document,
)
from ragvl.reranker.templates import CaptionError, PromptTemplate

# Queries without a common character: what their prompts share, every query's prompt shares
_PROBES = ("a", "1")


class Prompts:
    """Writes one model's prompts.

    Args:
        prompting: the model's.
        template: what to write.
        caption_tokens: cuts captions to so many tokens; None cuts none.

    Attributes:
        captions: cuts captions.

    Raises:
        ValueError: `caption_tokens` is below 1.
    """

    def __init__(
        self, prompting: Prompting, template: PromptTemplate, caption_tokens: int | None = None
    ) -> None:
        self._prompting = prompting
        self._template = template
        self.captions = CaptionLimit(prompting, caption_tokens)
        self._forms: WeakKeyDictionary[Document, tuple[PromptTemplate, str]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._prompting, self._template, self.captions.max_tokens)

    def text(self, query: str, document: Document) -> str:
        """The whole prompt, chat template included.

        Raises:
            CaptionError: see `before_query`.
        """
        template, caption = self._form(document)
        return self._prompting.render(
            template.text, system_turn=template.system_turn, query=query, caption=caption
        )

    def before_query(self, document: Document) -> str:
        """What this document's prompts begin with, whatever the query.

        Raises:
            CaptionError: the template needs a caption and the document has none, or it is no text
                that a tokenizer takes.
        """
        template, caption = self._form(document)
        return self._prompting.text_before(
            template.text, "query", system_turn=template.system_turn, caption=caption
        )

    def tokens(self, parts: Sequence[tuple[str, Document, str]]) -> list[list[int]]:
        """The token ids of the prompts of (query, document, its picture's expansion)."""
        texts = [
            self._prompting.expand(self.text(query, document), [expansion])
            for query, document, expansion in parts
        ]
        return self._prompting.tokenize(texts)

    def prefix(self, document: Document, image: ImageInputs) -> Prompt:
        """The tokens that every query's prompt about a document begins with.

        Read off token ids of whole prompts: a merge across the boundary costs a token, never
        correctness. Where a chat template writes something else for some queries before the picture
        is over, it is the first one's up to the picture's end; other prompts share less of it.
        """
        first, second = self.tokens([(probe, document, image.expansion) for probe in _PROBES])
        length = common_prefix_length(first, second)
        if self._prompting.image_token_id in first[length:]:
            length = len(first) - first[::-1].index(self._prompting.image_token_id)
        return Prompt(first[:length], (image,))

    def _form(self, document: Document) -> tuple[PromptTemplate, str]:
        """A document's template and its caption as it goes in; neither ever changes."""
        form = self._forms.get(document)
        if form is None:
            template = self._template.of(document)
            check_caption(document)
            form = self._forms[document] = template, self.captions(document.caption) or ""
        return form


def check_caption(document: Document) -> None:
    """Refuses a caption that no tokenizer takes.

    Raises:
        CaptionError: it holds half a character; the message names the document.
    """
    try:
        check_characters(document.caption or "")
    except ValueError as error:
        raise CaptionError(f"{document.name}: its caption holds {error}") from None


def split_prompt(
    prompting: Prompting, prompts: Prompts, query: str, document: Document
) -> tuple[list[int], list[int]]:
    """A prompt's token ids: what every query's prompt about `document` shares, and the rest."""
    image = encode_document(prompting, document)
    (ids,) = prompts.tokens([(query, document, image.expansion)])
    shared = shared_length(ids, prompts.prefix(document, image).input_ids)
    return ids[:shared], ids[shared:]


def shared_length(ids: Sequence[int], prefix: Sequence[int]) -> int:
    """How many tokens a prompt shares with a prefix; its last token is always its own."""
    if ids[: len(prefix)] == prefix and len(ids) > len(prefix):
        return len(prefix)
    return min(common_prefix_length(ids, prefix), len(ids) - 1)
