"""How many bytes of requests are in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ragvl.server.errors import Overloaded
from ragvl.server.metrics import Metrics

Hold = Callable[[int], None]


class RequestMemory:
    """Counts what requests hold in memory, from their first byte to their answer.

    Used in the event loop only.

    Args:
        max_bytes: of all requests together.
        seconds_ahead: says how long what waits for the model is expected to take.
        metrics: gets the figures.
    """

    def __init__(
        self, max_bytes: int, seconds_ahead: Callable[[], float], metrics: Metrics
    ) -> None:
        self._max_bytes = max_bytes
        self._seconds_ahead = seconds_ahead
        self._refused = metrics.refused.labels("bytes")
        self._num_bytes = 0
        metrics.watch("request_bytes", "Bytes of requests in memory.", lambda: self._num_bytes)

    @contextmanager
    def request(self) -> Iterator[Hold]:
        """For the time of a request, what counts more bytes of it.

        That raises `Overloaded` where there is no room for them.
        """
        held = 0

        def hold(num_bytes: int) -> None:
            nonlocal held
            self._check_room(num_bytes)
            self._num_bytes += num_bytes
            held += num_bytes

        try:
            yield hold
        finally:
            self._num_bytes -= held

    def _check_room(self, num_bytes: int) -> None:
        excess = self._num_bytes + num_bytes - self._max_bytes
        if excess > 0:
            self._refused.inc()
            wait = self._seconds_ahead() * min(1.0, excess / self._max_bytes)
            raise Overloaded("too many bytes of requests wait already", retry_after=wait)
