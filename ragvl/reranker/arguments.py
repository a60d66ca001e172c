"""What callers hand over, as queries, documents and pairs, or a refusal that says where it stands.

Lists may be given in the manner of sentence-transformers' CrossEncoder: arrays, columns, tables.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ragvl.arguments import check_characters, checked_count
from ragvl.data.document import Document, DocumentLike
from ragvl.data.query import Query, QueryLike
from ragvl.messages import shown
from ragvl.reranker.thresholds import Threshold, check_threshold

_IN_A_LIST = "put it into a list"


def checked_request(
    query: QueryLike, documents: Iterable[DocumentLike], top_k: int | None, threshold: Threshold
) -> list[Document]:
    """The documents of a call of `rank`, after a look at what can be wrong without a model.

    Raises:
        TypeError, ValueError: see `Reranker.rank`.
        ImageError: a picture's file is not there, or is none; the message names the document.
    """
    check_threshold(threshold)
    for picture in Query.of(query).pictures:
        picture.check_file()
    if top_k is not None:
        checked_count("top_k", top_k)
    checked = as_documents(listed_documents(documents))
    for document in checked:
        document.check_files()
    return checked


def checked_query(query: str) -> str:
    """A query that can be scored.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, or holds half a character.
    """
    if not isinstance(query, str):
        raise TypeError(f"a query must be a string, not {type(query).__name__}")
    if not query.strip():
        raise ValueError("the query is empty")
    check_characters(query)
    return query


def check_on_error(on_error: str) -> None:
    """Refuses what is neither "raise" nor "skip"."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={shown(repr(on_error))}: expected 'raise' or 'skip'")


def checked_prior(prior: Sequence[float], count: int) -> np.ndarray:
    """What is added to the raw scores of so many documents, (count,) float64.

    Raises:
        ValueError: they are not as many, or one of them is no finite number.
    """
    values = np.asarray(prior, np.float64)
    if values.shape != (count,):
        raise ValueError(f"prior: {values.size} numbers for {count} documents")
    if not np.isfinite(values).all():
        raise ValueError("prior: expected a finite number for each document")
    return values


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


def as_documents(items: Sequence[Any]) -> list[Document]:
    """The documents of a list that `listed_documents` gave; see `as_document`."""
    return [as_document(item, place) for place, item in enumerate(items)]


def as_document(item: Any, place: int, name: str = "documents") -> Document:
    """A document from what CrossEncoder calls one: a picture, or {"image": ..., "text": ...}.

    A mapping with a text alone is a text; with a picture too, a picture and its caption, in the
    mapping's order. Of several pictures or texts, in a list, it is one document of parts.

    Args:
        item: it, or a document.
        place: where it stands in the list `name`, for messages.
        name: the list's name.

    Raises:
        TypeError: it is something else, or has other keys; the message says where.
        ValueError: it is empty.
    """
    if isinstance(item, Document):
        return item
    try:
        if not (isinstance(item, Mapping) and {"image", "text"}.intersection(item)):
            return Document.of(item)
        if others := set(item) - {"image", "text"}:
            raise TypeError(f"unknown keys {shown(sorted(map(str, others)))}")
        return _of_mapping(item)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}[{place}]: {error}") from error


def _of_mapping(item: Mapping[str, Any]) -> Document:
    image, text = item.get("image"), item.get("text")
    if isinstance(image, list | tuple) or isinstance(text, list | tuple):
        several = [
            {kind: each}
            for kind, given in item.items()
            for each in (given if isinstance(given, list | tuple) else [given])
            if given is not None
        ]
        return Document(parts=several)
    if image is None:
        return Document(text=text)
    document = Document(image, caption=text)
    return document.with_caption_first() if next(iter(item)) == "text" else document


def checked_pairs(pairs: object) -> list[tuple[Query, Document]]:
    """(query, document) pairs that can be scored; see `listed_pairs`.

    A query that stands in several pairs becomes one object.

    Raises:
        TypeError, ValueError: see `listed_pairs`, `Query.of` and `as_document`.
    """
    listed = listed_pairs(pairs, "pairs")
    queries: dict[int, Query] = {}
    for place, (query, _) in enumerate(listed):
        if id(query) not in queries:
            queries[id(query)] = _as_query(query, place)
    return [
        (queries[id(query)], as_document(document, place, "pairs"))
        for place, (query, document) in enumerate(listed)
    ]


def _as_query(item: Any, place: int) -> Query:
    try:
        return Query.of(item)
    except (TypeError, ValueError) as error:
        raise type(error)(f"pairs[{place}]: {error}") from error


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
    """Whether CrossEncoder would take `inputs` for one pair: it begins with no pair."""
    if isinstance(inputs, np.ndarray):
        return inputs.ndim == 1 and inputs.size > 0 and isinstance(inputs[0], str)
    if not isinstance(inputs, list | tuple) or len(inputs) == 0:
        return False
    first = inputs[0]
    return isinstance(first, str | Query | Mapping | Image.Image | os.PathLike)
