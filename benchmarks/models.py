"""Random-weight checkpoints of the benchmarked shapes, in the format of a published one.

Speed does not depend on what a model has learned, so none needs to be downloaded: a folder written
here loads like a hub model, with its own processor, tokenizer and chat template.

How many tokens a picture becomes is chosen when the folder is written: LLaVA and InternVL scale
every picture to one size, which is made to fit; a Qwen-VL's processor is given as many pixels as
its fewest and its most. Pictures are square, so the number is a square.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import transformers
from shapes import Shape
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin
from workload import WORDS, caption

from ragvl.files import follow_umask
from ragvl.mllm.loading import without_video
from ragvl.reranker import TEMPLATES

MAX_LENGTH = 4096
_TOKENIZER_SIZE = 2048
PAD, END = "<|endoftext|>", "<|im_end|>"

# As LLaVA-1.5's: the pictures first, then the text, then the answer's turn
_LLAVA_CHAT = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# As InternVL's and Qwen-VL's, with what stands for a picture to be filled in
_CHATML = (
    "{%% for message in messages %%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%% for part in message['content'] %%}"
    "{%% if part['type'] == 'image' %%}{{ '%s' }}"
    "{%% elif part['type'] == 'text' %%}{{ part['text'] }}{%% endif %%}{%% endfor %%}"
    "{{ '<|im_end|>\n' }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\n' }}{%% endif %%}"
)


def write_model(
    folder: Path,
    shape: Shape,
    *,
    image_tokens: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> int:
    """Writes a checkpoint of `shape` into `folder`; see `build_model`.

    Returns:
        The number of its parameters.
    """
    model, processor = build_model(shape, image_tokens=image_tokens, device=device, dtype=dtype)
    model.save_pretrained(folder)
    follow_umask(*folder.glob("*.safetensors"))
    processor.save_pretrained(folder)
    return model.num_parameters()


def build_model(
    shape: Shape,
    *,
    image_tokens: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model of `shape` with random weights, each time the same ones, and its processor.

    Args:
        shape: the model.
        image_tokens: what a picture becomes, a square number; by default the shape's own.
        device: where its weights are drawn; "meta" draws none.
        dtype: theirs.

    Raises:
        ValueError: `image_tokens` is no square number.
    """
    image_tokens = shape.image_tokens if image_tokens is None else image_tokens
    side = isqrt(image_tokens)
    if side**2 != image_tokens:
        raise ValueError(f"image_tokens={image_tokens} is no square number")
    config, model_class, processor = _FAMILIES[shape.family](shape, side)
    for part in (config, config.text_config, config.vision_config):
        part.initializer_range = shape.initializer_range
    torch.manual_seed(0)
    with torch.device(device):
        return model_class._from_config(config, dtype=dtype).eval(), processor


# --- families: what is special to an architecture -----------------------------------------------

_Parts = tuple[PretrainedConfig, type[PreTrainedModel], ProcessorMixin]


def _llava(shape: Shape, side: int) -> _Parts:
    tokenizer = _train_tokenizer("<image>")
    image_size = side * shape.pixels_per_token
    config = transformers.LlavaConfig(
        text_config={"model_type": shape.decoder.kind, **_text(shape, tokenizer)},
        vision_config={
            "model_type": "clip_vision_model",
            **_vision(shape),
            "image_size": image_size,
            "patch_size": shape.pixels_per_token,
            "projection_dim": shape.vision.hidden_size,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=side**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=shape.decoder.tied,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": image_size}, crop_size=_square(image_size)
        ),
        tokenizer,
        patch_size=shape.pixels_per_token,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token
        chat_template=_LLAVA_CHAT,
        image_token="<image>",
    )
    return config, transformers.LlavaForConditionalGeneration, processor


