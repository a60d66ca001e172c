"""What a retriever keeps its documents and their vectors in, and which of them are searched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ragvl.data.document import Document, checked_tags
from ragvl.retriever.encoding import text_of

Hits = list[tuple[str, float]]
"""Documents' ids with their similarity, the most similar first."""


def searchable(text: str) -> str:
    """A text as others are looked for in it: in lower case.

    A backslash is another character there, since databases differ in what they take it for.
    """
    return text.casefold().replace("\\", "\N{SET MINUS}")


@dataclass(frozen=True)
class Where:
    """Which documents are searched; a document must meet all that is said.

    Attributes:
        containing: what their captions or texts contain, in whatever case.
        tags: what they are all tagged with.

    Raises:
        TypeError: a field has another type.
        ValueError: a field holds an empty text, or nothing is said.
    """

    containing: str | None = None
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", checked_tags(self.tags))
        if self.containing is not None:
            if not isinstance(self.containing, str):
                raise TypeError(f"containing={self.containing!r}: it must be a string or None")
            if not self.containing.strip():
                raise ValueError("containing: the text is empty")
        elif not self.tags:
            raise ValueError("say which documents are searched: by containing, tags, or both")

    def matches(self, document: Document) -> bool:
        """Whether a document is one of them."""
        wanted = self.containing
        return set(self.tags) <= set(document.tags) and (
            wanted is None or searchable(wanted) in searchable(text_of(document))
        )


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        id: a document's id.
        score: its similarity.
        place: in the order in which documents were added.
    """

    id: str
    score: float
    place: int


def best(found: Iterable[Found], k: int) -> Hits:
    """The `k` best, as FAISS orders them; of those as good the first added are kept."""
    kept = sorted(found, key=lambda one: (-one.score, one.place))[:k]
    kept.sort(key=lambda one: (-one.score, -one.place))
    return [(one.id, one.score) for one in kept]


class VectorStore(Protocol):
    """Documents by id, each with a vector, which are searched by inner product."""

    def __len__(self) -> int:
        """How many documents there are."""

    @property
    def dim(self) -> int:
        """Length of the vectors."""

    @property
    def encoder_fingerprint(self) -> str:
        """Names the encoder that makes the vectors."""

    @property
    def documents(self) -> dict[str, Document]:
        """All documents by id, in the order in which they were added."""

    def get(self, ids: Iterable[str]) -> dict[str, Document]:
        """Those of the documents that are there, by id."""

    def check_new(self, documents: Mapping[str, Document]) -> None:
        """Raises what `add` would raise about `documents`, before there are vectors for them.

        Raises:
            DocumentError: one cannot be kept; the message names it.
            ValueError: an id is there already, or there are too few to begin with.
        """

    def check_document(self, id: str, document: Document) -> None:
        """Raises `DocumentError` if a document cannot be kept by that id."""

    def add(self, documents: Mapping[str, Document], vectors: np.ndarray) -> None:
        """Adds documents by new ids; all of them, or on an error none.

        Args:
            documents: new ones.
            vectors: (n, dim), floating, in the same order.

        Raises:
            DocumentError, ValueError: see `check_new`; or the vectors have another shape, or are
                not finite.
        """

    def remove(self, ids: Sequence[str]) -> None:
        """Removes documents; all of them, or on an error none.

        Raises:
            TypeError: `ids` is a single string.
            ValueError: an id is not there.
        """

    def search(
        self, queries: np.ndarray, k: int, where: Where | None = None, *, in_turn: bool = False
    ) -> list[Hits]:
        """The `k` best documents for each query, the best first; fewer where there are fewer.

        Of documents that are as good, the one that was added last comes first.

        Args:
            queries: (n, dim), floating.
            k: how many; past the end is fine.
            where: search these only.
            in_turn: documents with a picture and documents of text take turns, see `taking_turns`.

        Raises:
            ValueError: `k` is below 1, or the queries have another shape or are not finite.
        """

    def save(self, place: str | Path, about: Mapping[str, Any]) -> None:
        """Makes what there is the index of that place, for good, with `about` beside it."""

    def close(self) -> None:
        """Lets go of what is open, and of what was never saved."""
