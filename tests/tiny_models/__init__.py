"""Tiny random checkpoints of every supported architecture, written as a user would find them.

`build_tiny("qwen2_vl", folder)` writes a configuration, weights, tokenizer, processor settings and
a chat template shaped like the published ones, in about a second and a few hundred kilobytes.
Pictures of different shape give different numbers of tokens wherever the architecture does that.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import torch
from torch import nn

from tiny_models import eight
from tiny_models.parts import byte_level_tokenizer, sentencepiece_tokenizer

__all__ = [
    "ARCHITECTURES",
    "build_tiny",
    "byte_level_tokenizer",
    "sentencepiece_tokenizer",
    "with_chat_template_changed",
]

_BUILDERS = eight.BUILDERS
# PaliGemma reads its prompt in both directions and has no chat template; it is scored, not cached.
ARCHITECTURES = tuple(name for name in eight.BUILDERS if name != "paligemma")


def build_tiny(architecture: str, folder: Path, seed: int = 0) -> Path:
    """Writes a random checkpoint of `architecture` into `folder`, and returns the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = _BUILDERS[architecture]()
        _spread(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _spread(model: nn.Module) -> None:
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


def with_chat_template_changed(folder: Path, to: Path, *changes: tuple[str, str]) -> Path:
    """A checkpoint whose chat template has some texts replaced."""
    copy = shutil.copytree(folder, to)
    file = copy / "chat_template.jinja"
    template = file.read_text()
    for old, new in changes:
        assert old in template
        template = template.replace(old, new)
    file.write_text(template)
    return copy
