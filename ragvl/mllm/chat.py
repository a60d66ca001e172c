"""Writes a model's prompts: its chat template around a template of ours and text from outside."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from string import Formatter
from typing import Any

from transformers.processing_utils import ProcessorMixin

from ragvl.messages import quoted, reason
from ragvl.mllm.chat_template import ChatTemplate, Treatment, template_text
from ragvl.mllm.control_tokens import ControlTokens
from ragvl.mllm.conversation import IMAGE_PART, Conversations
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
from ragvl.model_files import UnsuitableSettingError, UnsupportedModelError

logger = logging.getLogger(__name__)

IMAGE = "<image>"  # in ragvl's own templates, whatever a model's placeholder is
# What opens a thought at the end of a prompt, what ends it, and the line breaks around the end
_THOUGHTS = (
    (re.compile(r"<((?:\w+:)?(?:think|thinking|thoughts?|reason|reasoning))>"), r"</\1>", "\n\n"),
    (re.compile(r"\[(THINK|think)\]"), r"[/\1]", ""),
    (re.compile(r"◁(think)▷"), r"◁/\1▷", ""),
    (re.compile(r"<\|(?:START|BEGIN)_(THINKING|THOUGHT|REASONING)\|>"), r"<|END_\1|>", ""),
    (re.compile(r"<\|begin_of_(thought|thinking|reasoning)\|>"), r"<|end_of_\1|>", "\n\n"),
)


@dataclass(frozen=True)
class _Form:
    """A rendered prompt with blanks for its fields.

    Attributes:
        template: the user's turn: each text with the field after it, None after the last.
        prompt: the same of the whole prompt; None where the chat template does more to some texts
            than put them in, so that a prompt must be rendered to be known.
        ends: fields at the turn's two ends, whose outer white space a chat template may trim.
        num_control_tokens: how many control tokens the prompt has of its own.
    """

    template: Pieces
    prompt: Pieces | None
    ends: frozenset[str]
    num_control_tokens: int


class Chat:
    """Turns a template and its fields into a prompt for one model.

    The chat template is taken when this is made, with one date and one set of settings; what it
    writes does not change after.

    Args:
        processor: the model's.
        chat_template_kwargs: values for the chat template's own variables; see `ChatTemplate`.
        date: what the template takes for today; see `ChatTemplate`.

    Attributes:
        processor: the processor.
        image_placeholder: what stands for one picture in this model's prompts, with the marks
            that its chat template puts around it; a picture's expansion later takes the place of
            the processor's image token within it.
        takes_user_turns: the chat template writes what a user says. One of a reranker may write
            messages of the roles query and document only; see `conversations`.

    Raises:
        UnsupportedModelError: the chat template cannot hold a picture and a text word for word, or
            writes something else each time.
        ValueError: variables that the template does not read, or a date that is none.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        date: date | str | None = None,
    ) -> None:
        self.processor = processor
        self._template = _chat_template(processor, chat_template_kwargs or {}, date)
        self._forms: dict[tuple[str, str | None, bool], _Form] = {}
        self._conversations: dict[tuple[bool, str], Conversations] = {}
        # Words to look for in what the template writes, which holds them nowhere else
        self._probe, self._answer_probe, self._thought_probe = unused_words(self._source, 3)
        self._end_of_thought = ""
        self.takes_user_turns = True
        self.image_placeholder = self._find_placeholder()
        if self._template is not None and self.takes_user_turns:
            self._end_of_thought = self._find_end_of_thought(self._template)
        written = self.probe(picture=True) + self.probe(picture=False)
        self._control_tokens = ControlTokens(
            processor.tokenizer, processor.all_special_multimodal_tokens, written
        )
        self._treatment: Treatment = "verbatim"
        if self._template is not None:
            self._check_template(self._template, date_given=date is not None)

    @cached_property
    def numbers_pictures(self) -> bool:
        """Whether the chat template writes something else around a second picture."""
        picture = {"type": "image"}
        try:
            two = self._turn([picture, picture, {"type": "text", "text": self._probe}])
        except ValueError:  # it takes one, or no user's turn
            return False
        is_of_two = two.count(self.processor.image_token) == 2
        return is_of_two and two.count(self.image_placeholder) != 2

    @property
    def before_answer(self) -> str:
        """What the chat template puts between a prompt and an answer, such as a space."""
        return self._answer_frame[0]

    @property
    def chat_settings(self) -> str:
        """All that shapes a prompt beside its texts, as one text: template, settings and date.

        The date counts where the template writes it.
        """
        template = self._template
        shaped: dict[str, Any] = {"end of thought": self._end_of_thought}
        if template is not None:
            shaped["template"] = template.text
            shaped["special tokens"] = template.special_tokens
            shaped["kwargs"] = template.kwargs
            shaped["date"] = str(template.date) if self._depends_on_date else None
        return json.dumps(shaped, sort_keys=True)

    def render(
        self,
        template: str,
        chat: bool = True,
        /,
        *,
        system_turn: str | None = None,
        **fields: str,
    ) -> str:
        """One user turn holding `template`, filled in, up to where the answer starts.

        A system turn comes before it if one is given; else whatever the checkpoint's chat template
        puts there. `template` is trusted: each `<image>` in it becomes a picture, each `{name}` the
        field of that name. A field is data, and goes through `escape`, beside what stands next to
        it. Where `chat` is false, the filled template is the whole prompt.

        Raises:
            ValueError: the template names a field that was not given, or a field holds what the
                chat template makes a control token of.
            TypeError: a field is not a string.
        """
        form = self._form(template, system_turn, chat)
        self._check_fields(form, template, fields)
        filled = self._filled(form, fields)
        return self._rendered(form, system_turn, fields) if filled is None else filled

    def text_before(
        self,
        template: str,
        name: str,
        chat: bool = True,
        /,
        *,
        system_turn: str | None = None,
        **fields: str,
    ) -> str:
        """What stands before the field `name` in `render`'s prompts, whatever the field holds.

        Args:
            template: as of `render`.
            name: the field that is left open.
            chat: as of `render`.
            system_turn: as of `render`.
            fields: the others.
        """
        form = self._form(template, system_turn, chat)
        self._check_fields(form, template, {**fields, name: ""})
        filled = self._filled(form, {**fields, name: ""}, open_field=name)
        if filled is not None:
            return filled
        words = unused_words(f"{self._source}{template}{system_turn}{fields}", 2)
        first, second = (
            self.render(template, chat, system_turn=system_turn, **{**fields, name: word})
            for word in words
        )
        return first[: common_prefix_length(first, second)]

    def conversations(
        self, *, add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> Conversations:
        """Writes conversations of any roles, as Hugging Face's `apply_chat_template` does.

        Nothing is added to what the chat template writes, and nothing set in it by default.

        Args:
            add_generation_prompt: end with the beginning of an answer.
            variables: of the chat template; those that it does not read are passed over, and
                `chat_template_kwargs` go before them.

        Raises:
            ValueError: the model has no chat template.
        """
        if self._template is None:
            raise ValueError("this model has no chat template, so it knows no roles")
        key = add_generation_prompt, json.dumps(dict(variables), sort_keys=True)
        if key not in self._conversations:
            self._conversations[key] = Conversations(
                self._template.with_defaults(variables),
                self._control_tokens,
                self.processor.image_token,
                add_generation_prompt=add_generation_prompt,
            )
        return self._conversations[key]

    def probe(self, *, picture: bool) -> str:
        """A small prompt, with or without a picture, by whatever the chat template takes."""
        text = {"type": "text", "text": "Is it a mill?"}
        if self.takes_user_turns:
            return self._turn([{"type": "image"}, text] if picture else [text])
        document = [IMAGE_PART] if picture else [text]
        return self._rendered_pair("Is it a mill?", document)

    def escape(self, text: str, before: str = "", after: str = "") -> str:
        """`text` with a space in every control token that it spells.

        So a caption `<image>` stays a caption (`< image>`), and `<|im_end|>` does not end a turn;
        nor does `end|>` behind `<|im_`. See `ControlTokens` for what counts. Words that a template
        uses for its roles, such as LLaVA's `ASSISTANT:`, are ordinary text to the model and stay.

        Args:
            text: text from outside.
            before: what will stand before it.
            after: what will stand after it.

        Raises:
            ValueError: the text holds half a character (a lone surrogate); no tokenizer takes it.
        """
        return self._control_tokens.escape(text, before, after)

    def answered(self, prompt: str, answer: str) -> str:
        """A rendered prompt followed by the assistant's answer and the mark that ends its turn.

        What stands between them and after them is what the chat template writes; where it does not
        simply go on after a prompt, nothing and the tokenizer's own end.
        """
        before, end = self._answer_frame
        return f"{prompt}{before}{self.escape(answer, prompt + before, end)}{end}"

    # --- forms ----------------------------------------------------------------------------------

    @property
    def _source(self) -> str:
        """All that a chat template can write of its own."""
        return "" if self._template is None else self._template.source

    def _form(self, template: str, system_turn: str | None, chat: bool) -> _Form:
        def make() -> _Form:
            pieces = tuple(self._pieces(template))
            return self._chat_form(pieces, system_turn) if chat else self._bare_form(pieces)

        return remembered(self._forms, (template, system_turn, chat), make)

    def _bare_form(self, pieces: Pieces) -> _Form:
        own = "".join(text for text, _ in pieces)
        return _Form(pieces, pieces, frozenset(), len(self._control_tokens.find(own)))

    def _chat_form(self, pieces: Pieces, system_turn: str | None) -> _Form:
        if not self.takes_user_turns:
            raise ValueError(
                "the chat template writes no user's turn: its prompts are of a query and a document"
            )
        own = "".join(text for text, _ in pieces)
        words = unused_words(f"{self._source}{own}{system_turn}", 2)
        names = [name for _, name in pieces[:-1]]
        wholes, cuts = [], []
        for word in words:
            written = marks(word, len(names))
            turn = "".join(
                text + mark for (text, _), mark in zip(pieces, [*written, ""], strict=True)
            )
            wholes.append(self._turn([{"type": "text", "text": turn}], system_turn))
            cuts.append(cut(wholes[-1], written, names))
        prompt = cuts[0] if self._treatment != "rewrites" and cuts[0] == cuts[1] else None
        num_control_tokens = len(self._control_tokens.find(wholes[0]))
        return _Form(pieces, prompt, _fields_at_ends(pieces), num_control_tokens)

    def _pieces(self, template: str) -> Iterator[tuple[str, str | None]]:
        """Each text of a template, with the field after it; the last has none."""
        text = ""
        for literal, name, specification, conversion in Formatter().parse(template):
            text += literal.replace(IMAGE, self.image_placeholder)
            if name is not None:
                if specification or conversion:
                    raise ValueError(f"a field of a template is a name alone: {template!r}")
                yield text, name
                text = ""
        yield text, None

    @staticmethod
    def _check_fields(form: _Form, template: str, fields: Mapping[str, str]) -> None:
        for name, value in fields.items():
            if not isinstance(value, str):
                raise TypeError(f"field {name!r} must be a string, got {type(value).__name__}")
        for _, needed in form.template:
            if needed is not None and needed not in fields:
                raise ValueError(
                    f"the template needs a field {needed!r}, and got {sorted(fields)}: {template!r}"
                )

    def _filled(
        self, form: _Form, fields: Mapping[str, str], open_field: str | None = None
    ) -> str | None:
        """The prompt, up to `open_field` if one is named, which may hold anything.

        None where only rendering shows what the chat template makes of the fields.
        """
        if form.prompt is None:
            return None
        if self._treatment == "trims":
            for name in form.ends - {open_field}:
                value = self.escape(fields[name])
                if not value or value != value.strip():
                    return None
        return joined(form.prompt, fields, self.escape, open_field)

    def _rendered(self, form: _Form, system_turn: str | None, fields: Mapping[str, str]) -> str:
        """The prompt as the chat template writes it.

        Raises:
            ValueError: it makes control tokens of a field, which no space keeps it from.
        """
        text = joined(form.template, fields, self.escape)
        prompt = self._turn([{"type": "text", "text": text}], system_turn)
        if len(self._control_tokens.find(prompt)) != form.num_control_tokens:
            raise ValueError(
                "the chat template, which rewrites texts, makes control tokens of "
                f"{', '.join(f'{name}={quoted(value)}' for name, value in fields.items())}"
            )
        return prompt

    # --- the chat template ----------------------------------------------------------------------

    def _turn(self, content: list[dict[str, str]], system_turn: str | None = None) -> str:
        if self._template is None:  # a model without turns, such as PaliGemma, reads bare text
            if system_turn is not None:
                raise ValueError("the template has a system turn and this model knows no turns")
            return "".join(part.get("text", self.processor.image_token) for part in content)
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system_turn is not None:
            text = {"type": "text", "text": system_turn}
            messages.insert(0, {"role": "system", "content": [text]})
        prompt = self._template.render(messages, add_generation_prompt=True)
        return prompt + self._end_of_thought

    def _rendered_pair(self, query: str, document: list[dict[str, str]]) -> str:
        assert self._template is not None
        return self._template.render(_pair(query, document), add_generation_prompt=False)

    @cached_property
    def _depends_on_date(self) -> bool:
        if self._template is None:
            return False
        says = _user_says(self._probe)
        pair = _pair(self._probe, says[0]["content"])
        for messages in (says, [{**says[0], "role": "system"}, *says], pair):
            try:
                if self._template.depends_on_date(messages):
                    return True
            except ValueError:  # it takes no system turn, or no such roles
                continue
        return False

    @cached_property
    def _answer_frame(self) -> tuple[str, str]:
        """What the template puts before an answer, and the mark after it."""
        end = self.processor.tokenizer.eos_token or ""
        if self._template is None:
            return "", end
        prompt = self._turn([{"type": "text", "text": self._probe}])
        messages = [*_user_says(self._probe), _assistant_says(self._answer_probe)]
        try:
            whole = self._template.render(messages, add_generation_prompt=False)
        except ValueError:  # it takes no answers in parts, or none at all
            return "", end
        if not whole.startswith(prompt) or whole.count(self._answer_probe) != 1:
            return "", end
        before, _, after = whole.removeprefix(prompt).partition(self._answer_probe)
        return before, self._control_tokens.match(after.lstrip()) or end

    def _check_template(self, template: ChatTemplate, *, date_given: bool) -> None:
        """Finds out what the chat template does with texts and whether it knows the date.

        Raises:
            UnsupportedModelError: it writes something else each time.
        """
        first, second = (self.probe(picture=False) for _ in range(2))
        if first != second:
            raise UnsupportedModelError(
                f"the chat template writes something else each time: {quoted(first)} and "
                f"{quoted(second)}"
            )
        if self._depends_on_date and not date_given:
            logger.warning(
                "the chat template writes a date: always %s, so that prompts stay the same from "
                "day to day; date='YYYY-MM-DD' sets another",
                template.date,
            )
        if not self.takes_user_turns:  # what it does with texts, `Conversations` find out
            return
        self._treatment = template.treatment(_user_says, TEXT_OF_ALL_KINDS)
        if self._treatment == "rewrites":
            logger.warning(
                "the chat template does more to texts than put them in: each prompt is rendered by "
                "it, which takes longer"
            )

    def _find_placeholder(self) -> str:
        """What a picture before a text adds to a turn, without the white space around it.

        Raises:
            UnsupportedModelError: a user's turn cannot hold both, nor a query and a document a
                text and a picture.
        """
        text = {"type": "text", "text": self._probe}
        image_token = self.processor.image_token
        try:
            alone, both = self._turn([text]), self._turn([{"type": "image"}, text])
        except ValueError as error:
            if self._takes_pairs():
                return image_token
            raise UnsupportedModelError(reason(error)) from error
        # The text's own letters must not be taken for the beginning of what a picture adds
        around, around_both = alone.partition(self._probe)[::2], both.partition(self._probe)[::2]
        added = map(_added, around, around_both)
        placeholder = next(filter(None, (text.strip() for text in added)), "")
        if placeholder.count(image_token) == 1 and alone.count(self._probe) == 1:
            return placeholder
        if self._takes_pairs():
            return image_token
        raise UnsupportedModelError(
            f"the chat template renders a picture and the text {self._probe!r} as {both!r}, "
            f"and the text alone as {alone!r}: expected {image_token!r} for the picture, once, and "
            "the text word for word"
        )

    def _takes_pairs(self) -> bool:
        """Whether the chat template takes a query and a document, each by its role, and no turns.

        `takes_user_turns` is set by it.
        """
        if self._template is None:
            return False
        try:
            written = self._rendered_pair(self._probe, [IMAGE_PART])
        except ValueError:
            return False
        takes_pairs = written.count(self.processor.image_token) == 1 and self._probe in written
        self.takes_user_turns = not takes_pairs
        return takes_pairs

    def _find_end_of_thought(self, template: ChatTemplate) -> str:
        """What ends the thought that the generation prompt leaves open, or nothing.

        As the template itself would write it around an empty thought, where it can write one.
        """
        if template.kwargs.get("enable_thinking"):
            return ""
        prompt = template.render(_user_says(self._probe), add_generation_prompt=True)
        ends = _ends_of_open_thought(prompt.rpartition(self._probe)[2])
        if ends is None:
            return ""
        end, usual = ends
        written = self._written_end_of_thought(template, prompt)
        if written is None or end not in written:
            written = usual
        logger.warning(
            "the chat template opens a thought before the answer: every prompt goes on with %r, so "
            "that the answer comes at once",
            written,
        )
        return written

    def _written_end_of_thought(self, template: ChatTemplate, prompt: str) -> str | None:
        """What the template puts between a thought and an answer; None if it writes no thoughts."""
        thought = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), self._thought_probe)
        answer = _assistant_says(self._answer_probe)
        for content in (answer["content"], self._answer_probe):  # some take plain texts only
            messages = [*_user_says(self._probe), {**answer, **thought, "content": content}]
            try:
                whole = template.render(messages, add_generation_prompt=False)
            except ValueError:
                continue
            start, _, rest = whole.partition(self._thought_probe)
            between, answer_probe, _ = rest.partition(self._answer_probe)
            if start == prompt and answer_probe:
                return between
        return None


