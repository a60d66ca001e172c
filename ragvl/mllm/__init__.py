"""What any Hugging Face image-text-to-text model looks like to the rest of ragvl."""

from __future__ import annotations

from ragvl.mllm.answers import AnswerTokenError
from ragvl.mllm.head import FinalNorm
from ragvl.mllm.inputs import ImageInputs, Prompt, PromptTooLongError, common_prefix_length
from ragvl.mllm.loading import UnsupportedModelError
from ragvl.mllm.mllm import MLLM

__all__ = [
    "MLLM",
    "AnswerTokenError",
    "FinalNorm",
    "ImageInputs",
    "Prompt",
    "PromptTooLongError",
    "UnsupportedModelError",
    "common_prefix_length",
]
