"""An MLLM in other processes: loaded again there, or without its weights, to make prompts."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ragvl.files import expand_user


@dataclass(frozen=True)
class NoWeights:
    """Stands for a model where prompts are made and nothing is computed.

    Attributes:
        config: the model's.
        dtype: of its weights.
        device: where batches are made.
    """

    config: PreTrainedConfig
    dtype: torch.dtype
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Source:
    """Where a model was loaded from, so that another process can load it again.

    Attributes:
        path: a folder's whole path, or a hub id.
        options: what else `MLLM.from_pretrained` was given.
    """

    path: str
    options: dict[str, Any]

    @classmethod
    def of(cls, path: str | Path, options: dict[str, Any]) -> Source:
        """The same for a process that works in another folder."""
        folder = expand_user(path)
        return cls(os.path.abspath(folder) if os.path.isdir(folder) else str(path), options)


HOW_TO_SHARE = (
    "a model that was not loaded with from_pretrained cannot be sent to another process: save it "
    "with save_pretrained and load it with from_pretrained there (a PrefixCache with a folder is "
    "shared by all that name the folder)"
)
