"""One view of any Hugging Face image-text-to-text model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from sys import maxsize
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import SizeDict
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_flash_attn_2_available

from ragvl.checkpoints import find_checkpoint
from ragvl.data.images import count_kept_pixels
from ragvl.identity import config_content, library_versions, name_of, tokenizer_content
from ragvl.messages import reason, shown
from ragvl.mllm.answers import answer_token_ids, continuation, named_token_ids
from ragvl.mllm.chat import IMAGE, Chat
from ragvl.mllm.chat_template import resolve_date
from ragvl.mllm.decoder import Decoder, KvLayout, Prefilled, WriteKv
from ragvl.mllm.head import FinalNorm, Head, rounding, same
from ragvl.mllm.inputs import (
    ImageInputs,
    Prompt,
    PromptTooLongError,
    UnusableImageError,
    join_images,
    pad_ids,
)
from ragvl.mllm.loading import (
    UnsupportedModelError,
    check_attention,
    check_image_tokens,
    load_model,
    load_processor,
    naming,
)
from ragvl.mllm.processors import without_saved_calls
from ragvl.mllm.sharing import HOW_TO_SHARE, NoWeights, Source
from ragvl.ops import PrefixBatch
from ragvl.runtime import float32_precision, resolve_device, resolve_dtype
from ragvl.torch_context import default_torch_context
from ragvl.weights import Watch

_TYPE_IDS = ("mm_token_type_ids", "token_type_ids")
_TEXT_INPUTS = ("input_ids", "attention_mask", *_TYPE_IDS)
_LENGTH_STEP = 32  # of the lengths that prefixes are filled up to
# Attributes that `without_weights` leaves out
_HOLD_WEIGHTS = ("model", "_head", "_decoder", "_watch", "_form", "_fingerprint")
_NOT_OF_IMAGES = (*_TEXT_INPUTS, "labels", "text_replacement_offsets")


class MLLM:
    """A multimodal LLM taken apart into what reranking and generation need.

    A prompt is made in three steps, of which the first two are independent of each other:
    `render` fills in a template, `encode_image` prepares a picture once for any number of
    prompts, `encode_prompt` tokenises the one with the other. The ids are those that the model's
    own processor gives.

    Nothing here depends on the model's name: what differs between architectures is read from the
    processor and the modules, or found out with a small probe while loading.

    Attributes:
        model: the Hugging Face model, in eval mode.
        processor: its processor; `tokenizer` is the processor's.
        architecture: the `model_type` of its configuration, for display.
        image_token_id: stands for one visual token in a prompt's ids.

    Raises:
        UnsupportedModelError: the model is built in a way that would give wrong scores here.
    """

    @default_torch_context
    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        date: date | str | None = None,
    ) -> None:
        check_image_tokens(processor, model.config)
        without_saved_calls(processor)
        chat = Chat(processor, chat_template_kwargs=chat_template_kwargs, date=date)
        self._set_up(model, processor, chat)

    def _set_up(self, model: PreTrainedModel, processor: ProcessorMixin, chat: Chat) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self.architecture: str = model.config.model_type
        self._chat = chat
        self._head = Head(model)
        self._decoder = Decoder(model, self._head.norm_module)
        self.image_token_id: int = model.config.image_token_id
        self._image_token: str = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        self._image_token_runs = re.compile(f"(?:{re.escape(self._image_token)})+")
        # For each kind of type ids that the model wants, the tokens of type 1; the rest are 0
        self._marked_tokens: dict[str, list[int]] = {}
        self._image_options: dict[str, Any] = {}
        self._source: Source | None = None
        self._check_processor()
        self._check_logits()
        if self.device.type == "cuda":
            self._try_images_on_device()
        self._watch = Watch(model)
        self._form = self._form_now()
        self._fingerprint: tuple[tuple[str, ...], str] | None = None

    @classmethod
    @default_torch_context
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        processor_settings: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        date: date | str | None = None,
    ) -> MLLM:
        """Loads a folder or a hub id.

        Whatever can be wrong with the arguments or the files is looked at before the weights are
        read.

        Args:
            path: a folder in Hugging Face format, or a hub id such as
                "llava-hf/llava-onevision-qwen2-0.5b-ov-hf". A folder of adapters, such as a
                checkpoint that training left, is merged into the model that it names.
            device: "auto" is CUDA where it is present, else the CPU.
            dtype: "auto" is bfloat16 on a GPU, float32 on a CPU.
            revision: branch, tag or commit of a hub repository.
            trust_remote_code: lets Python code that comes with the checkpoint run.
            attn_implementation: passed to Hugging Face: "sdpa", "eager", "flash_attention_2". By
                default the last where flash-attn is installed and the model can use it, else
                "sdpa".
            processor_settings: what to change in the checkpoint's processor, such as
                `{"size": {"shortest_edge": 4096, "longest_edge": 1 << 20}}`, a Qwen-VL's fewest and
                most pixels; `min_pixels` and `max_pixels` are the same. Each is in force, whatever
                the checkpoint has saved, or refused.
            chat_template_kwargs: values for variables of the chat template, such as
                `{"enable_thinking": True}`. Where the template reads `enable_thinking` it is False
                by default, and a thought that it still opens is ended: an answer comes at once.
            date: what the chat template takes for today, a date or text such as "2026-11-28". By
                default always 2024-07-26 (`DEFAULT_DATE`): prompts, and what is cached of them,
                must not change from day to day.

        Raises:
            FileNotFoundError: the folder, or safetensors weights in it, are not there, or the hub
                has no such model.
            OSError: the hub does not let this user in, or a file cannot be read.
            UnsupportedModelError: a file is damaged, or it is no image-text-to-text model,
                incomplete, or built in a way that ragvl does not understand.
            ValueError: an unknown device, dtype or attention, or a processor setting that is
                unknown or would have no effect; `date` is none, or the chat template does not read
                what `chat_template_kwargs` name.
        """
        on = resolve_device(device)
        resolved = resolve_dtype(dtype, on)
        resolve_date(date)  # a slip in it shows before the model is loaded
        attention = attn_implementation or _best_attention(on, resolved)
        check_attention(attention)
        found = find_checkpoint(path, revision=revision, trust_remote_code=trust_remote_code)
        processor, config = load_processor(
            found, processor_settings or {}, trust_remote_code=trust_remote_code
        )
        with naming(found.processor_folder, "processor"):
            check_image_tokens(processor, config)
            chat = Chat(processor, chat_template_kwargs=chat_template_kwargs, date=date)
        model = load_model(
            found,
            config,
            dtype=resolved,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
        )
        mllm = object.__new__(cls)
        with naming(found.folder, "model or processor"):
            mllm._set_up(model.to(on), processor, chat)
        mllm._source = Source.of(
            path,
            {
                "revision": revision,
                "trust_remote_code": trust_remote_code,
                "attn_implementation": attn_implementation,
                "processor_settings": dict(processor_settings or {}),
                "chat_template_kwargs": dict(chat_template_kwargs or {}),
                "date": date,
            },
        )
        return mllm

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by the folder or hub id that it was loaded from, which is read again.

        Raises:
            TypeError: it was not loaded with `from_pretrained`.
        """
        if isinstance(self.model, NoWeights):
            return _with_state, (vars(self),)
        if self._source is None:
            raise TypeError(HOW_TO_SHARE)
        options = {**self._source.options, "device": str(self.device), "dtype": self.dtype}
        return _load_again, (self._source.path, options, self.fingerprint)

    def without_weights(self) -> MLLM:
        """A copy that makes prompts and batches, on the CPU, and holds no weights.

        It goes to worker processes, wherever the model came from. Whatever needs the weights fails.
        """
        return _with_state(
            {
                **{name: x for name, x in vars(self).items() if name not in _HOLD_WEIGHTS},
                "model": NoWeights(self.model.config, self.dtype),
                "_image_options": {},
            }
        )

    # --- what it is -----------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        return self.model.dtype

    @property
    def max_length(self) -> int:
        """How many tokens a prompt may have: the model's positions.

        A tokenizer's limit counts only where the model names none: it is often what somebody's
        training was cut at.
        """
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return positions or min(self.tokenizer.model_max_length, maxsize)

    @property
    def fingerprint(self) -> str:
        """Names what the model is: every byte of its weights, and every setting.

        These are all parameters and buffers, the adapters in use, the dtype, the configuration, the
        processor, the tokenizer and the chat template. The weights are read once, when it is first
        asked for, and again when something tells that they have changed; what tells is looked at
        each time (see `Watch`), and what was taken from the model is taken from it anew then.

        Raises:
            UnnamedWeightsError: a weight's values cannot be read; the message names it.
            UnsupportedModelError: the model was changed into one that would give wrong scores here.
        """
        self._look_again()
        settings = self._settings()
        if self._fingerprint is None or self._fingerprint[0] != settings:
            name = name_of(
                "multimodal LLM",
                self._watch.name,
                str(self.dtype),
                config_content(self.model.config),
                self.processor.to_json_string(),
                tokenizer_content(self.tokenizer),
                self.chat_settings,
            )
            self._fingerprint = settings, name
        return self._fingerprint[1]

    def release_weights(self) -> None:
        """Holds on to no weight by itself, so that moving the model frees where they were.

        They are read again when `fingerprint` is asked for the next time.
        """
        self._watch.release()

    @property
    def weights_name(self) -> str:
        """Names the weights in their dtype with their configuration, whatever library loads them.

        Unlike `fingerprint` it does not depend on processor and tokenizer, nor on what a library
        computes when it loads a model, such as rotary frequencies.
        """
        self._look_again()
        return name_of(
            "weights of a multimodal LLM",
            self._watch.saved_name,
            str(self.dtype),
            config_content(self.model.config),
        )

    @property
    def environment(self) -> str:
        """Names what the model is computed with, as far as it changes bits.

        This is the attention implementation of each of its parts, the kind of device, the precision
        of float32 products, the versions of the libraries, and whether dropout is on.
        """
        attention = [config._attn_implementation for config in _configs(self.model.config)]
        return name_of(
            "environment",
            attention,
            self.device.type,
            float32_precision(self.device),
            library_versions(),
            self.model.training,
        )

    @cached_property
    @default_torch_context
    def kv_layout(self) -> KvLayout:
        """What the decoder keeps of each token of a prefix.

        Raises:
            UnsupportedModelError: its layers differ in that.
        """
        shapes: list[tuple[int, int, int]] = []

        def note(layer: int, keys: Tensor, values: Tensor) -> None:
            _, heads, _, dim = keys.shape
            if layer != len(shapes) or keys.shape != values.shape:
                raise UnsupportedModelError("its layers' keys and values differ in shape or order")
            shapes.append((layer, heads, dim))

        self.prefill([self.encode_prompt(self.render("Yes or No?"))], note)
        (_, heads, dim), *_ = shapes
        if len({shape[1:] for shape in shapes}) > 1:
            raise UnsupportedModelError("its layers' keys differ in shape")
        return KvLayout(len(shapes), heads, dim, self.dtype)

    # --- prompts --------------------------------------------------------------------------------

    @property
    def chat_settings(self) -> str:
        """All that shapes a prompt besides its template and fields; see `Chat.settings`."""
        return self._chat.settings

    @property
    def image_placeholder(self) -> str:
        """What stands for one picture in a rendered prompt."""
        return self._chat.image_placeholder

    def render(self, template: str, /, *, system_turn: str | None = None, **fields: str) -> str:
        r"""The prompt that `template` makes with `fields`, up to where the answer starts.

        Args:
            template: a user's turn, with `<image>` where pictures go and `{name}` for a field.
            system_turn: the turn before it; None leaves it to the checkpoint's chat template.
            fields: text from outside. It cannot become a picture or a control token: see
                `escape`.

        Example:
            >>> mllm.render("<image>\nImage Caption: {caption}", caption="A <image> of a mill")
            'USER: <image>\nImage Caption: A < image> of a mill ASSISTANT:'
        """
        return self._chat.render(template, system_turn=system_turn, **fields)

    def frame(
        self, template: str, name: str, /, *, system_turn: str | None = None, **fields: str
    ) -> tuple[str, str]:
        """What stands before and after field `name` in the prompts that `template` makes.

        It is the same whatever the field holds; `fields` are the others. See `render`.
        """
        return self._chat.frame(template, name, system_turn=system_turn, **fields)

    def escape(self, text: str) -> str:
        """`text` with the control tokens spelled in it broken up by a space each."""
        return self._chat.escape(text)

    def cut(self, text: str, max_tokens: int) -> str:
        """`text`, or as much of its beginning as has at most so many tokens by itself.

        It ends where a token ends. Counted as it goes into a prompt, with control tokens broken up.
        """

        def fits(part: str) -> bool:
            ids = self.tokenizer(self.escape(part), add_special_tokens=False, verbose=False)
            return len(ids.input_ids) <= max_tokens

        if fits(text):
            return text
        offsets = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        ).offset_mapping
        ends = [end for _, end in offsets[:max_tokens]]
        return next((text[:end] for end in reversed(ends) if fits(text[:end])), "")

    def encode_image(self, image: Image.Image) -> ImageInputs:
        """Prepares one picture. Thread-safe, and by far the slowest step before the model.

        The result does not depend on the prompts it goes into. (LLaVA-OneVision's own chat
        processor cuts a picture into fewer tiles where it is one of several.)

        Raises:
            UnusableImageError: the image processor refuses it, as Qwen-VL's does a strip 200 times
                as long as wide.
            UnsupportedModelError: the processor fails for a reason that is not the picture's.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        try:
            encoded = self.processor(
                images=[image],
                text=[self.processor.image_token],
                return_text_replacement_offsets=True,
                return_tensors="pt",
                verbose=False,  # more tokens than the tokenizer's limit is no matter here
                **self._image_options,
            )
        except ValueError as error:
            self._check_image(image)
            raise UnsupportedModelError(
                f"{type(self.processor).__name__} fails on a picture that its image processor "
                f"takes: {reason(error)}"
            ) from error
        if not (offsets := encoded.get("text_replacement_offsets")):
            raise UnsupportedModelError(
                f"{type(self.processor).__name__} does not tell which text stands for a picture"
            )
        tensors = {name: x for name, x in encoded.items() if name not in _NOT_OF_IMAGES}
        num_tokens = int((encoded["input_ids"] == self.image_token_id).sum())
        return ImageInputs(tensors, offsets[0][0]["replacement"], num_tokens)

    @cached_property
    def kept_pixels(self) -> int | None:
        """How many pixels of a large picture the processor keeps; None if about all."""
        return count_kept_pixels(lambda image: self.encode_image(image).tensors)

    def encode_prompt(self, prompt: str, images: Sequence[ImageInputs] = ()) -> Prompt:
        """Tokenises a rendered prompt with `images` in the place of its placeholders, in order.

        Raises:
            ValueError: the prompt has more or fewer placeholders than there are images.
        """
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

    def encode_answer(self, prompt: str, answer: str) -> list[int]:
        """The tokens to come after a rendered prompt: the answer, and the mark that ends its turn.

        They are what a model that was trained on the checkpoint's chat template would write.
        """
        whole = self._chat.answered(prompt, answer)
        asked, answered = self.tokenize([prompt, whole])
        alone = self.tokenizer(whole[len(prompt) :], add_special_tokens=False).input_ids
        return continuation(asked, answered, alone)

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
            found = self.tokenizer(
                [short[i] for i in indices], add_special_tokens=add_bos, verbose=False
            ).input_ids
            for i, ids in zip(indices, found, strict=True):
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
        device: torch.device | None = None,
    ) -> dict[str, Tensor]:
        """A batch on `device`, by default the model's: the keyword arguments of its forward.

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
                name = f"prompt {i}"
                raise PromptTooLongError.of(name, i, len(prompt), self.max_length)
        batch = pad_ids(prompts, self.tokenizer.pad_token_id or 0, padding_side, length)
        for name, marked in self._marked_tokens.items():
            is_marked = torch.isin(batch["input_ids"], torch.tensor(marked, dtype=torch.int64))
            batch[name] = is_marked * batch["attention_mask"]
        batch |= join_images([image for prompt in prompts for image in prompt.images])
        return {name: self._placed(tensor, device) for name, tensor in batch.items()}

    # --- the model ------------------------------------------------------------------------------

    def hidden_states(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, D): what the last decoder layer gives, before the final norm.

        The norm and the head are not computed. Thread-safe; records gradients if the caller does.
        """
        return self._decoder.hidden_states(batch)

    @torch.inference_mode()
    def prefill(
        self, prefixes: Sequence[Prompt], write: WriteKv, features: Any = None
    ) -> list[Prefilled]:
        """Computes the keys and values of B prefixes; their output is not computed.

        Args:
            prefixes: the beginnings of prompts, their pictures included.
            write: takes each layer's number, keys and values, (B, G, T, D) each, in turn; T is
                `padded_length` of the longest, and what lies past a prefix's own length is of no
                use.
            features: of an earlier `Prefilled` of one prefix with the same pictures, which need not
                be looked at again then: of the tensors in its images only those of whole numbers
                are read.
        """
        lengths = [len(prefix) for prefix in prefixes]
        batch = self.collate(prefixes, length=self.padded_length(max(lengths)))
        # No token sees one after it, so that what fills up need not be masked, which costs more
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        return self._decoder.prefill(batch, lengths, write, features)

    def padded_length(self, length: int) -> int:
        """How many tokens a prefix of `length` tokens is filled up to.

        Few lengths are left then, and prefixes of one are computed in batches of one shape.
        """
        return max(length, min(-(-length // _LENGTH_STEP) * _LENGTH_STEP, self.max_length))

    @torch.inference_mode()
    def extend(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        last_rows: Tensor,
        prefixes: Sequence[PrefixBatch],
    ) -> Tensor:
        """(B, D): what `hidden_states` has at the last tokens of B prompts, given their prefixes.

        The suffixes are packed into one list of R tokens. The last layer computes queries, output
        projection and MLP for the B last tokens only.

        Args:
            input_ids: (R,) int64 the suffixes' tokens; pictures belong into prefixes.
            position_ids: (R,) int64 their positions: from `Prefilled.next_position` on.
            last_rows: (B,) int64 the row of each suffix's last token.
            prefixes: for each layer what `prefix_attention` takes.
        """
        return self._decoder.extend(input_ids, position_ids, last_rows, prefixes)

    def image_features(self, images: Sequence[ImageInputs]) -> list[Tensor]:
        """For each picture, its visual tokens (num_tokens, D) as they enter the decoder."""
        tensors = {name: self._placed(x) for name, x in join_images(images).items()}
        features = self._features(tensors) if images else torch.empty(0)
        return list(features.split([image.num_tokens for image in images]))

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, D): the token embeddings, with visual tokens in the place of image tokens."""
        is_image = batch["input_ids"] == self.image_token_id
        # In some models the image token lies past the end of the embedding table
        embeds = self.model.get_input_embeddings()(batch["input_ids"].masked_fill(is_image, 0))
        tensors = {name: x for name, x in batch.items() if name not in _TEXT_INPUTS}
        if not tensors:
            return embeds
        features = self._features(tensors).to(embeds)
        return embeds.masked_scatter(is_image[..., None], features)

    @property
    def final_norm(self) -> FinalNorm:
        """The norm between `hidden_states` and the head, as plain numbers."""
        return self._head.final_norm

    @property
    def softcap(self) -> float | None:
        """The bound that the model squeezes its logits into with tanh, or None."""
        return self._head.softcap

    @property
    def logit_scale(self) -> float:
        """What the model multiplies its logits by, before the softcap; 1 in most."""
        return self._head.scale

    def head_rows(self, token_ids: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Rows (R, D) and biases (R,) or None of the language-model head, float32.

        The logits of `token_ids` are `final_norm(hidden) @ rows.T + bias`, then bounded by
        `softcap` where the model has one: `softcap * tanh(logits / softcap)`.
        """
        return self._head.rows(token_ids)

    def answer_token_ids(self, *words: str) -> list[list[int]]:
        """For each word, the id of the token with which it starts as an answer, in a list.

        Of the spellings that a tokenizer tells apart, such as "Yes" and " Yes", it is the one that
        comes after the prompt by the chat template, and the one that training teaches. No two words
        share one.

        Raises:
            AnswerTokenError: a word has no token, or two words share one.

        Example:
            >>> yes_token_ids, no_token_ids = mllm.answer_token_ids("Yes", "No")
        """
        between = self._chat.before_answer
        return answer_token_ids(self.tokenizer, self.render(""), words, between)

    def named_token_ids(self, *tokens: str) -> list[list[int]] | None:
        """The ids of tokens named as the vocabulary spells them, each in a list.

        None where it lacks one of them.
        """
        return named_token_ids(self.tokenizer, tokens)

    @torch.inference_mode()
    def next_token_share(self, prompt: Prompt, token_ids: Sequence[int]) -> float:
        """How much of the probability of the token after `prompt` the tokens `token_ids` hold."""
        hidden = self.hidden_states(self.collate([prompt]))[0, -1]
        return self._head.share(hidden, token_ids)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[str]:
        """The greedy answers to a batch of prompts, without white space around them.

        Not to be run beside another call on the same model: Qwen-VL keeps the positions of the
        batch it is generating for in the module.
        """
        batch = self.collate(prompts, padding_side="left")
        saved = self.model.generation_config
        # generate() fills in from the model's own whatever a call leaves open
        self.model.generation_config = GenerationConfig(
            bos_token_id=saved.bos_token_id,
            eos_token_id=saved.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        try:
            output = self.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        finally:
            self.model.generation_config = saved
        new = output[:, batch["input_ids"].shape[1] :]
        answers = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    # --- inside ---------------------------------------------------------------------------------

    def _check_image(self, image: Image.Image) -> None:
        """Raises an `UnusableImageError` if the image processor alone refuses a picture."""
        try:
            self.processor.image_processor(images=[image], return_tensors="pt")
        except ValueError as error:
            raise UnusableImageError(reason(error)) from error

    @default_torch_context
    def _look_again(self) -> None:
        """Notices that the model was changed, and takes it apart again if its form was.

        Modules may have been wrapped or replaced then, as adapters do.
        """
        if self._watch.model is not self.model:
            self._watch = Watch(self.model)
            self._fingerprint = None
        if self._watch.look():
            self._fingerprint = None
        if self._form == self._form_now():
            return
        self._head = Head(self.model)
        self._decoder = Decoder(self.model, self._head.norm_module)
        self.__dict__.pop("kv_layout", None)
        self._check_logits()
        self._form = self._form_now()

    def _form_now(self) -> tuple[object, ...]:
        """What is equal while the model is made of the same modules with the same settings."""
        return self._watch.form, *map(_plain_fields, _configs(self.model.config))

    def _settings(self) -> tuple[str, ...]:
        """What is equal while nobody changes a setting; costs microseconds."""
        image_processor = getattr(self.processor, "image_processor", None)
        parts = (self.processor, image_processor, *_configs(self.model.config))
        return tuple(map(_plain_fields, filter(None, parts)))

    def _lacks_bos(self, text: str) -> bool:
        """Whether the tokenizer is to add its special tokens; some templates write the first.

        Hugging Face's apply_chat_template decides it in the same way.
        """
        bos = self.tokenizer.bos_token
        return bos is None or not text.startswith(bos)

    def _placed(self, tensor: Tensor, device: torch.device | None = None) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device or self.device, dtype, non_blocking=True)

    def _features(self, tensors: dict[str, Tensor]) -> Tensor:
        """(visual tokens, D) of all the pictures in `tensors`."""
        output = self.model.base_model.get_image_features(**tensors, return_dict=True)
        features = output.pooler_output
        parts = [features] if isinstance(features, Tensor) else features
        return torch.cat([part.flatten(0, -2) for part in parts])

    def _check_processor(self) -> None:
        """Finds the token types the model wants, and that our ids are the processor's."""
        text = self.render(f"{IMAGE}\n{{text}}", text="Is it a mill?")
        image = _probe_image()
        theirs: dict[str, Any] = self.processor(
            images=[image], text=[text], add_special_tokens=self._lacks_bos(text)
        )
        ids = list(theirs["input_ids"][0])
        inputs = self.encode_image(image)
        if not inputs.num_tokens:
            raise UnsupportedModelError(
                f"{type(self.processor).__name__} makes no tokens of a picture"
            )
        ours = self.encode_prompt(text, [inputs]).input_ids
        if ours != ids:
            raise UnsupportedModelError(
                f"{type(self.processor).__name__} puts pictures into a prompt in a way of its own: "
                f"it gives {len(ids)} tokens where {len(ours)} were expected"
            )
        for name in _TYPE_IDS:
            if name in theirs:
                pairs = zip(ids, theirs[name][0], strict=True)
                self._marked_tokens[name] = sorted({token for token, kind in pairs if kind})

    def _try_images_on_device(self) -> None:
        """Has pictures resized and normalised where the model is, if that changes no bit.

        It is so for some of torchvision's resizing, and never for PIL's, which knows no device.
        """
        noise = torch.randint(256, (517, 389, 3), generator=torch.Generator().manual_seed(0))
        pictures = [Image.fromarray(noise.byte().numpy()), _probe_image()]
        on_cpu = [self.encode_image(picture).tensors for picture in pictures]
        self._image_options = {"device": str(self.device)}
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

    @torch.no_grad()
    def _check_logits(self) -> None:
        """Makes sure that norm, head rows, scale and softcap give the model's own logits.

        Whether the model obeys the softcap in its configuration is found out here: PaliGemma in
        transformers 5.17 does not.
        """
        batch = self.collate([self.encode_prompt(self.render("Yes or No?"))])
        expected = self.model(**batch, use_cache=False).logits[0, -1].float()
        token_ids = range(0, len(expected), max(1, len(expected) // 64))
        hidden = self.hidden_states(batch)[0, -1]
        for softcap in (self._head.softcap, None):
            self._head.softcap = softcap
            found = self._head.logits(hidden, token_ids)
            if same(found, expected[list(token_ids)], rounding(self.dtype)):
                return
        raise UnsupportedModelError(
            f"{type(self.model).__name__} computes its logits in a way of its own, not as "
            "head(norm(hidden)) with a scale or a softcap"
        )


def _with_state(state: dict[str, Any]) -> MLLM:
    mllm = object.__new__(MLLM)
    vars(mllm).update(state)
    return mllm


def _load_again(path: str, options: dict[str, Any], fingerprint: str) -> MLLM:
    mllm = MLLM.from_pretrained(path, **options)
    if mllm.fingerprint != fingerprint:
        raise ValueError(
            f"{shown(path)} does not hold the model that another process sent by its path: one of "
            "the two was changed since it was loaded. Save that one, and load it here"
        )
    return mllm


def _best_attention(device: torch.device, dtype: torch.dtype) -> str | None:
    """flash-attn where it is installed and can be used; None leaves it to Hugging Face (SDPA)."""
    usable = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    return "flash_attention_2" if usable and is_flash_attn_2_available() else None


def _configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A configuration and those that are nested in it."""
    nested = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(inner for one in nested for inner in _configs(one))]


def _plain_fields(part: object) -> str:
    """The settings that an object holds itself."""
    plain = (bool, int, float, str, list, tuple, Mapping, SizeDict)
    return str({name: value for name, value in vars(part).items() if isinstance(value, plain)})


def _probe_image() -> Image.Image:
    return Image.new("RGB", (64, 48), (200, 120, 40))
