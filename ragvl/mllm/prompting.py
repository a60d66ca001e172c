"""Prompts for one model, from text and pictures to a batch: all that needs no weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from sys import maxsize
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from ragvl.data.images import count_kept_pixels
from ragvl.messages import reason
from ragvl.mllm.answer_tokens import answer_token_ids, continuation
from ragvl.mllm.chat import Chat
from ragvl.mllm.inputs import (
    ImageInputs,
    Prompt,
    PromptTooLongError,
    UnusableImageError,
    common_prefix_length,
    join_images,
    pad_ids,
    probe_image,
)
from ragvl.mllm.loading import check_image_tokens
from ragvl.mllm.processors import without_saved_calls
from ragvl.model_files import UnsupportedModelError

_TYPE_IDS = "token_type_ids"  # how the names of what says a token's kind end
_NOT_OF_IMAGES = ("input_ids", "attention_mask", "labels", "text_replacement_offsets")


@dataclass(frozen=True)
class _Company:
    """How pictures that stand beside others differ from each by itself.

    Attributes:
        joins: see `join_images`.
        number_at: where an expansion says which of the prompt's pictures it is, counted from 0, as
            MiniCPM-V's do; None where it does not.
    """

    joins: Mapping[str, int] = field(default_factory=dict)
    number_at: int | None = None

    def numbered(self, expansion: str, index: int) -> str:
        """The expansion of a picture by itself as that of the prompt's picture `index`."""
        if self.number_at is None:
            return expansion
        return f"{expansion[: self.number_at]}{index}{expansion[self.number_at + 1 :]}"


