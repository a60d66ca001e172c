"""Copies between pages on a device and tensors in host memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ragvl.runtime import to_device

# What is in pinned memory at once is a few such pieces: large enough to be copied at full speed
_PIECE_BYTES = 8 << 20


class Transfer:
    """Gathers pages of (L, P, ...) tensors to the host, and scatters them back.

    A GPU copies at full speed, and without holding up the host, only from and to pinned memory, of
    which a machine should lock little. So tensors go through it a few layers at a time, and while
    one piece is on the bus the host copies another. That is done on a stream of its own, beside the
    work of other calls.

    Args:
        device: where the pages are.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def read(self, copies: Sequence[tuple[Tensor, Tensor]], pages: Sequence[int]) -> None:
        """Fills each host tensor (L, n, ...) from the n `pages` of its device tensor; waits for it.

        What is queued on the current stream is done before.
        """
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        coming: deque[tuple[Tensor, Tensor, torch.cuda.Event]] = deque()
        with torch.cuda.stream(self._stream):
            numbers = to_device(torch.tensor(pages), copies[0][0].device)
            for source, target in _pieces(copies):
                if self._stream is None:
                    torch.index_select(source, 1, numbers, out=target)
                    continue
                pinned = torch.empty_like(target, pin_memory=True)
                pinned.copy_(source.index_select(1, numbers), non_blocking=True)
                coming.append((pinned, target, self._stream.record_event()))
                if len(coming) > 1:
                    _finish(*coming.popleft())
        for piece in coming:
            _finish(*piece)

    def load(
        self, copies: Sequence[tuple[Tensor, Tensor]], pages: Sequence[int]
    ) -> torch.cuda.Event | None:
        """Writes each host tensor (L, n, ...) into the n `pages` of its device tensor.

        What is queued on other streams is not waited for: nothing there may use these pages.

        Returns:
            When it is done, on a GPU.
        """
        device = copies[0][1].device
        with torch.cuda.stream(self._stream):
            numbers = to_device(torch.tensor(pages), device)
            for source, target in _pieces(copies):
                target.index_copy_(1, numbers, to_device(source, device))
        return None if self._stream is None else self._stream.record_event()


def _pieces(copies: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """A few layers of each pair at a time."""
    for source, target in copies:
        smaller = min(source.nbytes, target.nbytes)  # of the two, the one that holds no other pages
        step = max(1, _PIECE_BYTES * len(source) // max(1, smaller))
        yield from zip(source.split(step), target.split(step), strict=True)


def _finish(pinned: Tensor, target: Tensor, event: torch.cuda.Event) -> None:
    event.synchronize()
    target.copy_(pinned)
