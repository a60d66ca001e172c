"""Architectures that cut a large picture into tiles, beside those of the eight."""

from __future__ import annotations

import transformers
from torch import nn

from ragvl.mllm.loading import without_video
from tiny_models.eight import IDEFICS3_TEMPLATE, idefics3_tokenizer, llava_tokenizer
from tiny_models.hybrid import qwen3_5_text
from tiny_models.parts import (
    HIDDEN_SIZE,
    Builder,
    chatml_tokenizer,
    square,
    text_config,
    vision_config,
)

MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'][0]['text'] + eos_token }}"
    "{% else %}{{ '[INST] ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% endif %}{% endfor %}"
)

MINICPM_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image_pad|>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _llava_next() -> tuple[nn.Module, object]:
    tokenizer = llava_tokenizer()
    grid = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
    config = transformers.LlavaNextConfig(
        text_config={"model_type": "mistral", **text_config(tokenizer, sliding_window=None)},
        vision_config=vision_config("clip_vision_model", 32, 8, projection_dim=HIDDEN_SIZE),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        image_grid_pinpoints=grid,
    )
    processor = transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 32}, crop_size=square(32), image_grid_pinpoints=grid
        ),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=MISTRAL_TEMPLATE,
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


def _smolvlm() -> tuple[nn.Module, object]:
    tokenizer = idefics3_tokenizer("<|im_start|>")
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config=vision_config("smolvlm_vision", 32, 8),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    processor = without_video(transformers.SmolVLMProcessor)(
        transformers.SmolVLMImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        tokenizer,
        None,
        image_seq_len=4,
        chat_template=IDEFICS3_TEMPLATE.replace("<|begin_of_text|>", "<|im_start|>"),
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def _minicpmv4_6() -> tuple[nn.Module, object]:
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    tokenizer = chatml_tokenizer([*named.values()], **named)
    config = transformers.MiniCPMV4_6Config(
        text_config={"model_type": "qwen3_5_text", **qwen3_5_text(tokenizer)},
        vision_config=vision_config("minicpmv4_6_vision", 32, 4),
        insert_layer_id=0,
        image_size=32,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    processor = without_video(transformers.MiniCPMV4_6Processor)(
        transformers.MiniCPMV4_6ImageProcessorPil(
            patch_size=4, scale_resolution=32, max_slice_nums=4
        ),
        None,
        tokenizer,
        chat_template=MINICPM_TEMPLATE,
    )
    return transformers.MiniCPMV4_6ForConditionalGeneration(config), processor


BUILDERS: dict[str, Builder] = {
    "llava_next": _llava_next,
    "smolvlm": _smolvlm,
    "minicpmv4_6": _minicpmv4_6,
}