class Prompting(Chat):
    """Makes one model's prompts and batches. Thread-safe; goes whole to worker processes.

    A prompt is made in three steps, of which the first two are independent of each other:
    `render` fills in a template, `encode_image` prepares a picture once for any number of
    prompts, `encode_prompt` tokenises the one with the other. The ids are those that the model's
    own processor gives.

    Args:
        processor: the model's; what was saved in it and would shape our calls is taken out.
        config: the model's.
        chat_template_kwargs: see `MLLM.from_pretrained`.
        date: see `MLLM.from_pretrained`.

    Attributes:
        tokenizer: the processor's.
        image_token_id: stands for one visual token in a prompt's ids.
        max_length: how many tokens a prompt may have: the model's positions. A tokenizer's limit
            counts only where the model names none: it is often what somebody's training was cut at.

    Raises:
        UnsupportedModelError: the processor is built so that it would give wrong prompts here.
        ValueError: see `Chat`.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        config: PreTrainedConfig,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        date: date | str | None = None,
    ) -> None:
        check_image_tokens(processor, config)
        without_saved_calls(processor)
        super().__init__(processor, chat_template_kwargs=chat_template_kwargs, date=date)
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self.image_token_id: int = config.image_token_id
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.max_length: int = positions or min(self.tokenizer.model_max_length, maxsize)
        self._image_token: str = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        self._image_token_runs = re.compile(f"(?:{re.escape(self._image_token)})+")
        self._image_options: dict[str, Any] = {}
        # For each kind of type ids that the model wants, the tokens of type 1; the rest are 0
        self._marked_tokens: dict[str, list[int]] = {}
        self._check_processor()

    def on_cpu(self) -> Prompting:
        """A copy that prepares pictures on the CPU, as worker processes must."""
        copied = copy.copy(self)
        copied._image_options = {}
        return copied

    def prepare_images_on(self, device: torch.device) -> None:
        """Has pictures resized and normalised on `device`, if that changes no bit.

        It does not for some of torchvision's resizing. PIL's knows no device.
        """
        noise = torch.randint(256, (517, 389, 3), generator=torch.Generator().manual_seed(0))
        pictures = [Image.fromarray(noise.byte().numpy()), probe_image()]
        on_cpu = [self.encode_image(picture).tensors for picture in pictures]
        self._image_options = {"device": str(device)}
        try:
            there = [self.encode_image(picture).tensors for picture in pictures]
        except (TypeError, ValueError):  # a processor that takes no device
            there = []
        if not there or not all(
            torch.equal(here[name], tensors[name].cpu())
            for here, tensors in zip(on_cpu, there, strict=True)
            for name in here
        ):
            self._image_options = {}

    def encode_image(self, image: Image.Image) -> ImageInputs:
        """Prepares one picture. By far the slowest step before the model.

        The result does not depend on the prompts it goes into. (LLaVA-OneVision's own chat
        processor cuts a picture into fewer tiles where it is one of several.)

        Raises:
            UnusableImageError: the image processor refuses it, as Qwen-VL's does a strip 200 times
                as long as wide.
            UnsupportedModelError: the processor fails for a reason that is not the picture's.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        try:
            encoded = self._process([image])
        except ValueError as error:
            self._check_image(image)
            raise UnsupportedModelError(
                f"{type(self.processor).__name__} fails on a picture that its image processor "
                f"takes: {reason(error)}"
            ) from error
        if not (offsets := encoded.get("text_replacement_offsets")):
            raise UnsupportedModelError(
                f"{type(self.processor).__name__} does not report which text stands for a picture; "
                "none does where layers of cross-attention see pictures"
            )
        tensors = _of_images(encoded)
        num_tokens = int((encoded["input_ids"] == self.image_token_id).sum())
        return ImageInputs(tensors, offsets[0][0]["replacement"], num_tokens)

    @cached_property
    def kept_pixels(self) -> int | None:
        """How many pixels of a large picture the processor keeps; None if about all."""
        return count_kept_pixels(lambda image: self.encode_image(image).tensors)

    def encode_prompt(self, prompt: str, images: Sequence[ImageInputs] = ()) -> Prompt:
        """Tokenises a rendered prompt with `images` in the place of its placeholders, in order.

        Raises:
            ValueError: the prompt has more or fewer placeholders than there are images, or several
                where the chat template numbers them.
        """
        if len(images) > 1 and self.numbers_pictures:
            raise ValueError(
                f"the chat template numbers pictures ({self.image_placeholder!r}), so a prompt of "
                "several is not known here: give one picture"
            )
        # Only PaliGemma's processor adds to the text here; the pictures are for counting
        blanks = [Image.new("RGB", (1, 1))] * len(images) or None
        _, laid_out, *_ = self.processor.prepare_inputs_layout(images=blanks, text=[prompt])
        text = self.expand(laid_out[0], [image.expansion for image in images])
        input_ids = self.tokenize([text])[0]
        expected = sum(image.num_tokens for image in images)
        if input_ids.count(self.image_token_id) != expected:
            raise ValueError(
                f"the prompt has {input_ids.count(self.image_token_id)} image tokens and its "
                f"images have {expected}: put text into prompts through render()'s fields"
            )
        return Prompt(input_ids, tuple(images))

    def probe_prompt(self, image: ImageInputs | None = None) -> Prompt:
        """A small prompt with a picture, `image` or a small one, to try a model with."""
        prompt = self.probe(picture=True)
        return self.encode_prompt(prompt, [image or self.encode_image(probe_image())])

    def encode_answer(self, prompt: str, answer: str) -> list[int]:
        """The tokens to come after a rendered prompt: the answer, and the mark that ends its turn.

        They are what a model that was trained on the checkpoint's chat template would write.
        """
        whole = self.answered(prompt, answer)
        prompt_ids, whole_ids = self.tokenize([prompt, whole])
        alone = self.tokenizer(whole[len(prompt) :], add_special_tokens=False).input_ids
        return continuation(prompt_ids, whole_ids, alone)

    def answer_token_ids(self, *words: str) -> list[list[int]]:
        """For each word, the id of the token with which it starts as an answer, in a list.

        Of the spellings that are different tokens, such as "Yes" and " Yes", it is the one that
        comes after the prompt by the chat template, and the one that training teaches. No two words
        share one.

        Raises:
            AnswerTokenError: a word has no token, or two words share one.

        Examples:
            >>> yes_token_ids, no_token_ids = mllm.prompting.answer_token_ids("Yes", "No")
        """
        between = self.before_answer
        return answer_token_ids(self.tokenizer, self.render(""), words, between)

    def expand(self, prompt: str, expansions: Sequence[str]) -> str:
        """A rendered prompt with its pictures' expansions in the place of the image tokens.

        Raises:
            ValueError: the prompt has more or fewer places for pictures.
        """
        parts = prompt.split(self.processor.image_token)
        if len(parts) != len(expansions) + 1:
            raise ValueError(
                f"the prompt has {len(parts) - 1} places for images and {len(expansions)} came "
                "with it"
            )
        if len(expansions) > 1:
            expansions = [self._company.numbered(x, i) for i, x in enumerate(expansions)]
        return "".join(
            piece for pair in zip(parts, [*expansions, ""], strict=True) for piece in pair
        )

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids that the tokenizer gives for expanded prompts, sooner.

        It would take milliseconds over thousands of image tokens. As each is a token of its own
        whatever stands beside it, the tokenizer gets one of each run, and the rest follow here.
        """
        runs: list[int] = []

        def shorten(run: re.Match[str]) -> str:
            runs.append(len(run[0]) // len(self._image_token))
            return self._image_token

        by_start: dict[bool, list[int]] = {}
        short = []
        lengths = []
        for i, text in enumerate(texts):
            runs = []
            short.append(self._image_token_runs.sub(shorten, text))
            lengths.append(iter(runs))
            by_start.setdefault(self._lacks_bos(text), []).append(i)
        full: list[list[int]] = [[] for _ in texts]
        for add_bos, indices in by_start.items():
            encoded = self.tokenizer(
                [short[i] for i in indices], add_special_tokens=add_bos, verbose=False
            ).input_ids
            for i, ids in zip(indices, encoded, strict=True):
                for token in ids:
                    count = next(lengths[i], 1) if token == self.image_token_id else 1
                    full[i] += [token] * count
        return full

    def collate(
        self,
        prompts: Sequence[Prompt],
        *,
        padding_side: Literal["left", "right"] = "right",
        length: int = 0,
    ) -> dict[str, Tensor]:
        """A batch: the keyword arguments of the model's forward, where pictures were prepared.

        `input_ids` and `attention_mask` (B, T) int64, token types where the model wants them, and
        the tensors of all the pictures, in order. T is the longest prompt's, or `length` if that is
        more.

        Raises:
            ValueError: no prompts.
            PromptTooLongError: a prompt does not fit into the model's context.
        """
        if not prompts:
            raise ValueError("a batch needs at least one prompt")
        for i, prompt in enumerate(prompts):
            if len(prompt) > self.max_length:
                raise PromptTooLongError.of(f"prompt {i}", i, len(prompt), self.max_length)
        batch = pad_ids(prompts, self.tokenizer.pad_token_id or 0, padding_side, length)
        for name, marked in self._marked_tokens.items():
            is_marked = torch.isin(batch["input_ids"], torch.tensor(marked, dtype=torch.int64))
            batch[name] = is_marked * batch["attention_mask"]
        return batch | self.joined([image for prompt in prompts for image in prompt.images])

    def joined(self, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
        """The tensors of several pictures, as a model reads them together."""
        return join_images(images, self._company.joins if len(images) > 1 else {})

    def _process(self, images: Sequence[Image.Image]) -> Any:
        """What the processor makes of pictures and their placeholders alone."""
        return self.processor(
            images=list(images),
            text=[self.image_placeholder * len(images)],
            return_text_replacement_offsets=True,
            return_tensors="pt",
            verbose=False,  # more tokens than the tokenizer's limit is no matter here
            padding=False,  # which would pad what other threads tokenise meanwhile
            **self._image_options,
        )

    @cached_property
    def _company(self) -> _Company:
        """How pictures stand beside each other, seen by having the processor prepare three."""
        image = probe_image()
        images = [image, image.resize((48, 96)), image]
        try:
            encoded = self._process(images)
        except ValueError:  # a processor that takes one picture a prompt
            return _Company()
        expansions = [part["replacement"] for part in encoded["text_replacement_offsets"][0]]
        alone = [_of_images(self._process([image])) for image in images]
        return _Company(_joins(_of_images(encoded), alone), _place_of_number(*expansions[::2]))

    def _check_image(self, image: Image.Image) -> None:
        """Raises an `UnusableImageError` if the image processor alone refuses a picture."""
        try:
            self.processor.image_processor(images=[image], return_tensors="pt")
        except ValueError as error:
            raise UnusableImageError(reason(error)) from error

    def _lacks_bos(self, text: str) -> bool:
        """Whether the tokenizer is to add its special tokens; some templates write the first.

        Hugging Face's apply_chat_template decides it alike.
        """
        bos = self.tokenizer.bos_token
        return bos is None or not text.startswith(bos)

    def _check_processor(self) -> None:
        """Finds the token types the model wants, and that our ids are the processor's."""
        text = self.probe(picture=True)
        image = probe_image()
        theirs: dict[str, Any] = self.processor(
            images=[image],
            text=[text],
            add_special_tokens=self._lacks_bos(text),
            return_tensors="pt",
        )
        ids = theirs["input_ids"][0].tolist()
        inputs = self.encode_image(image)
        if not inputs.num_tokens:
            raise UnsupportedModelError(
                f"{type(self.processor).__name__} makes no tokens of a picture"
            )
        ours = self.encode_prompt(text, [inputs]).input_ids
        if ours != ids:
            raise UnsupportedModelError(
                f"{type(self.processor).__name__} puts pictures into a prompt in a form of its "
                f"own: it gives {len(ids)} tokens where {len(ours)} were expected"
            )
        for name in theirs:
            if name.endswith(_TYPE_IDS):
                pairs = zip(ids, theirs[name][0].tolist(), strict=True)
                self._marked_tokens[name] = sorted({token for token, kind in pairs if kind})


