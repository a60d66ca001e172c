"""What calls in the manner of sentence-transformers' CrossEncoder mean to a reranker.

Its inputs are taken as lists of documents or pairs, and its keywords are either taken or refused by
name, always before any work.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ragvl.data.document import Document
from ragvl.messages import quoted, shown

logger = logging.getLogger(__name__)

_IN_A_LIST = "put it into a list"
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
        keywords: those that the method does not have itself.
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


def listed_documents(documents: object) -> list[Any]:
    """The items of a list of documents, or of what stands for one.

    Taken are lists, tuples, iterators, one-dimensional arrays of paths, a table's column, and
    arrays of pictures (N, H, W, C).

    Raises:
        TypeError: it is one document, or has no order; the message says so.
        ValueError: there are none.
    """
    refuse_one_document(documents)
    if isinstance(documents, np.ndarray | torch.Tensor):
        items = _listed_array(documents)
    else:
        items = _listed(documents, "documents")
    if not items:
        raise ValueError("documents is empty: there is nothing to rank")
    return items


def refuse_one_document(documents: object) -> None:
    """Refuses what could be iterated over and is one document, not several.

    Raises:
        TypeError: it is one, or cannot be iterated over; the message says what to do.
    """
    single = (Document, str, bytes, bytearray, memoryview, os.PathLike, Image.Image, io.IOBase)
    if isinstance(documents, single):
        kind = type(documents).__name__
        raise TypeError(f"documents is one document ({kind}) and no list: {_IN_A_LIST}")
    if isinstance(documents, Mapping):
        raise TypeError(f"documents is a mapping and no list; if it is one document, {_IN_A_LIST}")
    if not isinstance(documents, Iterable):
        raise TypeError(f"documents must be a list, not {type(documents).__name__}")


def _listed_array(array: np.ndarray | torch.Tensor) -> list[Any]:
    shape = tuple(array.shape)
    if array.ndim == 1 and (shape == (0,) or _holds_objects(array)):
        return array.tolist()
    if array.ndim == 4 and not _holds_objects(array):
        return list(array)
    if array.ndim in (2, 3) and not _holds_objects(array):
        raise TypeError(f"documents is one picture, an array of shape {shape}: {_IN_A_LIST}")
    raise TypeError(
        f"documents is an array ({array.dtype}, {shape}): expected paths in one dimension, or "
        "pictures (N, H, W, C)"
    )


def _holds_objects(array: np.ndarray | torch.Tensor) -> bool:
    """Whether its items are Python's; not of bytes, since such an array drops zeros at an end."""
    return isinstance(array, np.ndarray) and array.dtype.kind in "UO"


def _listed(items: object, name: str) -> list[Any]:
    if isinstance(items, set | frozenset):
        raise TypeError(f"{name} must have an order, which a {type(items).__name__} has not")
    if hasattr(items, "columns") and hasattr(items, "shape"):
        raise TypeError(f"{name} is a table: give one of its columns")
    if not isinstance(items, Iterable):
        raise TypeError(f"{name} must be a list, not {type(items).__name__}")
    return list(items)


def as_document(item: Any, where: str) -> Document:
    """A document from what CrossEncoder calls one: a picture, or {"image": ..., "text": ...}.

    Raises:
        TypeError: it is something else, or has other keys; the message begins with `where`.
        ValueError: it has no picture.
    """
    try:
        if not (isinstance(item, Mapping) and {"image", "text"}.intersection(item)):
            return Document.of(item)
        if others := set(item) - {"image", "text"}:
            raise TypeError(f"unknown keys {shown(sorted(map(str, others)))}")
        if item.get("image") is None:
            raise ValueError("it has no picture, and a reranker needs one")
        return Document(item["image"], caption=item.get("text"))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def listed_pairs(pairs: object, name: str) -> list[Sequence[Any]]:
    """(query, document) pairs from a list, an iterator, an array (N, 2) or a table of two columns.

    Raises:
        TypeError: it is none of these, or holds something that is no pair; the message says where.
    """
    if isinstance(pairs, str | bytes | Mapping):
        raise TypeError(f"{name} must be a list of pairs, not {type(pairs).__name__}")
    if isinstance(pairs, np.ndarray | torch.Tensor):
        if not _holds_objects(pairs) and 0 not in pairs.shape:
            raise TypeError(f"{name} is an array of {pairs.dtype}, not of pairs (query, document)")
        items = pairs.tolist()
    elif hasattr(pairs, "itertuples"):
        items = list(pairs.itertuples(index=False, name=None))
    else:
        items = _listed(pairs, name)
    return [_as_pair(item, f"{name}[{i}]") for i, item in enumerate(items)]


def _as_pair(item: Any, where: str) -> Sequence[Any]:
    if isinstance(item, np.ndarray) and _holds_objects(item) and item.ndim == 1:
        item = item.tolist()
    if not isinstance(item, list | tuple):
        raise TypeError(
            f"{where} must be a pair (query, document), not {type(item).__name__}; of one pair "
            "alone, make a list"
        )
    if len(item) != 2:
        raise TypeError(f"{where} must be a pair (query, document), and has {len(item)} parts")
    return item


def is_single_pair(inputs: object) -> bool:
    """Whether CrossEncoder would take `inputs` for one pair: it begins with a text."""
    if isinstance(inputs, np.ndarray):
        return inputs.ndim == 1 and inputs.size > 0 and isinstance(inputs[0], str)
    return isinstance(inputs, list | tuple) and len(inputs) > 0 and isinstance(inputs[0], str)
