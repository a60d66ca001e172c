"""Operations: each has a reference in PyTorch and faster backends that agree with it."""

from __future__ import annotations

from ragvl.ops.backends import Backend, BackendUnavailableError
from ragvl.ops.bfloat16_linear import bfloat16_linear, bfloat16_linear_reference
from ragvl.ops.diffusion_noise import diffusion_noise, diffusion_noise_reference
from ragvl.ops.int8_linear import Int8Weight, int8_linear, int8_linear_reference
from ragvl.ops.prefix_attention import PrefixBatch, prefix_attention, prefix_attention_reference
from ragvl.ops.prefix_write import prefix_write, prefix_write_reference
from ragvl.ops.relevance_head import relevance_head, relevance_head_reference
from ragvl.ops.residual_rms_norm import residual_rms_norm, residual_rms_norm_reference
from ragvl.ops.rotary_embedding import rotary_embedding, rotary_embedding_reference
from ragvl.ops.visual_weighted_cross_entropy import (
    visual_gaps,
    visual_weighted_cross_entropy,
    visual_weighted_cross_entropy_reference,
    visual_weights,
)

__all__ = [
    "Backend",
    "BackendUnavailableError",
    "Int8Weight",
    "PrefixBatch",
    "bfloat16_linear",
    "bfloat16_linear_reference",
    "diffusion_noise",
    "diffusion_noise_reference",
    "int8_linear",
    "int8_linear_reference",
    "prefix_attention",
    "prefix_attention_reference",
    "prefix_write",
    "prefix_write_reference",
    "relevance_head",
    "relevance_head_reference",
    "residual_rms_norm",
    "residual_rms_norm_reference",
    "rotary_embedding",
    "rotary_embedding_reference",
    "visual_gaps",
    "visual_weighted_cross_entropy",
    "visual_weighted_cross_entropy_reference",
    "visual_weights",
]