def _chat_template(
    processor: ProcessorMixin, kwargs: Mapping[str, Any], date: date | str | None
) -> ChatTemplate | None:
    text = template_text(processor)
    if text is not None:
        return ChatTemplate(text, processor.tokenizer.special_tokens_map, kwargs, date)
    if kwargs:
        raise UnsuitableSettingError(
            "chat_template_kwargs: this model has no chat template that reads any"
        )
    return None


def _user_says(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def _pair(query: str, document: list[dict[str, str]]) -> list[dict[str, Any]]:
    asked = {**_user_says(query)[0], "role": "query"}
    return [asked, {"role": "document", "content": document}]


def _assistant_says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _ends_of_open_thought(beginning: str) -> tuple[str, str] | None:
    """What ends the thought that an answer's beginning leaves open, bare and as it is usual.

    Usual is what Qwen3 writes for an empty thought: `<think>`, an empty line, `</think>`, another.
    """
    for opening, ending, breaks in _THOUGHTS:
        *_, opened = [None, *opening.finditer(beginning)]
        if opened is None:
            continue
        end, after = opened.expand(ending), beginning[opened.end() :]
        if end not in after:
            missing = breaks[len(after) - len(after.rstrip("\n")) :]
            return end, f"{missing}{end}{breaks}"
    return None


def _added(text: str, longer: str) -> str:
    """What `longer` has that `text` has not."""
    start = common_prefix_length(text, longer)
    end = common_prefix_length(text[start:][::-1], longer[start:][::-1])
    return longer[start : len(longer) - end]


def _fields_at_ends(pieces: Pieces) -> frozenset[str]:
    """The fields that a template begins and ends with, white space aside."""
    ends = []
    if not pieces[0][0].strip():
        ends.append(pieces[0][1])
    if len(pieces) > 1 and not pieces[-1][0].strip():
        ends.append(pieces[-2][1])
    return frozenset(name for name in ends if name is not None)
