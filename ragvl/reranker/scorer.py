"""What computes raw scores: `CachedPrefixes`, or `WholePrompts` where no prefix can be kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.data.query import Query
from ragvl.mllm import PromptTooLongError
from ragvl.prefix_cache import PrefixTooLargeError

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
Refuse = Callable[[Sequence[int], Exception], None]
"""Is called with the places of pairs, or of documents, and the error that they end in."""

_OF_A_DOCUMENT = DocumentError, PromptTooLongError, PrefixTooLargeError, FloatingPointError


def refuse_by(on_error: OnError) -> Refuse:
    """Raises an error, or logs it, once, if it is a document's: that is skipped."""
    logged: set[str] = set()

    def log(_places: Sequence[int], error: Exception) -> None:
        if not isinstance(error, _OF_A_DOCUMENT):
            raise error
        if str(error) not in logged:
            logger.warning("skipped: %s", error)
            logged.add(str(error))

    return raise_error if on_error == "raise" else log


def raise_error(_places: Sequence[int], error: Exception) -> None:
    """Raises it."""
    raise error


@dataclass(frozen=True)
class Scored:
    """Some pairs' raw scores.

    Attributes:
        indices: which pairs, B of them.
        raw: their raw scores (B,).
        lengths: how many tokens their prompts have.
        cached: how many of these were there before the call, and were not computed.
    """

    indices: Sequence[int]
    raw: Tensor
    lengths: Sequence[int]
    cached: Sequence[int]


class Scorer(Protocol):
    """Raw scores of (query, document) pairs by one model, as it is, and one template."""

    def score(
        self, pairs: Sequence[tuple[Query, Document]], batch_size: int | None, refuse: Refuse
    ) -> Iterator[Scored]:
        """Raw scores, in batches; left out are pairs that are refused.

        Args:
            pairs: what to score.
            batch_size: at most so many prompts in one forward pass.
            refuse: takes the DocumentError or PromptTooLongError of pairs; it may raise it.
        """

    def warm(self, documents: Iterable[Document], refuse: Refuse) -> Iterator[tuple[int, bool]]:
        """Computes what documents' scores share.

        For each, in any order, its place and whether that was known; left out are those that are
        refused.

        Raises:
            ValueError: nothing can be kept from query to query; the message says why.
        """

    def is_warm(self, document: Document, instruction: str | None, /) -> bool:
        """Whether nothing that its scores share would have to be computed.

        Raises:
            DocumentError: a picture of it cannot be read.
        """
