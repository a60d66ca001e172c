"""Captions cut to a number of tokens, where the caller wants that."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import lru_cache

from ragvl.arguments import checked_count
from ragvl.data.document import Document
from ragvl.mllm.prompting import Prompting

logger = logging.getLogger(__name__)

_KNOWN_CAPTIONS = 1 << 12
_LONGEST_KNOWN = 1 << 14  # characters; a longer one is cut anew each time, and not kept


def checked_caption_tokens(value: object) -> int | None:
    """How many tokens a caption may have; None for any number.

    Raises:
        TypeError: it is neither a whole number nor None.
        ValueError: it is below 1.
    """
    return None if value is None else checked_count("caption_tokens", value)


class CaptionLimit:
    """Cuts captions at token boundaries, and says so once a call.

    Args:
        prompting: whose tokens are counted.
        max_tokens: what a caption may have by itself; None cuts none.

    Raises:
        TypeError, ValueError: see `checked_caption_tokens`.
    """

    def __init__(self, prompting: Prompting, max_tokens: int | None) -> None:
        self._prompting = prompting
        self.max_tokens = checked_caption_tokens(max_tokens)
        self._cut_known = lru_cache(maxsize=_KNOWN_CAPTIONS)(self._cut)

    def __reduce__(self) -> tuple[type, tuple[Prompting, int | None]]:
        return type(self), (self._prompting, self.max_tokens)

    def __call__(self, caption: str | None) -> str | None:
        """The caption, or as much of its beginning as it may have.

        It ends where a token ends. Counted as it goes into a prompt, with control tokens broken up.
        """
        if caption is None or self.max_tokens is None:
            return caption
        cut = self._cut_known if len(caption) <= _LONGEST_KNOWN else self._cut
        return cut(caption, self.max_tokens)

    def _cut(self, text: str, max_tokens: int) -> str:
        tokenizer, escape = self._prompting.tokenizer, self._prompting.escape

        def fits(part: str) -> bool:
            ids = tokenizer(escape(part), add_special_tokens=False, verbose=False).input_ids
            return len(ids) <= max_tokens

        if fits(text):
            return text
        offsets = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        ).offset_mapping
        ends = [end for _, end in offsets[:max_tokens]]
        return next((text[:end] for end in reversed(ends) if fits(text[:end])), "")

    def shortened(self, document: Document) -> Document:
        """The document with its caption cut; itself where there is nothing to cut."""
        caption = self(document.caption)
        if caption == document.caption:
            return document
        image, limit = document.image, document.max_pixels
        return Document(image, caption, document.id, max_pixels=limit)

    def watched(self, documents: Iterable[Document]) -> Iterable[Document]:
        """`documents`; once they have passed, logs how many of their captions are cut."""
        return documents if self.max_tokens is None else self._watched(documents)

    def _watched(self, documents: Iterable[Document]) -> Iterator[Document]:
        cut: dict[int, str] = {}
        try:
            for document in documents:
                if self(document.caption) != document.caption:
                    cut.setdefault(id(document), document.name if not cut else "")
                yield document
        finally:
            if cut:
                logger.warning(
                    "caption_tokens=%d: %d captions were cut, the first that of %s",
                    self.max_tokens,
                    len(cut),
                    next(iter(cut.values())),
                )
