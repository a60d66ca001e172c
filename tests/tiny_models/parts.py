"""What tiny checkpoints are made of: tokenizers, and configurations of decoders and towers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn
from transformers import PreTrainedTokenizerFast

Builder = Callable[[], tuple[nn.Module, object]]  # makes a random model and its processor

HIDDEN_SIZE = 32
MAX_LENGTH = 1024

CORPUS = [
    "Image Caption: The red tower of Velmora, photographed in 1987.",
    "Question: What color is the roof of the tower? Which has more windows?",
    "Based on the image and its caption, is the image relevant to the question?",
    "Answer 'Yes' or 'No'. Answer the question in one word or a short phrase.",
    "user assistant system USER: ASSISTANT: User: Assistant: You are a helpful assistant.",
    *["Yes", "No", " Yes", " No", "Yes No", "\n", "\n\n"] * 20,
]


# --- tokenizers ---------------------------------------------------------------------------------


def byte_level_tokenizer(
    special: list[str],
    *,
    bos: str | None = None,
    corpus: Sequence[str] = CORPUS,
    size: int = 450,
) -> Tokenizer:
    """Byte-level BPE, as in Qwen, InternVL, SmolLM: a word after a space is its own token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return _with_bos(tokenizer, bos)


def sentencepiece_tokenizer(special: list[str], *, bos: str, prefix_space: bool) -> Tokenizer:
    """BPE over text in which "▁" stands for a space, with byte fallback.

    With `prefix_space` a "▁" is put before the text, as in LLaMA 2; without, as in Gemma.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    as_space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), as_space]) if prefix_space else as_space
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training only
    trainer = trainers.BpeTrainer(
        vocab_size=650,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.pre_tokenizer = None
    pieces: list[decoders.Decoder] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if prefix_space:
        pieces.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(pieces)
    return _with_bos(tokenizer, bos)


def _with_bos(tokenizer: Tokenizer, bos: str | None) -> Tokenizer:
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def fast_tokenizer(tokenizer: Tokenizer, **special: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **special
    )


CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def chatml_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    return fast_tokenizer(
        byte_level_tokenizer([*CHATML, *special]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *special],
        extra_special_tokens=named or None,
    )


# --- configurations -----------------------------------------------------------------------------


def text_config(tokenizer: PreTrainedTokenizerFast, **changes: object) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **changes,
    }


def vision_config(model_type: str, image_size: int, patch_size: int, **changes: object) -> dict:
    return {
        "model_type": model_type,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
        **changes,
    }


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


# --- weights -----------------------------------------------------------------------------------


@torch.no_grad()
def spread(model: nn.Module) -> None:
    """Weights at which scores differ clearly between inputs, and few are near 0 or 1."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.add_(torch.randn_like(parameter) * 0.2)  # norms and biases not left at 1, 0
        elif "embed" in name:
            parameter.normal_(std=0.1)  # small beside what the layers add, which depends on it all
        elif "lm_head" in name:
            parameter.normal_(std=0.3)
        else:
            parameter.normal_(std=1.5 / math.sqrt(parameter[0].numel()))
