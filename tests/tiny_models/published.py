"""Tiny random checkpoints in the files and names of published rerankers.

What a hub repository holds and transformers would write otherwise today is written as published:
configurations in which the language model's settings stand at the top, the names of weights,
`preprocessor_config.json`, `chat_template.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from tiny_models.eight import QWEN_TEMPLATE
from tiny_models.parts import CORPUS, HIDDEN_SIZE, byte_level_tokenizer, spread

_SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
_ANSWERS = ["yes", "no", "True", "False"]
_CONTEXT = 4096
# It must never be run
_CODE = 'raise RuntimeError("code of the checkpoint was run")\n'


def _tokenizer() -> PreTrainedTokenizerFast:
    words = [*_ANSWERS, *(f" {word}" for word in _ANSWERS), "\n", "**Query**:\n"] * 20
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(_SPECIAL, corpus=[*CORPUS, *words], size=500),
        model_max_length=32768,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=_SPECIAL[1:],
    )


def _text(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": _CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
    }


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
    }


def _write(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    config: dict[str, Any],
    weights: dict[str, torch.Tensor],
    image_processor: dict[str, Any],
    template: str,
) -> Path:
    tokenizer.save_pretrained(folder)
    for name, content in {
        "config.json": config,
        "preprocessor_config.json": image_processor,
        "chat_template.json": {"chat_template": template},
    }.items():
        (folder / name).write_text(json.dumps(content))
    save_file({name: x.contiguous() for name, x in weights.items()}, folder / "model.safetensors")
    return folder


def _qwen2_vl(folder: Path, head: dict[str, torch.Tensor], **config: Any) -> Path:
    """A Qwen2-VL in the names before transformers 4.52, as both rerankers on it were published."""
    tokenizer = _tokenizer()
    settings = {
        "model_type": "qwen2_vl",
        "tie_word_embeddings": True,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "vision_config": {
            "depth": 2,
            "embed_dim": HIDDEN_SIZE,
            "hidden_size": HIDDEN_SIZE,
            "num_heads": 2,
            "mlp_ratio": 2,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        **_text(tokenizer),
        **_token_ids(tokenizer),
        **config,
    }
    model = _random(
        transformers.Qwen2VLForConditionalGeneration(transformers.Qwen2VLConfig(**settings))
    )
    weights = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): x
        for name, x in model.state_dict().items()
        if name != "lm_head.weight"
    }
    image_processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    return _write(folder, tokenizer, settings, {**weights, **head}, image_processor, QWEN_TEMPLATE)


def monoqwen2_vl(folder: Path) -> Path:
    """lightonai/MonoQwen2-VL-v0.1."""
    return _qwen2_vl(folder, {}, architectures=["Qwen2VLForConditionalGeneration"])


def jina_reranker_m0(folder: Path) -> Path:
    """jinaai/jina-reranker-m0: Qwen2-VL without a language-model head, and a score network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = {
            "score.0.weight": torch.randn(HIDDEN_SIZE, HIDDEN_SIZE) * 0.3,
            "score.0.bias": torch.randn(HIDDEN_SIZE),
            "score.2.weight": torch.randn(1, HIDDEN_SIZE) * 0.3,
            "score.2.bias": torch.randn(1),
        }
    _qwen2_vl(
        folder,
        head,
        architectures=["JinaVLForRanking"],
        auto_map={"AutoModel": "modeling.JinaVLForRanking"},
    )
    (folder / "modeling.py").write_text(_CODE)
    return folder


def qwen3_vl_reranker(folder: Path) -> Path:
    """Qwen/Qwen3-VL-Reranker-2B: a Qwen3-VL."""
    tokenizer = _tokenizer()
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = {**_text(tokenizer), "model_type": "qwen3_vl_text", "head_dim": 8, "rope_scaling": rope}
    settings = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": {**text, "tie_word_embeddings": True},
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 2,
            "hidden_size": HIDDEN_SIZE,
            "out_hidden_size": HIDDEN_SIZE,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        **_token_ids(tokenizer),
    }
    model = _random(
        transformers.Qwen3VLForConditionalGeneration(transformers.Qwen3VLConfig(**settings))
    )
    weights = {name: x for name, x in model.state_dict().items() if name != "lm_head.weight"}
    image_processor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return _write(folder, tokenizer, settings, weights, image_processor, QWEN_TEMPLATE)


def _random(model: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        spread(model)
    return model
