"""Text from outside cannot become a control token: where it would, a space breaks the spelling."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from ragvl.arguments import check_characters
from ragvl.messages import quoted
from ragvl.mllm.inputs import common_prefix_length

# What plain text joins words with; "▁" is SentencePiece's space
_JOINERS = frozenset("'’.,-&+/%▁")
_MAX_PASSES = 64  # a break may complete another spelling; in real vocabularies one pass is enough


class ControlTokens:
    """Finds in a text what a tokenizer reads as control tokens, and breaks it up.

    These are the tokens of a vocabulary that nobody writes as text: those the tokenizer calls
    special, those that stand for pictures, videos or sound, the added tokens that the chat template
    writes, and of the other added tokens all that are not plain text: words (letters, digits and
    what joins them) or white space. A checkpoint's authors add a token either to mark structure,
    and then spell it so that no text holds it (`<think>`, `<|fim_suffix|>`, `<unused42>`), whether
    or not they flag it special, or to write words and white space in fewer tokens.

    Args:
        tokenizer: the model's.
        multimodal: the processor's tokens for pictures, videos and sound.
        written: what the chat template writes of its own.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, multimodal: Iterable[str], written: str
    ) -> None:
        self._tokenizer = tokenizer
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        names = {*tokenizer.all_special_tokens, *multimodal}
        names.update(
            token.content
            for token in added.values()
            if token.special or token.content in written or not _is_plain_text(token.content)
        )
        self._names = {name for name in names if name.strip()}
        self._pattern = re.compile(_any_of(self._names) or r"(?!)")
        self._ids = {i for i, token in added.items() if token.content in self._names}
        self._by_ids = self._has_other_spellings(added.values())
        # How far a spelling can reach into what stands beside a text; normalising may shorten it
        self._reach = max(map(len, self._names), default=1) * (4 if self._by_ids else 1)

    def find(self, text: str) -> list[tuple[int, int]]:
        """Where `text` spells control tokens: (start, end) of each, from the left."""
        spans = [match.span() for match in self._pattern.finditer(text)]
        if not self._by_ids:
            return spans
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for token, (start, end) in zip(
            encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            if token in self._ids:  # some take the white space beside them along
                spelled = text[start:end]
                start += len(spelled) - len(spelled.lstrip())
                spans.append((start, start + len(spelled.strip())))
        return sorted(set(spans))

    def match(self, text: str) -> str | None:
        """The control token that `text` begins with."""
        match = self._pattern.match(text)
        return match and match[0]

    def escape(self, text: str, before: str = "", after: str = "") -> str:
        """`text` with a space in every control token that it takes part in spelling.

        The space comes after the token's first character, or where `text` begins if the token
        begins in `before`. A token of one character becomes a space.

        Args:
            text: text from outside.
            before: what will stand before it.
            after: what will stand after it.

        Raises:
            ValueError: see `check_characters`; or it cannot be escaped.
        """
        check_characters(text)
        before, after = before[-self._reach :], after[: self._reach]
        if not self._by_ids and not self._pattern.search(before + text + after):
            return text  # nearly always, and this runs for each prompt
        for _ in range(_MAX_PASSES):
            begin, end = len(before), len(before) + len(text)
            spelled = [
                (start - begin, stop - begin)
                for start, stop in self.find(before + text + after)
                if stop > begin and start < end
            ]
            if not spelled:
                return text
            text = _broken(text, spelled)
        raise ValueError(f"text spells control tokens that no space breaks: {quoted(text)}")

    def _has_other_spellings(self, added: Iterable[Any]) -> bool:
        """Whether some other text is read as a control token, after normalising.

        Such as full-width letters under NFKC, or upper case under lower-casing: only the tokenizer
        can say where.
        """
        if not any(token.normalized and token.content in self._names for token in added):
            return False
        state = json.loads(self._tokenizer.backend_tokenizer.to_str())["normalizer"]
        return not _keeps_spellings(state)


def _broken(text: str, spans: list[tuple[int, int]]) -> str:
    """`text` with a space in each of `spans`, which may reach out of it on both sides."""
    for start, stop in reversed(spans):
        if stop - start == 1:
            text = f"{text[:start]} {text[stop:]}"
        else:
            place = max(start + 1, 0)
            text = f"{text[:place]} {text[place:]}"
    return text


def _is_plain_text(token: str) -> bool:
    """Whether a token is words or white space."""
    return all(
        character.isspace() or character in _JOINERS or unicodedata.category(character)[0] in "LMN"
        for character in token
    )


def _keeps_spellings(normalizer: dict[str, Any] | None) -> bool:
    """Whether normalising changes nothing but how spaces are written, as LLaMA 2's does."""
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(_keeps_spellings, normalizer["normalizers"]))
    if normalizer["type"] == "Replace":
        return normalizer["pattern"] == {"String": " "} and normalizer["content"] == "▁"
    return normalizer["type"] == "Prepend" and normalizer["prepend"] == "▁"


def _any_of(words: Iterable[str]) -> str:
    """A pattern for the longest of `words` at a place; fast for thousands that begin alike."""
    by_first: dict[str, list[str]] = {}
    for word in set(words):
        by_first.setdefault(word[:1], []).append(word)
    ends = by_first.pop("", None) is not None
    branches = []
    for _, group in sorted(by_first.items()):
        start = min(group)[: common_prefix_length(min(group), max(group))]
        branches.append(re.escape(start) + _any_of(word[len(start) :] for word in group))
    if not branches:
        return ""
    joined = "|".join(branches)
    return f"(?:{joined})?" if ends else f"(?:{joined})" if len(branches) > 1 else joined
