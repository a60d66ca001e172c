"""What computes raw scores: `CachedPrefixes`, or `WholePrompts` where no prefix can be kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol

from torch import Tensor

from ragvl.data.document import Document
from ragvl.data.query import Query

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


def skip(error: Exception, on_error: OnError) -> None:
    """Raises `error`, whose message names a document, or logs that the document is skipped."""
    if on_error == "raise":
        raise error
    logger.warning("skipped: %s", error)


class Scorer(Protocol):
    """Raw scores of (query, document) pairs by one model, as it is, and one template."""

    def score(
        self, pairs: Sequence[tuple[Query, Document]], batch_size: int | None, on_error: OnError
    ) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Indices of pairs with their raw scores (B,), in batches; skipped pairs are left out.

        Raises:
            DocumentError, PromptTooLongError: of a pair, with `on_error="raise"`.
        """

    def warm(self, documents: Iterable[Document], on_error: OnError) -> Iterator[str]:
        """Computes what documents' scores share; for each "built", "known" or "skipped".

        Raises:
            ValueError: nothing can be kept from query to query; the message says why.
            DocumentError, PromptTooLongError: of a document, with `on_error="raise"`.
        """
