"""What an encoder is to the retriever, and what encoders have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch

from ragvl.arguments import checked_count
from ragvl.checkpoints import model_folder
from ragvl.data.document import Document, DocumentLike
from ragvl.data.images import DocumentError
from ragvl.data.query import Query, QueryLike

Item = TypeVar("Item")


class Encoder(Protocol):
    """Makes unit vectors of documents and queries, which are compared by their cosine.

    Attributes:
        reads_pictures: whether it looks at pictures; else it reads captions and texts.
        origin: what `from_pretrained` loaded it by, as its arguments; empty if it did not.
    """

    reads_pictures: bool
    origin: Mapping[str, str]

    @property
    def dim(self) -> int:
        """Length of the vectors."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> str:
        """What it computes in."""

    @property
    def fingerprint(self) -> str:
        """Names weights and settings: vectors of the same fingerprint can be compared."""

    def check_document(self, document: Document) -> None:
        """Raises `DocumentError` if the document cannot be encoded."""

    def encode_documents(
        self, documents: Sequence[DocumentLike], *, batch_size: int = 32, progress: bool = True
    ) -> np.ndarray:
        """Unit vectors (n, dim), float32."""

    def encode_queries(self, queries: Sequence[QueryLike]) -> np.ndarray:
        """Unit vectors (n, dim), float32."""


def text_of(document: Document) -> str:
    """A document's caption, or its texts; empty where there is none."""
    return "\n".join(part for part in document.parts if isinstance(part, str))


def check_content(document: Document) -> None:
    """Refuses a document that says nothing.

    Raises:
        DocumentError: it is one.
    """
    if not document.parts:
        raise DocumentError(f"{document.name}: there is nothing to find it by")


def checked_queries(queries: Sequence[QueryLike]) -> list[Query]:
    """Queries of a text, a picture, or both.

    Raises:
        TypeError: `queries` is one query, or an item is none.
        ValueError: a query is empty.
    """
    if isinstance(queries, str | Query):
        raise TypeError("queries must be a sequence of them, not one; write [query]")
    every = []
    for i, query in enumerate(queries):
        try:
            every.append(Query.of(query))
            if not every[-1].parts:
                raise ValueError("the query is empty: give it a text or an image")
        except (TypeError, ValueError) as error:
            raise type(error)(f"queries[{i}]: {error}") from error
    return every


def checked_texts(texts: Sequence[str]) -> list[str]:
    """Texts that say something.

    Raises:
        TypeError: `texts` is a single string, or an item is not a string.
        ValueError: a text is empty.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, not one string; write [text]")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i} must be a string, not {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"text {i} is empty")
    return list(texts)


def origin_of(
    path: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    cache_dir: str | Path | None = None,
) -> dict[str, str]:
    """What finds a checkpoint again from any folder: see `Encoder.origin`."""
    folder = model_folder(path, subfolder=subfolder, cache_dir=cache_dir)
    if folder is not None:
        return {"path": os.path.abspath(folder)}
    given = {"path": str(path), "revision": revision, "subfolder": subfolder}
    return {name: value for name, value in given.items() if value is not None}


def batches(items: Sequence[Item], batch_size: int) -> Iterator[tuple[int, Sequence[Item]]]:
    """(index of the first item, items), batch after batch.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    batch_size = checked_count("batch_size", batch_size)
    return ((i, items[i : i + batch_size]) for i in range(0, len(items), batch_size))


def check_finite(vector: np.ndarray, name: str) -> None:
    """Refuses a vector that means nothing.

    Args:
        vector: (dim,).
        name: of what it is made of, for the message.

    Raises:
        FloatingPointError: a number of it is not finite.
    """
    if not np.isfinite(vector).all():
        raise FloatingPointError(_not_finite(name))


def unit(vector: np.ndarray, name: str) -> np.ndarray:
    """The vector of length 1 in the same direction.

    Raises:
        FloatingPointError: it has none.
    """
    length = np.linalg.norm(vector)
    if not length > 0:  # NaN too
        raise FloatingPointError(_not_finite(name))
    return vector / length


def _not_finite(name: str) -> str:
    return (
        f"the vector of {name} is not finite: the weights hold NaN, or activations overflow in "
        "this dtype (try dtype='float32')"
    )
