"""What a reranker has of sentence-transformers' CrossEncoder: `predict`, and its keywords.

A keyword is taken, or refused by name before any work.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ragvl.data.query import Query, QueryLike
from ragvl.messages import quoted, shown
from ragvl.mllm import MLLM
from ragvl.reranker.arguments import is_single_pair, listed_pairs
from ragvl.reranker.heads import ACTIVATIONS, relevance
from ragvl.reranker.templates import Template

logger = logging.getLogger(__name__)

_REFUSED = {
    "activation_fn": "a score is the sigmoid of the raw score; a result has both, score and raw",
    "apply_softmax": "relevance is the softmax over Yes and No already",
    "device": "the model stays where it is, on {device}; load one with from_pretrained(device=)",
    "pool": "a reranker works in its own process",
    "chunk_size": "a reranker works in its own process",
    "processing_kwargs": "a processor is set up when it is loaded, with processor_settings=",
}
_OLD_NAMES = {"activation_fct": "activation_fn"}
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tiff", ".webp")
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


def take_instruction(method: str, template: Template, keywords: dict[str, Any]) -> str | None:
    """The instruction that CrossEncoder's `prompt` or `prompt_name` means; both are taken out.

    Args:
        method: whose keywords they are.
        template: the reranker's.
        keywords: what the method was given and does not have itself.

    Raises:
        ValueError: the template has no place for one, or knows none of that name.
    """
    prompt, name = keywords.pop("prompt", None), keywords.pop("prompt_name", None)
    if prompt is None and name is None:
        return None
    keyword = "prompt_name" if prompt is None else "prompt"
    problem = f"{method}({keyword}=) cannot be heeded: the template has"
    if not template.takes_instruction:
        raise ValueError(f"{problem} no place for an instruction")
    if prompt is None:
        prompt = template.instruction_named(name)
    if not prompt and template.instruction:
        raise ValueError(f"{problem} an instruction of its own, and it would be none")
    return prompt or None


def instructed(query: QueryLike, instruction: str | None) -> QueryLike:
    """`query` with an instruction, unless there is none or it has its own."""
    if instruction is None:
        return query
    asked = Query.of(query)
    return asked if asked.instruction else asked.instructed(instruction)


def _query(query: Any) -> Any:
    """What CrossEncoder takes for a query: a text is a picture if it names one."""
    return {"image": query} if isinstance(query, str) and _names_picture(query) else query


def _document(document: Any) -> Any:
    """What CrossEncoder takes for a document: a text, unless it names a picture or any file."""
    if not isinstance(document, str) or _names_picture(document) or os.path.isfile(document):
        return document
    is_path = document.lower().endswith(_PICTURE_SUFFIXES) and len(document.split()) == 1
    return document if is_path else {"text": document}


def _names_picture(text: str) -> bool:
    if text[:5].lower() == "data:":
        return True
    named = text.lower().endswith(_PICTURE_SUFFIXES)
    is_url = text.startswith(("http://", "https://", "file://")) and " " not in text
    return named and (is_url or os.path.isfile(text))


def _changes_nothing(name: str, value: object, device: torch.device) -> bool:
    if value is None or value is False:
        return True
    if name == "device" and isinstance(value, str | torch.device):
        return torch.device(value) == device
    return name == "activation_fn" and _is_sigmoid(value)


def _is_sigmoid(function: object) -> bool:
    return isinstance(function, torch.nn.Sigmoid) or function is torch.sigmoid


def _activated(raw: Tensor, activation_fn: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Raw scores (n,) as `activation_fn` has them."""
    if activation_fn is None or _is_sigmoid(activation_fn):
        return relevance(raw)
    with torch.inference_mode():
        scores = activation_fn(raw)
    if not isinstance(scores, Tensor) or scores.shape != raw.shape:
        raise ValueError(
            f"predict(activation_fn={shown(activation_fn)}) does not give a score for each of the "
            f"{len(raw)} raw scores"
        )
    return scores


class _Scores(Protocol):
    mllm: MLLM
    template: Template
    activation: str

    def score(
        self, pairs: Iterable[Any], *, batch_size: int | None, progress: bool, raw: bool
    ) -> Tensor: ...


class CrossEncoderDialect:
    """Lets a reranker be called as sentence-transformers' CrossEncoder."""

    def predict(
        self: _Scores,
        inputs: Iterable[Any] | None = None,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        sentences: Iterable[Any] | None = None,
        **others: Any,
    ) -> np.ndarray | np.float32 | Tensor | list[Tensor]:
        """`score` under the name and types of sentence-transformers' `CrossEncoder.predict`.

        Args:
            inputs: (query, document) pairs, or one such pair. A string on either side is a text,
                unless it names a picture.
            batch_size: as in `rank`.
            show_progress_bar: show a bar when there are many.
            activation_fn: takes raw scores (n,), float32 on the CPU, to those that are returned:
                `torch.nn.Identity()` leaves them raw. By default what the checkpoint's files in
                sentence-transformers' format say, or else the sigmoid.
            convert_to_numpy: return an array; with False, a list of tensors.
            convert_to_tensor: return one tensor, on the model's device; goes before the other.
            sentences: CrossEncoder's former name for `inputs`.
            others: its other keywords. `prompt`, or the `prompt_name` of one that the checkpoint
                brings, is the instruction of queries that have none; the rest is refused where it
                would change something.

        Returns:
            The scores (n,), float32; of one pair, its score.

        Raises:
            ValueError, TypeError, ImageError, FloatingPointError: see `rank` and `score`; also an
                `activation_fn` that is no function, or does not give a score a pair.
        """
        if "activation_fct" in others:  # its former name
            activation_fn = others.pop("activation_fct")
        if activation_fn is not None and not callable(activation_fn):
            raise TypeError(f"predict(activation_fn={shown(activation_fn)}): expected a function")
        if activation_fn is None and self.activation != "sigmoid":
            activation_fn = ACTIVATIONS[self.activation]
        instruction = take_instruction("predict", self.template, others)
        if others:
            check_keywords("predict", others, self.mllm.device)
        given = sentences if inputs is None else inputs
        single = is_single_pair(given)
        pairs = [
            (instructed(_query(query), instruction), _document(document))
            for query, document in listed_pairs([given] if single else given, "inputs")
        ]
        progress = bool(show_progress_bar)
        raw = self.score(pairs, batch_size=batch_size, progress=progress, raw=True)
        scores = _activated(raw, activation_fn)
        results: Any = scores.numpy()
        if convert_to_tensor:
            results = scores.to(self.mllm.device)
        elif not convert_to_numpy:
            results = list(scores.to(self.mllm.device))
        return results[0] if single else results
