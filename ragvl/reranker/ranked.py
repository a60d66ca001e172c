"""What a reranker returns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ragvl.data.document import Document, DocumentLike


def relevance_order(
    raw: Sequence[float], prior: Sequence[float] | np.ndarray | None = None
) -> list[int]:
    """Places of documents, the most relevant first.

    By raw scores, of which fewer are equal than of probabilities near 1. Equal ones stay in the
    order that they have, the retriever's; those without a score, which are NaN, come last.

    Args:
        raw: a raw score a document.
        prior: what is added to each; nothing if None.
    """
    total = np.asarray(raw, np.float64)
    if prior is not None:
        total = total + np.asarray(prior, np.float64)
    return np.argsort(-total, kind="stable").tolist()


def place_prior(count: int, weight: float) -> list[float]:
    """What a retriever's order adds to the raw scores of its `count` documents, the best first.

    The one in place p has log-odds `-weight * ln p`: those of a gold document, where it stands in
    place p with a probability proportional to `p ** -weight`. Places, unlike a retriever's scores,
    mean the same for every index, fusion and kind of document.

    Args:
        count: how many documents.
        weight: 0 or more; 0 adds nothing.
    """
    return [-weight * math.log(place) for place in range(1, count + 1)]


@dataclass(frozen=True)
class RankedDocument(Mapping[str, Any]):
    """A document after reranking.

    It is also a mapping with the keys of sentence-transformers' `CrossEncoder.rank`: `corpus_id`,
    which is `index`, `score`, and with `return_documents` `text`, which is `given`.

    Attributes:
        index: its place in the list that was given.
        document: the document.
        score: relevance, the sigmoid of `raw`: the probability of Yes against No; NaN if it was
            skipped.
        raw: the raw score: the log-odds of Yes against No, or what the score network gave.
        kept: whether the score reaches the threshold.
        given: with `return_documents`, what stood in the list; else None.
    """

    index: int
    document: Document
    score: float
    raw: float
    kept: bool
    given: DocumentLike | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, key: str) -> Any:
        values = {"corpus_id": self.index, "score": self.score, "text": self.given}
        if key not in self._keys():
            raise KeyError(f"{key!r}; this ranked document has the keys {self._keys()}")
        return values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def _keys(self) -> tuple[str, ...]:
        return ("corpus_id", "score") if self.given is None else ("corpus_id", "score", "text")


@dataclass(frozen=True)
class ScoredPair:
    """What a pair's prompt gave, and how long it is.

    Attributes:
        score: relevance, the sigmoid of `raw`.
        raw: the raw score; see `RankedDocument`.
        num_tokens: how many tokens the prompt has.
        num_cached: how many of these were cached, and not computed in this call.
    """

    score: float
    raw: float
    num_tokens: int
    num_cached: int


@dataclass(frozen=True)
class WarmReport:
    """What `Reranker.warm` did.

    Attributes:
        built: documents whose prefix was computed.
        known: documents whose prefix was there already.
        skipped: documents that cannot be used.
    """

    built: int
    known: int
    skipped: int