def _internvl(shape: Shape, side: int) -> _Parts:
    tokenizer = _train_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    image_size = side * shape.pixels_per_token
    patch_size = shape.pixels_per_token // isqrt(shape.patches_per_token)
    config = transformers.InternVLConfig(
        text_config={"model_type": shape.decoder.kind, **_text(shape, tokenizer)},
        vision_config={
            "model_type": "internvl_vision",
            **_vision(shape),
            "attention_bias": True,
            "image_size": [image_size, image_size],
            "patch_size": [patch_size, patch_size],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=side**2,
        tie_word_embeddings=shape.decoder.tied,
    )
    processor = without_video(transformers.InternVLProcessor)(
        # One tile: a published model cuts a large picture into up to 12, each as many tokens
        transformers.GotOcr2ImageProcessorPil(size=_square(image_size), max_patches=1),
        tokenizer,
        image_seq_length=side**2,
        chat_template=_CHATML % "<IMG_CONTEXT>\\n",
    )
    return config, transformers.InternVLForConditionalGeneration, processor


def _qwen2_5_vl(shape: Shape, side: int) -> _Parts:
    tokenizer, ids, processor = _qwen_parts(shape, side, transformers.Qwen2_5_VLProcessor)
    half = shape.decoder.head_dim // 2
    vision = shape.vision
    config = transformers.Qwen2_5_VLConfig(
        text_config=_text(
            shape, tokenizer, mrope_section=[half // 4, half * 3 // 8, half * 3 // 8]
        ),
        vision_config={
            "depth": vision.num_layers,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "out_hidden_size": shape.decoder.hidden_size,
            "fullatt_block_indexes": _every_quarter(vision.num_layers),
        },
        tie_word_embeddings=shape.decoder.tied,
        **ids,
    )
    return config, transformers.Qwen2_5_VLForConditionalGeneration, processor


def _qwen3_vl(shape: Shape, side: int) -> _Parts:
    tokenizer, ids, processor = _qwen_parts(shape, side, transformers.Qwen3VLProcessor)
    half = shape.decoder.head_dim // 2
    high = half * 5 // 16
    vision = shape.vision
    config = transformers.Qwen3VLConfig(
        text_config=_text(
            shape, tokenizer, mrope_section=[half - 2 * high, high, high], mrope_interleaved=True
        ),
        vision_config={
            "depth": vision.num_layers,
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_heads": vision.num_heads,
            "out_hidden_size": shape.decoder.hidden_size,
            "deepstack_visual_indexes": _every_quarter(vision.num_layers)[: vision.num_deepstack],
        },
        tie_word_embeddings=shape.decoder.tied,
        **ids,
    )
    return config, transformers.Qwen3VLForConditionalGeneration, processor


_FAMILIES: dict[str, Callable[[Shape, int], _Parts]] = {
    "llava": _llava,
    "internvl": _internvl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}


# --- what families share ------------------------------------------------------------------------


def _text(shape: Shape, tokenizer: PreTrainedTokenizerFast, **rope: Any) -> dict[str, Any]:
    decoder = shape.decoder
    return {
        "vocab_size": decoder.vocab_size,  # more than the tokenizer has, as in published models
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "max_position_embeddings": MAX_LENGTH,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, **rope},
        "tie_word_embeddings": decoder.tied,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }


def _vision(shape: Shape) -> dict[str, int]:
    return {
        "hidden_size": shape.vision.hidden_size,
        "intermediate_size": shape.vision.intermediate_size,
        "num_hidden_layers": shape.vision.num_layers,
        "num_attention_heads": shape.vision.num_heads,
    }


def _qwen_parts(
    shape: Shape, side: int, processor_class: type[ProcessorMixin]
) -> tuple[PreTrainedTokenizerFast, dict[str, int], ProcessorMixin]:
    names = ("vision_start", "vision_end", "image", "video")
    tokens = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _train_tokenizer(*tokens)
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    pixels = (side * shape.pixels_per_token) ** 2
    processor = without_video(processor_class)(
        transformers.Qwen2VLImageProcessorPil(
            patch_size=shape.pixels_per_token // isqrt(shape.patches_per_token),
            size={"shortest_edge": pixels, "longest_edge": pixels},  # numbers of pixels, both
        ),
        tokenizer,
        chat_template=_CHATML % "<|vision_start|><|image_pad|><|vision_end|>",
    )
    named_ids = {f"{name}_token_id": token_id for name, token_id in zip(names, ids, strict=True)}
    return tokenizer, named_ids, processor


def _every_quarter(num_layers: int) -> list[int]:
    """The last layer of each quarter of them."""
    step = max(1, num_layers // 4)
    return list(range(step - 1, num_layers, step))


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _train_tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE that knows the workload's words, as a published tokenizer would.

    Args:
        special: more tokens than those of every model that no text becomes.
        named: such tokens, by the names under which a processor asks for them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = (*special, *named.values())
    trainer = trainers.BpeTrainer(
        vocab_size=_TOKENIZER_SIZE,
        special_tokens=[PAD, "<|im_start|>", END, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [
        f"USER: {text.format(query=f'What {word}?', caption=caption(number))} ASSISTANT:"
        for text in dict.fromkeys(template.text for template in TEMPLATES.values())
        if "{document}" not in text  # which would make another tokenizer of it
        for number, word in enumerate(WORDS)
    ]
    tokenizer.train_from_iterator([*prompts, "user assistant"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=["<|im_start|>", *special],
        extra_special_tokens=named or None,
        model_max_length=MAX_LENGTH,
    )
