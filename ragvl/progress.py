"""Progress bars that threads, interrupts and forks leave usable."""

from __future__ import annotations

import threading

from tqdm.auto import tqdm

from ragvl.forks import fork_safe


class ProgressBar(tqdm):
    """tqdm's, with a lock of its own.

    tqdm's lock is taken for hidden bars too, in several steps of Python: an interrupt among them
    leaves it taken, and every other thread waits for it for good. It is shared with other
    processes as well, a stopped one included. An `RLock` is taken in one step.
    """


ProgressBar.set_lock(fork_safe(threading.RLock()))
