"""What any Hugging Face image-text-to-text model looks like to the rest of ragvl."""

from __future__ import annotations

from ragvl.mllm.answers import AnswerTokenError
from ragvl.mllm.captions import CaptionLimit, checked_caption_tokens
from ragvl.mllm.chat_template import resolve_date
from ragvl.mllm.decoder import Prefilled, WriteKv
from ragvl.mllm.head import FinalNorm
from ragvl.mllm.inputs import (
    ImageInputs,
    Prompt,
    PromptTooLongError,
    UnusableImageError,
    common_prefix_length,
)
from ragvl.mllm.loading import UnsupportedModelError, check_reader
from ragvl.mllm.mllm import MLLM
from ragvl.mllm.pages import (
    PAGE_TOKENS,
    Compression,
    KvLayout,
    PagePool,
    num_pages,
    page_table,
    pages_in_turn,
)
from ragvl.mllm.processors import merge_settings

__all__ = [
    "MLLM",
    "PAGE_TOKENS",
    "AnswerTokenError",
    "CaptionLimit",
    "Compression",
    "FinalNorm",
    "ImageInputs",
    "KvLayout",
    "PagePool",
    "Prefilled",
    "Prompt",
    "PromptTooLongError",
    "UnsupportedModelError",
    "UnusableImageError",
    "WriteKv",
    "check_reader",
    "checked_caption_tokens",
    "common_prefix_length",
    "merge_settings",
    "num_pages",
    "page_table",
    "pages_in_turn",
    "resolve_date",
]
