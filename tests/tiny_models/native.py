"""Architectures that see a picture in its own shape, beside those of the eight."""

from __future__ import annotations

import transformers
from torch import nn
from transformers import PreTrainedTokenizerFast

from ragvl.mllm.loading import without_video
from tiny_models.eight import qwen_ids, qwen_parts
from tiny_models.parts import (
    HIDDEN_SIZE,
    Builder,
    byte_level_tokenizer,
    chatml_tokenizer,
    fast_tokenizer,
    text_config,
    vision_config,
)

GLM_TEMPLATE = (
    "{{ '[gMASK]<sop>\n' }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|begin_of_image|><|image|><|end_of_image|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# As Mistral 3's, which needs no system turn either
MISTRAL3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'][0]['text'] + eos_token }}"
    "{% else %}{{ '[INST]' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '[IMG]' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '[/INST]' }}{% endif %}{% endfor %}"
)
LIGHTON_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image_pad|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
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


def _glm_config(
    config_class: type, tokenizer: PreTrainedTokenizerFast, text: dict | None = None
) -> object:
    def token_id(name: str) -> int:
        return tokenizer.convert_tokens_to_ids(f"<|{name}|>")

    rope = {
        "rope_type": "default",
        "mrope_section": [1, 1, 1],
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.75,
    }
    return config_class(
        text_config=text_config(tokenizer, rope_parameters=rope, **(text or {})),
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


def _glm4v_moe() -> tuple[nn.Module, object]:
    tokenizer, processor = _glm_parts(
        transformers.Glm4vProcessor, transformers.Glm4vImageProcessorPil
    )
    experts = {
        "moe_intermediate_size": 32,
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
    }
    config = _glm_config(transformers.Glm4vMoeConfig, tokenizer, experts)
    return transformers.Glm4vMoeForConditionalGeneration(config), processor


def _glm_ocr() -> tuple[nn.Module, object]:
    tokenizer, processor = _glm_parts(
        transformers.Glm46VProcessor, transformers.Glm46VImageProcessorPil
    )
    config = _glm_config(transformers.GlmOcrConfig, tokenizer)
    return transformers.GlmOcrForConditionalGeneration(config), processor


def _qwen3_vl_moe() -> tuple[nn.Module, object]:
    tokenizer, processor = qwen_parts(transformers.Qwen3VLProcessor, 8)
    rope = {
        "rope_type": "default",
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "rope_theta": 10_000.0,
    }
    config = transformers.Qwen3VLMoeConfig(
        text_config=text_config(
            tokenizer,
            rope_parameters=rope,
            moe_intermediate_size=32,
            num_experts_per_tok=2,
            num_experts=4,
        ),
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN_SIZE,
            "out_hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        **qwen_ids(tokenizer),
    )
    return transformers.Qwen3VLMoeForConditionalGeneration(config), processor


def _pixtral_images() -> object:
    return transformers.PixtralImageProcessorPil(
        patch_size={"height": 16, "width": 16}, size={"longest_edge": 96}
    )


def _lighton_ocr() -> tuple[nn.Module, object]:
    tokenizer = chatml_tokenizer(
        ["<|image_pad|>", "<|vision_pad|>", "<|vision_end|>"],
        image_token="<|image_pad|>",
        image_break_token="<|vision_pad|>",
        image_end_token="<|vision_end|>",
    )
    config = transformers.LightOnOcrConfig(
        text_config={"model_type": "qwen3", **text_config(tokenizer)},
        vision_config=vision_config("pixtral", 96, 8),
        spatial_merge_size=2,
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    processor = transformers.LightOnOcrProcessor(
        _pixtral_images(),
        tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=LIGHTON_TEMPLATE,
    )
    return transformers.LightOnOcrForConditionalGeneration(config), processor


def _mistral3(**text: object) -> tuple[nn.Module, object]:
    special = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]"]
    marks = {
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
    }
    tokenizer = fast_tokenizer(
        byte_level_tokenizer([*special, *marks.values()], bos="<s>"),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[*special[4:], *marks.values()],
        extra_special_tokens=marks,
    )
    config = transformers.Mistral3Config(
        text_config={
            "model_type": "mistral",
            **text_config(tokenizer, sliding_window=None, **text),
        },
        vision_config=vision_config("pixtral", 96, 8),
        spatial_merge_size=2,
        image_token_index=tokenizer.image_token_id,
    )
    # Its own processor needs torchvision; this one prepares pictures alike, and leaves out the
    # marks that end a row
    own = transformers.PixtralProcessor
    processor_class = transformers.LightOnOcrProcessor if hasattr(own, "_backends") else own
    processor = processor_class(
        _pixtral_images(),
        tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=MISTRAL3_TEMPLATE,
    )
    return transformers.Mistral3ForConditionalGeneration(config), processor


def _ministral3() -> tuple[nn.Module, object]:
    """Mistral 3's later form: queries are scaled by their position, here from token 16 on."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 0.5,
    }
    return _mistral3(model_type="ministral3", rope_parameters=rope)


BUILDERS: dict[str, Builder] = {
    "glm4v": _glm4v,
    "glm46v": _glm46v,
    "glm4v_moe": _glm4v_moe,
    "glm_ocr": _glm_ocr,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "lighton_ocr": _lighton_ocr,
    "mistral3": _mistral3,
    "ministral3": _ministral3,
}
