"""Architectures in whose decoder most layers carry a state from token to token."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedTokenizerFast

from tiny_models.eight import LLAVA_TEMPLATE, llava_tokenizer, qwen_ids, qwen_parts
from tiny_models.parts import HIDDEN_SIZE, Builder, square, text_config, vision_config


def qwen3_5_text(tokenizer: PreTrainedTokenizerFast, **changes: object) -> dict:
    """The configuration of a Qwen3.5 decoder."""
    return text_config(
        tokenizer,
        num_hidden_layers=4,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        **changes,
    )


def _qwen3_5_parts(**changes: object) -> tuple[dict[str, Any], object]:
    """Settings of a configuration, and a processor."""
    tokenizer, processor = qwen_parts(transformers.Qwen3VLProcessor, 8)
    rope = {
        "rope_type": "default",
        "mrope_section": [1, 1, 1],
        "mrope_interleaved": True,
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.75,
    }
    vision = {
        "depth": 2,
        "hidden_size": HIDDEN_SIZE,
        "out_hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "num_position_embeddings": 64,
    }
    text = qwen3_5_text(tokenizer, rope_parameters=rope, **changes)
    return {"text_config": text, "vision_config": vision, **qwen_ids(tokenizer)}, processor


def _qwen3_5() -> tuple[nn.Module, object]:
    settings, processor = _qwen3_5_parts()
    config = transformers.Qwen3_5Config(**settings)
    return transformers.Qwen3_5ForConditionalGeneration(config), processor


def _qwen3_5_moe() -> tuple[nn.Module, object]:
    settings, processor = _qwen3_5_parts(
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )
    config = transformers.Qwen3_5MoeConfig(**settings)
    return transformers.Qwen3_5MoeForConditionalGeneration(config), processor


def _llava_lfm2() -> tuple[nn.Module, object]:
    """LFM2's decoder, short convolutions beside attention, with LLaVA's vision.

    Transformers prepares LFM2-VL's own pictures with torchvision only.
    """
    tokenizer = llava_tokenizer()
    # The last layer carries a state, as in the published ones
    kinds = ["conv", "full_attention", "conv"]
    text = text_config(
        tokenizer, num_hidden_layers=3, layer_types=kinds, block_auto_adjust_ff_dim=False
    )
    config = transformers.LlavaConfig(
        text_config={"model_type": "lfm2", **text},
        vision_config=vision_config("clip_vision_model", 32, 8, projection_dim=HIDDEN_SIZE),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-2,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square(32)),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


BUILDERS: dict[str, Builder] = {
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5_moe,
    "llava_lfm2": _llava_lfm2,
}
