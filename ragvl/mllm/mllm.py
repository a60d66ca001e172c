"""One view of any Hugging Face image-text-to-text model."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import SizeDict
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_flash_attn_2_available

from ragvl.checkpoints import find_checkpoint
from ragvl.data.images import DECODING
from ragvl.files import expand_user
from ragvl.identity import config_content, library_versions, name_of, tokenizer_content
from ragvl.messages import shown
from ragvl.mllm.chat_template import resolve_date
from ragvl.mllm.decoder import Decoder, KvLayout, Prefilled, ReadStates, WriteKv
from ragvl.mllm.head import FinalNorm, LanguageHead, Norm, rounding, same
from ragvl.mllm.inputs import Features, ImageInputs, Prompt, as_one, placed, probe_image
from ragvl.mllm.int8 import INT8, is_rounded, resolve_model_dtype, round_products, unrounded
from ragvl.mllm.layers import LayerCode, checked_layers, code_in_force, replace_code
from ragvl.mllm.loading import (
    UnsupportedModelError,
    check_attention,
    load_model,
    load_processor,
    naming,
)
from ragvl.mllm.products import keep_rows_apart
from ragvl.mllm.prompting import Prompting
from ragvl.mllm.vision import Join, join_features, learn_join
from ragvl.ops import PrefixBatch
from ragvl.runtime import (
    DeviceMap,
    float32_precision,
    mapped_device,
    resolve_device,
)
from ragvl.torch_context import default_torch_context
from ragvl.weights import Watch

logger = logging.getLogger(__name__)

IMAGE_TOKENS = "ragvl_image_tokens"
"""Where a configuration says which share of pictures' tokens a model was trained with."""

_SMALL = 8  # numbers of a picture that are little to keep, such as its size
_LENGTH_STEP = 32  # of the lengths that prefixes are filled up to


