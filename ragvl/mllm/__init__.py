"""What any Hugging Face image-text-to-text model looks like to the rest of ragvl."""

from __future__ import annotations

from ragvl.mllm.answer_tokens import AnswerTokenError
from ragvl.mllm.captions import CaptionLimit, checked_caption_tokens
from ragvl.mllm.chat_template import resolve_date
from ragvl.mllm.convolutional import ConvolutionalVisionConfig, ConvolutionalVisionModel
from ragvl.mllm.decoder import (
    KvLayout,
    KvShape,
    LookAtAttention,
    Prefilled,
    ReadStates,
    WriteKv,
    looking_at_attention,
)
from ragvl.mllm.documents import encode_picture, too_long
from ragvl.mllm.inputs import (
    Features,
    ImageInputs,
    Prompt,
    PromptTooLongError,
    UnusableImageError,
    common_prefix_length,
)
from ragvl.mllm.int8 import resolve_model_dtype
from ragvl.mllm.loading import check_reader
from ragvl.mllm.mllm import IMAGE_TOKENS, MLLM
from ragvl.mllm.processors import merge_settings
from ragvl.mllm.products import is_plain_product, warn_of_mixed_rows
from ragvl.mllm.prompting import Prompting
from ragvl.mllm.quantized import company_problem
from ragvl.mllm.states import LayerState, StateShape
from ragvl.model_files import UnsupportedModelError

__all__ = [
    "IMAGE_TOKENS",
    "MLLM",
    "AnswerTokenError",
    "CaptionLimit",
    "ConvolutionalVisionConfig",
    "ConvolutionalVisionModel",
    "Features",
    "ImageInputs",
    "KvLayout",
    "KvShape",
    "LayerState",
    "LookAtAttention",
    "Prefilled",
    "Prompt",
    "PromptTooLongError",
    "Prompting",
    "ReadStates",
    "StateShape",
    "UnsupportedModelError",
    "UnusableImageError",
    "WriteKv",
    "check_reader",
    "checked_caption_tokens",
    "common_prefix_length",
    "company_problem",
    "encode_picture",
    "is_plain_product",
    "looking_at_attention",
    "merge_settings",
    "resolve_date",
    "resolve_model_dtype",
    "too_long",
    "warn_of_mixed_rows",
]
