"""A checkpoint's chat template, and text from outside made safe to put into it."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from transformers.processing_utils import ProcessorMixin

from ragvl.mllm.inputs import common_prefix_length
from ragvl.mllm.loading import UnsupportedModelError

IMAGE = "<image>"  # in ragvl's own templates, whatever a model's placeholder is
_PROBE = "Probe"
_ANSWER_PROBE = "Reply"


class Chat:
    """Turns a template and its fields into a prompt for one model.

    Attributes:
        image_placeholder: what stands for one picture in this model's prompts, with the marks
            that its chat template puts around it; a picture's expansion later takes the place of
            the processor's image token within it.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor = processor
        # Some checkpoints keep the template with the tokenizer; None is the processor's own
        tokenizer = processor.tokenizer
        self._has_turns = bool(processor.chat_template or tokenizer.chat_template)
        needs_tokenizers = self._has_turns and not processor.chat_template
        self._template = tokenizer.get_chat_template() if needs_tokenizers else None
        self.image_placeholder = self._find_placeholder()
        self._control_token = self._find_control_tokens()

    def render(self, template: str, /, *, system_turn: str | None = None, **fields: str) -> str:
        """One user turn holding `template`, filled in, up to where the answer starts.

        A system turn comes before it if one is given; else whatever the checkpoint's chat template
        puts there. `template` is trusted: each `<image>` in it becomes a picture, each `{name}` the
        field of that name. A field is data, and goes through `escape`.

        Raises:
            ValueError: the template names a field that was not given.
            TypeError: a field is not a string.
        """
        for name, value in fields.items():
            if not isinstance(value, str):
                raise TypeError(f"field {name!r} must be a string, got {type(value).__name__}")
        safe = {name: self.escape(value) for name, value in fields.items()}
        # Braces in a placeholder would otherwise be taken for fields
        placeholder = self.image_placeholder.replace("{", "{{").replace("}", "}}")
        try:
            text = template.replace(IMAGE, placeholder).format(**safe)
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"the template needs a field {error}, and got {sorted(fields)}: {template!r}"
            ) from None
        return self._turn([{"type": "text", "text": text}], system_turn)

    def escape(self, text: str) -> str:
        """`text` with a space after the first character of every control token spelled in it.

        So a caption `<image>` stays a caption (`< image>`), and `<|im_end|>` does not end a turn.
        Control tokens are those the tokenizer calls special, those that stand for pictures,
        videos or sound, and whatever added tokens the chat template itself writes. Words that a
        template uses for its roles, such as LLaVA's `ASSISTANT:`, are ordinary text to the model
        and stay.

        Raises:
            ValueError: the text holds half a character (a lone surrogate); no tokenizer takes it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"half a character (a lone surrogate) at position {error.start} of {text[:80]!a}: "
                "clean the text with text.encode('utf-8', 'replace').decode()"
            ) from None
        return self._control_token.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def answered(self, prompt: str, answer: str) -> str:
        """A rendered prompt followed by the assistant's answer and the mark that ends its turn.

        What stands between them and after them is what the chat template writes; where it does not
        simply go on after a prompt, nothing and the tokenizer's own end.
        """
        before, end = self._answer_frame
        return f"{prompt}{before}{self.escape(answer)}{end}"

    @cached_property
    def _answer_frame(self) -> tuple[str, str]:
        """What the template puts before an answer, and the mark after it."""
        tokenizer = self._processor.tokenizer
        end = tokenizer.eos_token or ""
        if not self._has_turns:
            return "", end
        text = {"type": "text", "text": _PROBE}
        prompt = self._turn([text])
        messages = [
            {"role": "user", "content": [text]},
            {"role": "assistant", "content": [{"type": "text", "text": _ANSWER_PROBE}]},
        ]
        whole = self._apply_template(messages, add_generation_prompt=False)
        if not whole.startswith(prompt) or whole.count(_ANSWER_PROBE) != 1:
            return "", end
        before, _, after = whole.removeprefix(prompt).partition(_ANSWER_PROBE)
        written = self._control_token.match(after.lstrip())
        return before, written[0] if written else end

    def _turn(self, content: list[dict[str, str]], system_turn: str | None = None) -> str:
        if not self._has_turns:  # a model without turns, such as PaliGemma, reads bare text
            if system_turn is not None:
                raise ValueError("the template has a system turn and this model knows no turns")
            return "".join(part.get("text", self._processor.image_token) for part in content)
        messages = [{"role": "user", "content": content}]
        if system_turn is not None:
            text = {"type": "text", "text": system_turn}
            messages.insert(0, {"role": "system", "content": [text]})
        return self._apply_template(messages, add_generation_prompt=True)

    def _apply_template(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool
    ) -> str:
        return self._processor.apply_chat_template(
            messages,
            chat_template=self._template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )

    def _find_placeholder(self) -> str:
        """What a picture before a text adds to a turn, without the white space around it."""
        text = {"type": "text", "text": _PROBE}
        alone, both = self._turn([text]), self._turn([{"type": "image"}, text])
        start = common_prefix_length(alone, both)
        end = common_prefix_length(alone[start:][::-1], both[start:][::-1])
        placeholder = both[start : len(both) - end].strip()
        if placeholder.count(self._processor.image_token) != 1 or alone.count(_PROBE) != 1:
            raise UnsupportedModelError(
                f"the chat template renders a picture and the text {_PROBE!r} as {both!r}, and the "
                f"text alone as {alone!r}: expected {self._processor.image_token!r} for the "
                "picture, once, and the text word for word"
            )
        return placeholder

    def _find_control_tokens(self) -> re.Pattern[str]:
        written = self._turn([{"type": "image"}, {"type": "text", "text": _PROBE}])
        added: list[Any] = list(self._processor.tokenizer.added_tokens_decoder.values())
        tokens = {token.content for token in added if token.special or token.content in written}
        tokens.update(self._processor.all_special_multimodal_tokens)
        # Some vocabularies hold runs of white space as added tokens: they control nothing
        spelled = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, spelled)) or r"(?!)")