class MLLM:
    """A multimodal LLM taken apart into what reranking and generation need.

    Nothing here depends on the model's name: what differs between architectures is read from the
    processor and the modules, or tried with a small probe while loading.

    Args:
        model: the Hugging Face model; its decoder's attention is replaced in place.
        processor: its processor.
        chat_template_kwargs: see `from_pretrained`.
        date: see `from_pretrained`.
        layers: see `from_pretrained`; the code of the model's layers is replaced in place.

    Attributes:
        model: the model, in eval mode.
        prompting: makes prompts and batches, and holds no weights.
        decoder: runs the language model in halves.
        norm: the decoder's final norm.
        architecture: the `model_type` of the model's configuration, for display.

    Raises:
        UnsupportedModelError: the model is built so that it would give wrong scores here.
    """

    @default_torch_context
    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        date: date | str | None = None,
        layers: LayerCode = "eager",
    ) -> None:
        prompting = Prompting(
            processor, model.config, chat_template_kwargs=chat_template_kwargs, date=date
        )
        self._set_up(model, prompting, checked_layers(layers))

    def _set_up(self, model: PreTrainedModel, prompting: Prompting, layers: LayerCode) -> None:
        self._layers = layers
        self.model = model
        self.prompting = prompting
        self.architecture: str = model.config.model_type
        if self.device.type == "cuda":
            prompting.prepare_images_on(self.device)
        self._source: tuple[str, dict[str, Any]] | None = None
        self._fingerprint: tuple[tuple[object, ...], str] | None = None
        keep_rows_apart(model)
        self._take_apart()
        self._watch = Watch(model)
        self._form = self._form_now()

    @unrounded()
    def _take_apart(self) -> None:
        self.norm = Norm(self.model)
        output = self.model.get_output_embeddings()
        self._head = None if output is None else LanguageHead(self.model, output, self.norm)
        self.decoder = Decoder(self.model, self.norm.module)
        for learned in ("kv_layout", "features_join", "_unread", "batches_agree"):
            self.__dict__.pop(learned, None)
        if self._head is not None:
            self._check_logits()
        replace_code(self.decoder.layers, self._layers, self._probed)

    @classmethod
    @default_torch_context
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        device_map: DeviceMap | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        cache_dir: str | Path | None = None,
        adapters: str | Path | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        processor_settings: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        date: date | str | None = None,
        layers: LayerCode = "eager",
        language_head: bool = True,
        read_apart: Collection[str] = (),
    ) -> MLLM:
        """Loads a folder or a hub id.

        Whatever can be wrong with the arguments or the files is looked at before the weights are
        read.

        Args:
            path: a folder in Hugging Face format, or a hub id such as
                "llava-hf/llava-onevision-qwen2-0.5b-ov-hf". A folder of adapters, such as a
                checkpoint that training left, is merged into the model that it names.
            device: "auto" is CUDA where it is present, else the CPU.
            dtype: "auto" is bfloat16 on a GPU, float32 on a CPU. On a CPU "int8" rounds the
                weights of products to 8 bits, and what they multiply row by row (see
                `ragvl.ops.int8_linear`); all else is in bfloat16 where the CPU multiplies it, else
                in float32. "fastest" is the one of the three that the machine computes fastest
                with; the log says which, and what it costs.
            device_map: Hugging Face's way to say `device`, of one device: `{"": "cuda:1"}`, "cpu",
                or "auto" where there is only one.
            revision: branch, tag or commit of a hub repository.
            subfolder: where in the folder or repository the model is.
            cache_dir: where models of the hub are kept; `HF_HUB_CACHE` by default.
            adapters: a folder or hub id of adapters, which are merged into the model at `path`
                whatever model they name.
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
            layers: what computes the small operators between the products of the decoder's layers,
                within rounding the same: "eager", Hugging Face's own code; "fused", two operations
                of ragvl's; "compiled", what `torch.compile` makes of them. A score's bits are as
                independent of its batch with each; with "compiled" another process may compile, and
                so round, differently. Which is the fastest on a GPU is measured by
                `make bench-gpu-rerank PARTS=layers`.
            language_head: False leaves the language-model head out, which a checkpoint with a score
                network may lack. Such a model writes nothing.
            read_apart: names of weights among the model's that are no part of it and that the
                caller reads, such as a score network's: no report calls them unexpected.

        Raises:
            FileNotFoundError: the folder, or safetensors weights in it, are not there, or the hub
                has no such model.
            OSError: the hub does not let this user in, or a file cannot be read.
            UnsupportedModelError: a file is damaged, or it is no image-text-to-text model,
                incomplete, or built as ragvl does not understand.
            ValueError: an unknown device, dtype, attention or `layers`, or a processor setting that
                is unknown or would have no effect; `date` is none, or the chat template does not
                read what `chat_template_kwargs` name; `device_map` names several devices, a folder
                has no `revision`, or `subfolder` leads elsewhere.
        """
        on = resolve_device(mapped_device(device, device_map))
        resolved, eight_bits = resolve_model_dtype(dtype, on)
        resolve_date(date)  # a slip in it shows before the model is loaded
        attention = attn_implementation or _best_attention(on, resolved)
        check_attention(attention)
        checked_layers(layers)
        checkpoint = find_checkpoint(
            path,
            revision=revision,
            subfolder=subfolder,
            cache_dir=cache_dir,
            adapters=adapters,
            trust_remote_code=trust_remote_code,
        )
        processor, config = load_processor(
            checkpoint, processor_settings or {}, trust_remote_code=trust_remote_code
        )
        with naming(checkpoint.processor_folder, "processor"):
            prompting = Prompting(
                processor, config, chat_template_kwargs=chat_template_kwargs, date=date
            )
        model = load_model(
            checkpoint,
            config,
            device=on,
            dtype=resolved,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            language_head=language_head,
            read_apart=read_apart,
        )
        mllm = object.__new__(cls)
        with naming(checkpoint.folder, "model or processor"):
            mllm._set_up(model, prompting, layers)
            if eight_bits:
                mllm._round_products()
        options = {
            "revision": revision,
            "subfolder": subfolder,
            "cache_dir": None if cache_dir is None else _absolute(cache_dir),
            "adapters": None if adapters is None else _absolute(adapters),
            "trust_remote_code": trust_remote_code,
            "attn_implementation": attn_implementation,
            "processor_settings": dict(processor_settings or {}),
            "chat_template_kwargs": dict(chat_template_kwargs or {}),
            "date": date,
            "layers": layers,
            "language_head": language_head,
            "read_apart": list(read_apart),
        }
        mllm._source = _absolute(path), options
        return mllm

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by the folder or hub id that it was loaded from, which is read again.

        Raises:
            TypeError: it was not loaded with `from_pretrained`.
        """
        if self._source is None:
            raise TypeError(
                "a model that was not loaded with from_pretrained cannot be sent to another "
                "process: save it with save_pretrained and load it with from_pretrained there (a "
                "PrefixCache with a folder is shared by all that name the folder)"
            )
        path, options = self._source
        dtype = INT8 if is_rounded(self.model) else self.dtype
        options = {**options, "device": str(self.device), "dtype": dtype}
        return _load_again, (path, options, self.fingerprint)

    # --- what it is -----------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it computes in; of products see `dtype_name`."""
        return self.model.dtype

    @property
    def dtype_name(self) -> str:
        """What `from_pretrained` calls its dtype: "float32", "bfloat16", "int8", ..."""
        return INT8 if is_rounded(self.model) else str(self.dtype).removeprefix("torch.")

    @property
    def rounding(self) -> float:
        """The relative error of hidden states that are computed in another order, `unrounded`."""
        return rounding(self.dtype)

    @property
    def image_tokens(self) -> float:
        """The share of pictures' tokens that its training let prompts' ends see; 1 is all."""
        return getattr(self.model.config, IMAGE_TOKENS, 1.0)

    @property
    def head(self) -> LanguageHead:
        """The language-model head.

        Raises:
            UnsupportedModelError: it has none.
        """
        self.check_head()
        assert self._head is not None
        return self._head

    def check_head(self) -> None:
        """Refuses a model that gives no next token.

        Raises:
            UnsupportedModelError: it has no language-model head.
        """
        if self._head is None:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has no language-model head: it gives no next token, "
                "so it neither writes nor scores by answer words"
            )

    @property
    def final_norm(self) -> FinalNorm:
        """The final norm as plain numbers, with the weights it has now."""
        return self.norm.read()

    @property
    def fingerprint(self) -> str:
        """Names what the model is: every byte of its weights, and every setting.

        These are all parameters and buffers, the adapters in use, the dtype, the configuration, the
        processor, the tokenizer and the chat template. The weights are read when it is
        first needed, and again when they have changed, which is looked at each time (see
        `Watch`); what was taken from the model is taken from it anew then.

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
                self.prompting.processor.to_json_string(),
                tokenizer_content(self.prompting.tokenizer),
                self.prompting.chat_settings,
            )
            self._fingerprint = settings, name
        return self._fingerprint[1]

    def release_weights(self) -> None:
        """Holds on to no weight by itself, so that moving the model frees where they were.

        They are read again when `fingerprint` is needed the next time.
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
    def environment_name(self) -> str:
        """Names what the model is computed with, as far as it changes bits.

        This is the attention implementation of each of its parts, the kind of device, the precision
        of float32 products, the versions of the libraries, how pictures are decoded, whether
        dropout is on, and other code of the layers than their own.
        """
        layers = code_in_force(self.decoder.layers)
        attention = [config._attn_implementation for config in _configs(self.model.config)]
        return name_of(
            "environment",
            attention,
            self.device.type,
            float32_precision(self.device),
            library_versions(),
            DECODING,
            self.model.training,
            *([] if layers == "eager" else [layers]),
        )

    @cached_property
    @default_torch_context
    @torch.inference_mode()
    def kv_layout(self) -> KvLayout:
        """What the decoder keeps of each token of a prefix.

        Raises:
            UnsupportedModelError: see `Decoder.kv_layout`.
        """
        return self.decoder.kv_layout(self.model_inputs([self._text_prompt()]))

    # --- running it -----------------------------------------------------------------------------

    def model_inputs(
        self,
        prompts: Sequence[Prompt],
        *,
        padding_side: Literal["left", "right"] = "right",
        length: int = 0,
    ) -> dict[str, Tensor]:
        """`Prompting.collate`'s batch on the model's device, floats in its dtype."""
        batch = self.prompting.collate(prompts, padding_side=padding_side, length=length)
        return placed(batch, self.device, self.dtype)

    @torch.inference_mode()
    def hidden_states(self, prompts: Sequence[Prompt]) -> Tensor:
        """(B, T, D): what the last decoder layer gives for whole prompts, before the final norm.

        The norm and the head are not computed, nor is the vision tower where every picture of the
        prompts comes with its features. Thread-safe.
        """
        images = [image for prompt in prompts for image in prompt.images]
        if images and len(prompts) > 1 and not self.batches_agree:
            alone = [self.hidden_states([prompt])[0] for prompt in prompts]
            return pad_sequence(alone, batch_first=True)
        return self.decoder.hidden_states(self.model_inputs(prompts), self._known(images))

    @torch.inference_mode()
    def extend_with_pictures(
        self,
        suffix: Prompt,
        first_position: int,
        last_rows: Tensor,
        prefixes: Sequence[PrefixBatch | None],
        states: ReadStates | None = None,
        *,
        num_rows: int = 0,
    ) -> Tensor:
        """(B, D): see `Decoder.extend_with_pictures`.

        Args:
            suffix: the rest of a prompt, and the pictures in it.
            first_position: of its first token in its prompt.
            last_rows: see `Decoder.extend`.
            prefixes: see `Decoder.extend`.
            states: see `Decoder.extend`.
            num_rows: how many tokens it is filled up to.
        """
        batch = self.model_inputs([suffix], length=num_rows)
        # No token sees one after it, so that what fills up need not be masked
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        features = self._known(suffix.images)
        return self.decoder.extend_with_pictures(
            batch, first_position, last_rows, prefixes, states, features
        )

    def _known(self, images: Sequence[ImageInputs]) -> Features | None:
        """The features of pictures in one pass, if every one of them comes with its own."""
        known = [image.features for image in images if image.features is not None]
        if not images or len(known) < len(images):
            return None
        return known[0] if len(known) == 1 else join_features(self.features_join, known)

    @cached_property
    @default_torch_context
    @torch.inference_mode()
    def batches_agree(self) -> bool:
        """Whether a prompt with a picture gives the same in every place of a batch, tried on one.

        It does not in Hunyuan-VL, which counts the pictures of a whole batch. Prompts are run one
        by one then.
        """
        small, wide = (
            self.prompting.probe_prompt(self.prompting.encode_image(probe_image(*size)))
            for size in ((64, 48), (96, 48))
        )
        first, _, last = self.decoder.hidden_states(self.model_inputs([small, wide, small]))
        # Rows of one batch are rounded alike, so a small difference is one already
        if same(last[: len(small)], first[: len(small)], tolerance=1e-4):
            return True
        logger.warning(
            "%s computes prompts otherwise in a batch than alone: whole prompts are run one by one",
            self.architecture,
        )
        return False

    @torch.inference_mode()
    def with_features(self, image: ImageInputs) -> ImageInputs:
        """The picture with its visual tokens in the place of its pixels; the decoder does not run.

        They are those of this picture alone, whatever it is put beside afterwards: prompts give the
        same bits with them whenever they were computed. Thread-safe.

        Raises:
            UnsupportedModelError: the model does not ask for them in the way that is known here.
        """
        if image.features:
            return image
        return image.with_features(self._features([image]), self._unread)

    @cached_property
    @default_torch_context
    @torch.inference_mode()
    @unrounded()
    def features_join(self) -> Join:
        """How visual tokens of several pictures are joined for one pass, tried on two small ones.

        Raises:
            UnsupportedModelError: those of one picture depend on the others, or take a form of
                their own.
        """
        pictures = [probe_image(), probe_image(96, 48, (30, 160, 90))]
        images = [self.prompting.encode_image(picture) for picture in pictures]
        first, second, both = map(self._features, (images[:1], images[1:], images))
        join = learn_join(first, second, both, self.rounding)
        if join is None:
            raise UnsupportedModelError(
                "what it makes of two pictures is not what it makes of each, one after the other"
            )
        return join

    @torch.inference_mode()
    def prefill(
        self, prefixes: Sequence[Prompt], write: WriteKv, features: Features | None = None
    ) -> list[Prefilled]:
        """Computes the keys and values of B prefixes; their output is not computed.

        Args:
            prefixes: the beginnings of prompts, their pictures included.
            write: takes, for each of the layout's `shapes` in turn, its place there, keys and
                values, (B, G, T, D) each; T is `padded_length` of the longest, and what lies past
                a prefix's own length is of no use.
            features: of an earlier `Prefilled` of one prefix with the same pictures, which need not
                be looked at again then: of the tensors in its images only those of whole numbers
                are read.
        """
        lengths = [len(prefix) for prefix in prefixes]
        batch = self.model_inputs(prefixes, length=self.padded_length(max(lengths)))
        # No token sees one after it, so that what fills up need not be masked, which costs more
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        done = self.decoder.prefill(batch, lengths, write, self.kv_layout, features)
        if len(prefixes) == 1 and done[0].features:
            images = [image.with_features({}, self._unread) for image in prefixes[0].images]
            done[0].pictures = as_one(self.prompting.joined(images), images, done[0].features)
        return done

    def padded_length(self, length: int) -> int:
        """How many tokens a prefix of `length` tokens is filled up to.

        Few lengths are left then, and prefixes of one are computed in batches of one shape.
        """
        rounded_up = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        return max(length, min(rounded_up, self.prompting.max_length))

    @torch.inference_mode()
    def next_token_share(self, prompt: Prompt, token_ids: Sequence[int]) -> float:
        """How much of the probability of the token after `prompt` the tokens `token_ids` hold."""
        return self.head.share(self.hidden_states([prompt])[0, -1], token_ids)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[str]:
        """The greedy answers to a batch of prompts, without white space around them.

        Not to be run beside another call on the same model: Qwen-VL keeps the positions of the
        batch it is generating for in the module.

        Raises:
            UnsupportedModelError: the model has no language-model head.
        """
        self.check_head()
        batch = self.model_inputs(prompts, padding_side="left")
        saved = self.model.generation_config
        # generate() fills in from the model's own whatever a call leaves open
        self.model.generation_config = GenerationConfig(
            bos_token_id=saved.bos_token_id,
            eos_token_id=saved.eos_token_id,
            pad_token_id=self.prompting.tokenizer.pad_token_id,
        )
        try:
            output = self.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        finally:
            self.model.generation_config = saved
        new = output[:, batch["input_ids"].shape[1] :]
        answers = self.prompting.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    # --- inside ---------------------------------------------------------------------------------

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
        self._take_apart()
        self._form = self._form_now()

    def _form_now(self) -> tuple[object, ...]:
        """What is equal while the model is made of the same modules with the same settings."""
        return self._watch.form, *map(_plain_fields, _configs(self.model.config))

    def _settings(self) -> tuple[object, ...]:
        """What is equal while nobody changes a setting, as of the last `_look_again`."""
        _, *config_fields = self._form
        processor = self.prompting.processor
        parts = filter(None, (processor, getattr(processor, "image_processor", None)))
        return (*config_fields, *map(_plain_fields, parts))

    def _features(self, images: Sequence[ImageInputs]) -> Features:
        """What the vision tower gives for pictures in one pass."""
        (ids,) = self.prompting.tokenize(["".join(image.expansion for image in images)])
        prompt = Prompt(ids[: self.prompting.max_length], tuple(images))  # its text matters not
        return self.decoder.features(self.model_inputs([prompt]))

    @cached_property
    @default_torch_context
    @torch.inference_mode()
    def _unread(self) -> frozenset[str]:
        """Which of a picture's tensors only the vision tower reads, such as a mask of its pixels.

        They need not be kept beside visual tokens. Small ones are not tried, and are kept.
        """
        inputs = self.prompting.encode_image(probe_image())
        image = inputs.with_features(self._features([inputs]))
        large = {name for name, x in image.tensors.items() if x.numel() > _SMALL}
        if not large:
            return frozenset()
        expected = self.hidden_states([self.prompting.probe_prompt(image)])
        unread = set()
        for name in large:
            without = image.with_features(image.features or {}, {name})
            with contextlib.suppress(ValueError, LookupError, TypeError, RuntimeError):
                given = self.hidden_states([self.prompting.probe_prompt(without)])
                if torch.equal(given, expected):
                    unread.add(name)
        return frozenset(unread)

    def _text_prompt(self) -> Prompt:
        return self.prompting.encode_prompt(self.prompting.probe(picture=False))

    @torch.no_grad()
    def _round_products(self) -> None:
        """Has products computed in 8 bits, and says in the log what that does."""
        before = self._probed()
        round_products(self.model)
        self._look_again()
        after = self._probed()
        error = ((after - before).norm() / before.norm()).item()
        logger.info("dtype=%r: hidden states of a probe differ by %.1f %%", INT8, 100 * error)

    def _probed(self) -> Tensor:
        return self.hidden_states([self.prompting.probe_prompt()])

    @torch.no_grad()
    def _check_logits(self) -> None:
        """Makes sure that norm, head rows, scale and softcap give the model's own logits.

        Whether the model obeys the scale and the softcap in its configuration shows here: Aya
        Vision does not scale, and PaliGemma in transformers 5.17 has no softcap.
        """
        batch = self.model_inputs([self._text_prompt()])
        expected = self.model(**batch, use_cache=False).logits[0, -1].float()
        token_ids = range(0, len(expected), max(1, len(expected) // 64))
        hidden = self.decoder.hidden_states(batch)[0, -1]
        for scale, softcap in product((self.head.scale, 1.0), (self.head.softcap, None)):
            self.head.scale, self.head.softcap = scale, softcap
            ours = self.head.logits(hidden, token_ids)
            if same(ours, expected[list(token_ids)], self.rounding):
                return
        raise UnsupportedModelError(
            f"{type(self.model).__name__} computes its logits otherwise than as "
            "head(norm(hidden)) with a scale or a softcap"
        )


def _absolute(path: str | Path) -> str:
    """What names the same folder or hub id in a process that works in another folder."""
    folder = expand_user(path)
    return os.path.abspath(folder) if os.path.isdir(folder) else str(path)


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