def _of_images(encoded: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: x
        for name, x in encoded.items()
        if name not in _NOT_OF_IMAGES and not name.endswith(_TYPE_IDS)
    }


def _joins(together: Mapping[str, Tensor], alone: Sequence[Mapping[str, Tensor]]) -> dict[str, int]:
    """The tensors that are concatenated along another dimension than the first, and that."""
    joins = {}
    for name, x in together.items():
        parts = [own[name] for own in alone]
        # A first dimension that does not grow with the number of pictures counts something else
        if all(len(x) == len(part) for part in parts):
            fitting = (dim for dim in range(1, x.ndim) if _is_joined(x, parts, dim))
            joins[name] = next(fitting, 0)
    return joins


def _is_joined(x: Tensor, parts: Sequence[Tensor], dim: int) -> bool:
    sizes = [(*part.shape[:dim], *part.shape[dim + 1 :]) for part in parts]
    return len(set(sizes)) == 1 and torch.equal(torch.cat(list(parts), dim), x)


def _place_of_number(first: str, third: str) -> int | None:
    """Where the same picture's expansion says that it is the first, or the third, of a prompt."""
    at = common_prefix_length(first, third)
    numbered = first[at : at + 1] == "0" and third == f"{first[:at]}2{first[at + 1 :]}"
    return at if numbered else None
