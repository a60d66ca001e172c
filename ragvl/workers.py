"""Work in threads that run ahead of whoever needs it, such as decoding pictures for a model."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

NUM_THREADS = 4

T = TypeVar("T")


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """`items` as they come, each made when the one `count` places before it is taken.

    Where making an item starts work, so many are at work while one is used.

    Examples:
        >>> with Workers() as workers:
        ...     pending = (workers.submit(partial(load, path)) for path in paths)
        ...     for picture in ahead(pending, 8):
        ...         use(picture.result())
    """
    coming = iter(items)
    waiting = deque(islice(coming, count))
    while waiting:
        waiting.extend(islice(coming, 1))
        yield waiting.popleft()


class Pending(Generic[T]):
    """What a function will have returned, or raised, when a thread has called it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._value: T
        self._error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()

    def run(self) -> None:
        """Calls the function; once."""
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
        finally:
            self._running.release()

    def result(self) -> T:
        """Waits for what the function returns, or raises what it raised."""
        with self._running:
            pass
        if self._error is not None:
            raise self._error
        return self._value


class Workers:
    """A few threads for the length of a `with` block.

    Unlike `concurrent.futures`' they wait on nothing but locks and queues written in C, which an
    interrupt of the calling thread leaves as they were, and none is left over for a forked child to
    wait for.

    Args:
        count: how many threads there may be; each starts when it is needed.
    """

    def __init__(self, count: int = NUM_THREADS) -> None:
        self._count = count
        self._tasks: SimpleQueue[Pending | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[[], T]) -> Pending[T]:
        """Has `function` called by one of the threads."""
        task = Pending(function)
        self._tasks.put(task)
        if len(self._threads) < self._count:
            thread = threading.Thread(
                target=_work, args=(self._tasks,), name="ragvl-worker", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return task

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drops what has not begun, and waits for what has."""
        self._stop()
        for thread in self._threads:
            if thread.is_alive():  # an interrupt may have kept the last from starting
                thread.join()

    def __del__(self) -> None:
        self._stop()  # should an interrupt have kept the block from ending

    def _stop(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)


def _work(tasks: SimpleQueue[Pending | None]) -> None:
    while (task := tasks.get()) is not None:
        task.run()


def in_passing_thread(function: Callable[[], T]) -> T:
    """What `function` returns, called in a thread that is then gone.

    So that what it computes leaves no threads of torch's behind: those belong to the thread that
    computed, and as long as there are more of them than cores, all sleep where they would wait
    awake, and each operation takes longer.
    """
    task = Pending(function)
    thread = threading.Thread(target=task.run, name="ragvl-passing", daemon=True)
    thread.start()
    result = task.result()
    thread.join()
    return result
