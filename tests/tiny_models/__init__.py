"""Tiny random checkpoints of every supported architecture, written as a user would find them.

`build_tiny("qwen2_vl", folder)` writes a configuration, weights, tokenizer, processor settings and
a chat template shaped like the published ones, in about a second and a few hundred kilobytes.
Pictures of different shape give different numbers of tokens wherever the architecture does that.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import torch

from tiny_models import assorted, eight, hybrid, native, refused, tiled
from tiny_models.parts import byte_level_tokenizer, sentencepiece_tokenizer, spread

__all__ = [
    "ARCHITECTURES",
    "HYBRIDS",
    "MORE_ARCHITECTURES",
    "REFUSED",
    "WHOLE",
    "build_tiny",
    "byte_level_tokenizer",
    "sentencepiece_tokenizer",
    "with_chat_template_changed",
]

_BUILDERS = (
    eight.BUILDERS
    | tiled.BUILDERS
    | native.BUILDERS
    | assorted.BUILDERS
    | hybrid.BUILDERS
    | refused.BUILDERS
)
# PaliGemma reads its prompt in both directions and has no chat template; it is scored, not cached.
WHOLE = ("paligemma",)
ARCHITECTURES = tuple(name for name in eight.BUILDERS if name not in WHOLE)
# Of those whose layers carry a state from token to token: one of each kind
HYBRIDS = ("qwen3_5", "llava_lfm2")
# Tested by tests/reranker/test_architectures.py, most of them there alone
MORE_ARCHITECTURES = (
    *tiled.BUILDERS,
    *native.BUILDERS,
    *assorted.BUILDERS,
    *hybrid.BUILDERS,
)
REFUSED = tuple(refused.BUILDERS)


def build_tiny(architecture: str, folder: Path, seed: int = 0) -> Path:
    """Writes a random checkpoint of `architecture` into `folder`, and returns the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = _BUILDERS[architecture]()
        spread(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def into_cache(folder: Path, repo_id: str, cache: Path, revision: str = "main") -> None:
    """As the hub's client leaves a repository in its cache."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    commit = hashlib.sha1(revision.encode()).hexdigest()
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)


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
