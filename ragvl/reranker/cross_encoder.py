"""What a reranker has of sentence-transformers' CrossEncoder: `predict`, and its keywords.

A keyword is taken, or refused by name before any work.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ragvl.messages import quoted
from ragvl.mllm import MLLM
from ragvl.reranker.arguments import is_single_pair, listed_pairs

logger = logging.getLogger(__name__)

_REFUSED = {
    "prompt": "what is asked is the reranker's template, see Reranker(template=)",
    "prompt_name": "what is asked is the reranker's template, see Reranker(template=)",
    "activation_fn": "a score is relevance, the sigmoid of the log-odds",
    "apply_softmax": "relevance is the softmax over Yes and No already",
    "device": "the model stays where it is, on {device}; load one with from_pretrained(device=)",
    "pool": "a reranker works in its own process",
    "chunk_size": "a reranker works in its own process",
    "processing_kwargs": "a processor is set up when it is loaded, with processor_settings=",
}
_OLD_NAMES = {"activation_fct": "activation_fn"}
# Without an effect in sentence-transformers as well
_NO_EFFECT = {"num_workers", "convert_to_numpy", "convert_to_tensor"}


def check_keywords(method: str, keywords: Mapping[str, Any], device: torch.device) -> None:
    """Refuses keywords of CrossEncoder's that would change something and cannot.

    Their defaults, which change nothing, are taken.

    Args:
        method: whose keywords they are.
        keywords: what the method was given and does not have itself.
        device: the model's.

    Raises:
        ValueError: a value that cannot be heeded; the message says why.
        TypeError: CrossEncoder has no such keyword.
    """
    for name, value in keywords.items():
        known = _OLD_NAMES.get(name, name)
        if known in _NO_EFFECT:
            logger.warning("%s(%s=) has no effect", method, name)
        elif known not in _REFUSED:
            raise TypeError(f"{method}() has no keyword {quoted(name)}")
        elif not _changes_nothing(known, value, device):
            why = _REFUSED[known].format(device=device)
            raise ValueError(f"{method}({name}=) cannot be heeded: {why}")


def _changes_nothing(name: str, value: object, device: torch.device) -> bool:
    if value is None or value is False:
        return True
    if name == "device" and isinstance(value, str | torch.device):
        return torch.device(value) == device
    is_sigmoid = isinstance(value, torch.nn.Sigmoid) or value is torch.sigmoid
    return name == "activation_fn" and is_sigmoid


class _Scores(Protocol):
    mllm: MLLM

    def score(self, pairs: Iterable[Any], *, batch_size: int | None, progress: bool) -> Tensor: ...


class CrossEncoderDialect:
    """Lets a reranker be called as sentence-transformers' CrossEncoder."""

    def predict(
        self: _Scores,
        inputs: Iterable[Any] | None = None,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        sentences: Iterable[Any] | None = None,
        **others: Any,
    ) -> np.ndarray | np.float32 | Tensor | list[Tensor]:
        """`score` under the name and types of sentence-transformers' `CrossEncoder.predict`.

        Args:
            inputs: (query, document) pairs, or one such pair.
            batch_size: as in `rank`.
            show_progress_bar: show a bar when there are many.
            convert_to_numpy: return an array; with False, a list of tensors.
            convert_to_tensor: return one tensor, on the model's device; goes before the other.
            sentences: CrossEncoder's former name for `inputs`.
            others: its other keywords, refused where they would change something.

        Returns:
            The scores (n,), float32; of one pair, its score.

        Raises:
            ValueError, TypeError, ImageError, FloatingPointError: see `rank` and `score`.
        """
        if others:
            check_keywords("predict", others, self.mllm.device)
        given = sentences if inputs is None else inputs
        single = is_single_pair(given)
        pairs = listed_pairs([given] if single else given, "inputs")
        scores = self.score(pairs, batch_size=batch_size, progress=bool(show_progress_bar))
        results: Any = scores.numpy()
        if convert_to_tensor:
            results = scores.to(self.mllm.device)
        elif not convert_to_numpy:
            results = list(scores.to(self.mllm.device))
        return results[0] if single else results
