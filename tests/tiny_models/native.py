"""Architectures that see a picture in its own shape, beside those of the eight."""

from __future__ import annotations

import transformers
from torch import nn
from transformers import PreTrainedTokenizerFast

from ragvl.mllm.loading import without_video
from tiny_models.parts import (
    HIDDEN_SIZE,
    Builder,
    byte_level_tokenizer,
    fast_tokenizer,
    text_config,
)

GLM_TEMPLATE = (
    "{{ '[gMASK]<sop>\n' }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|begin_of_image|><|image|><|end_of_image|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def _glm_parts(
    processor_class: type, image_processor_class: type
) -> tuple[PreTrainedTokenizerFast, object]:
    special = [
        *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        *("<|begin_of_image|>", "<|end_of_image|>", "<|image|>"),
        *("<|begin_of_video|>", "<|end_of_video|>", "<|video|>"),
    ]
    tokenizer = fast_tokenizer(
        byte_level_tokenizer(special),
        eos_token="<|user|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:],
    )
    processor = without_video(processor_class)(
        image_processor_class(
            patch_size=8,
            merge_size=2,
            size={"shortest_edge": 4 * 16**2, "longest_edge": 2 * 16 * 16**2},
        ),
        tokenizer,
        chat_template=GLM_TEMPLATE,
    )
    return tokenizer, processor


def _glm_config(config_class: type, tokenizer: PreTrainedTokenizerFast) -> object:
    def token_id(name: str) -> int:
        return tokenizer.convert_tokens_to_ids(f"<|{name}|>")

    rope = {
        "rope_type": "default",
        "mrope_section": [1, 1, 1],
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.75,
    }
    return config_class(
        text_config=text_config(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN_SIZE,
            "out_hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_heads": 2,
            "image_size": 64,
            "patch_size": 8,
        },
        image_token_id=token_id("image"),
        video_token_id=token_id("video"),
        image_start_token_id=token_id("begin_of_image"),
        image_end_token_id=token_id("end_of_image"),
        video_start_token_id=token_id("begin_of_video"),
        video_end_token_id=token_id("end_of_video"),
    )


def _glm4v() -> tuple[nn.Module, object]:
    tokenizer, processor = _glm_parts(
        transformers.Glm4vProcessor, transformers.Glm4vImageProcessorPil
    )
    config = _glm_config(transformers.Glm4vConfig, tokenizer)
    return transformers.Glm4vForConditionalGeneration(config), processor


def _glm46v() -> tuple[nn.Module, object]:
    tokenizer, processor = _glm_parts(
        transformers.Glm46VProcessor, transformers.Glm46VImageProcessorPil
    )
    config = _glm_config(transformers.Glm46VConfig, tokenizer)
    return transformers.Glm46VForConditionalGeneration(config), processor


BUILDERS: dict[str, Builder] = {
    "glm4v": _glm4v,
    "glm46v": _glm46v,
}
