"""Conversations whose texts come from outside, written by a checkpoint's own chat template.

A reranker's chat template may take a query and a document as the messages of two roles, as those in
sentence-transformers' format do. What such a template writes around their texts shows by rendering
it with marks in their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ragvl.messages import quoted
from ragvl.mllm.chat_template import ChatTemplate, Messages, Treatment
from ragvl.mllm.control_tokens import ControlTokens
from ragvl.mllm.inputs import common_prefix_length
from ragvl.mllm.pieces import (
    TEXT_OF_ALL_KINDS,
    Pieces,
    cut,
    joined,
    marks,
    remembered,
    unused_words,
)

IMAGE_PART = {"type": "image", "image": "image"}  # some templates look for the key


class Turn(NamedTuple):
    """One message.

    Attributes:
        role: whose it is.
        parts: its texts, and None for each picture, in order.
    """

    role: str
    parts: tuple[str | None, ...]


# Of each turn its role, and whether each of its parts is a picture
Shape = tuple[tuple[str, tuple[bool, ...]], ...]


@dataclass(frozen=True)
class Form:
    """What a chat template writes around the texts of conversations of one shape.

    Attributes:
        pieces: the prompt, cut where texts stand, with the number of the text after each piece,
            None after the last; None where the prompt must be rendered to be known.
        trims: the template takes white space off the texts' ends.
        num_images: how many image tokens it has.
        lost: the numbers of the texts that it does not hold.
        num_control_tokens: how many control tokens it has of its own.
    """

    pieces: Pieces | None
    trims: bool
    num_images: int
    lost: tuple[int, ...]
    num_control_tokens: int


class Conversations:
    """Writes conversations by one chat template with one set of variables.

    Args:
        template: the chat template.
        control_tokens: of the model's tokenizer.
        image_token: stands for a picture in a prompt.
        add_generation_prompt: end with the beginning of an answer.
    """

    def __init__(
        self,
        template: ChatTemplate,
        control_tokens: ControlTokens,
        image_token: str,
        *,
        add_generation_prompt: bool,
    ) -> None:
        self._template = template
        self._control_tokens = control_tokens
        self._image_token = image_token
        self._add_generation_prompt = add_generation_prompt
        self._forms: dict[Shape, Form] = {}

    def write(self, turns: Sequence[Turn]) -> str:
        """The prompt, with the image token for each picture; see `Chat.escape` for its texts.

        Raises:
            ValueError: the template refuses the conversation, or makes control tokens of a text.
        """
        form, texts = self.form(turns), _texts(turns)
        if form.pieces is not None and self._puts_in(form, texts):
            return self._joined(form.pieces, texts)
        escaped = [self._control_tokens.escape(text) for text in texts]
        prompt = self._render(_with_texts(turns, escaped))
        if len(self._control_tokens.find(prompt)) != form.num_control_tokens:
            raise ValueError(
                "the chat template makes control tokens of the texts "
                f"{', '.join(map(quoted, texts))}"
            )
        return prompt

    def before(self, turns: Sequence[Turn], number: int) -> str:
        """What the prompt begins with, whatever the text of this number says.

        Args:
            turns: the conversation; what the text says in it does not matter.
            number: of the text, among all of the conversation's.

        Raises:
            ValueError: see `write`.
        """
        form, texts = self.form(turns), _texts(turns)
        others = [*texts[:number], *texts[number + 1 :]]
        if form.pieces is not None and self._puts_in(form, others):
            return self._joined(form.pieces, texts, number)
        first, second = (
            self.write(_with_texts(turns, [*texts[:number], word, *texts[number + 1 :]]))
            for word in unused_words(f"{self._template.source}{texts}", 2)
        )
        return first[: common_prefix_length(first, second)]

    def form(self, turns: Sequence[Turn]) -> Form:
        """What the template writes around the texts of conversations of this shape.

        Raises:
            ValueError: the template refuses the conversation.
        """
        shape = tuple((role, tuple(part is None for part in parts)) for role, parts in turns)
        return remembered(self._forms, shape, lambda: self._make_form(turns))

    def position(self, turns: Sequence[Turn], number: int) -> int:
        """Where the text of this number stands in a prompt that it is not lost from."""
        texts = _texts(turns)
        word = unused_words(f"{self._template.source}{texts}", 1)[0]
        prompt = self.write(_with_texts(turns, [*texts[:number], word, *texts[number + 1 :]]))
        return prompt.index(word)

    def _make_form(self, turns: Sequence[Turn]) -> Form:
        count = len(_texts(turns))
        words = unused_words(self._template.source, 2)
        written = [marks(word, count) for word in words]
        wholes = [self._render(_with_texts(turns, texts)) for texts in written]
        first, second = (
            cut(whole, texts, range(count)) for whole, texts in zip(wholes, written, strict=True)
        )
        treatments = {self._treatment(turns, number) for number in range(count)}
        return Form(
            first if first == second and "rewrites" not in treatments else None,
            "trims" in treatments,
            wholes[0].count(self._image_token),
            tuple(i for i, text in enumerate(written[0]) if text not in wholes[0]),
            len(self._control_tokens.find(wholes[0])),
        )

    def _treatment(self, turns: Sequence[Turn], number: int) -> Treatment:
        """What the template does with the text of this number."""
        count = len(_texts(turns))

        def says(text: str) -> Messages:
            texts = [text if i == number else "x" for i in range(count)]
            return _messages(_with_texts(turns, texts))

        return self._template.treatment(
            says, TEXT_OF_ALL_KINDS, add_generation_prompt=self._add_generation_prompt
        )

    def _puts_in(self, form: Form, texts: Sequence[str]) -> bool:
        """Whether the template writes these texts as they are; it may leave out an empty one."""
        if not form.trims:
            return all(texts)
        escaped = map(self._control_tokens.escape, texts)
        return all(text and text == text.strip() for text in escaped)

    def _joined(self, pieces: Pieces, texts: Sequence[str], before: int | None = None) -> str:
        return joined(pieces, dict(enumerate(texts)), self._control_tokens.escape, before)

    def _render(self, turns: Sequence[Turn]) -> str:
        return self._template.render(
            _messages(turns), add_generation_prompt=self._add_generation_prompt
        )


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The conversation in Hugging Face's form."""
    return [
        {
            "role": turn.role,
            "content": [
                IMAGE_PART if part is None else {"type": "text", "text": part}
                for part in turn.parts
            ],
        }
        for turn in turns
    ]


def _texts(turns: Sequence[Turn]) -> list[str]:
    return [part for turn in turns for part in turn.parts if part is not None]


def _with_texts(turns: Sequence[Turn], texts: Sequence[str]) -> list[Turn]:
    coming = iter(texts)
    return [
        Turn(turn.role, tuple(None if part is None else next(coming) for part in turn.parts))
        for turn in turns
    ]
