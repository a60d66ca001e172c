"""One call of the model for pieces of several jobs, none of which another's failure may harm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ragvl.mllm import PromptTooLongError
from ragvl.runtime import is_out_of_memory
from ragvl.server.errors import OutOfMemory
from ragvl.server.queue import Piece

logger = logging.getLogger(__name__)

Compute = Callable[[list[Any]], list[Any]]


class Passes:
    """Runs passes, and remembers how large one may be.

    Args:
        most: how many items a pass has where memory allows.
        note_halved: is called when memory runs out in a pass.

    Attributes:
        limit: how many items it may have now: less than `most` after memory ran out.
    """

    def __init__(self, most: int, note_halved: Callable[[], None] = lambda: None) -> None:
        self._most = most
        self._note_halved = note_halved
        self.limit = most

    def run(self, pieces: Sequence[Piece], compute: Compute) -> None:
        """Fills in the pieces' results, or the errors of their jobs.

        What fails in company is tried again job by job, so that a job has no other's error.

        Args:
            pieces: of jobs of one kind.
            compute: gives a result, or an exception, for each item.
        """
        items = [item for piece in pieces for item in piece.items]
        try:
            results = iter(self._halved(compute, items))
        except Exception as error:
            if len({piece.job for piece in pieces}) == 1:
                if not isinstance(error, PromptTooLongError):  # of which its client is told
                    logger.exception("a pass failed: so does its request")
                pieces[0].job.error = error
                return
            logger.exception("a pass failed: its requests are computed one by one")
        else:
            for piece in pieces:
                for place in piece.places:
                    piece.job.results[place] = next(results)
            self._grow(len(items))
            return
        for job in dict.fromkeys(piece.job for piece in pieces):
            self.run([piece for piece in pieces if piece.job is job], compute)

    def _halved(self, compute: Compute, items: list[Any]) -> list[Any]:
        """`compute(items)`, in halves where memory runs out, down to an item that fails alone."""
        try:
            return compute(items)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Out of the block: what the error's frames held is free by now
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._note_halved()
        if len(items) == 1:
            logger.warning("memory ran out for one item alone: it is refused")
            return [OutOfMemory("memory ran out: use fewer or smaller pictures, or a shorter text")]
        half = len(items) // 2
        logger.warning("memory ran out in a pass of %d: it is computed in halves", len(items))
        self.limit = min(self.limit, half)
        return [*self._halved(compute, items[:half]), *self._halved(compute, items[half:])]

    def _grow(self, size: int) -> None:
        """Lets passes become larger again, one at a time, when a full one went well."""
        if size >= self.limit:
            self.limit = min(self._most, self.limit + 1)
