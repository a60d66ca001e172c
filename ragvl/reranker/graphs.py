"""Chunks on a GPU: each shape is captured as a CUDA graph, and run in one launch."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ragvl.forks import fork_safe
from ragvl.messages import reason
from ragvl.reranker.chunks import Chunk, Shape
from ragvl.runtime import is_out_of_memory

logger = logging.getLogger(__name__)

Run = Callable[[Chunk], Tensor]

_WARM_UPS = 2  # libraries and Triton set themselves up in the first runs

_capturing = fork_safe(threading.Lock())  # torch captures one graph of a process at a time


class Graphs:
    """A run for each shape of chunk. Not thread-safe.

    Args:
        device: the GPU.
        architecture: the model's, for messages.
    """

    def __init__(self, device: torch.device, architecture: str) -> None:
        self._device = device
        self._architecture = architecture
        self._runs: dict[Shape, Run] = {}
        # One graph runs at a time, and its result is read before the next: they share the memory of
        # the first, for as long as that lives: torch refuses to use it after.
        self._first: torch.cuda.CUDAGraph | None = None
        self._reported = False

    def of(self, shape: Shape, run: Run) -> Run:
        """What takes a chunk of this shape to its raw scores (B,) float32 on the CPU.

        Args:
            shape: the shape.
            run: computes the same on the GPU.
        """
        if shape not in self._runs:
            self._runs[shape] = self._captured(shape, run)
        return self._runs[shape]

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        """Where graphs are captured.

        Torch's own is one for all devices, on that of the first capture: work on another is missed.
        """
        return torch.cuda.Stream(self._device)

    def _captured(self, shape: Shape, run: Run) -> Run:
        """A run in one launch; one by one where the model cannot be captured.

        A graph keeps the memory of its activations. Where there is none for another one, the
        earlier go, and it is tried once more.
        """
        try:
            return self._capture(shape, run)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                if not self._runs:
                    raise
                logger.warning("CUDA graphs are captured again: memory ran out (%s)", reason(error))
                self._runs.clear()
                self._first = None
            else:
                return self._uncaptured(run, error)
        # Outside of the handler: the error's traceback holds the tensors of the failed capture
        gc.collect()
        torch.cuda.empty_cache()
        return self._captured(shape, run)

    def _capture(self, shape: Shape, run: Run) -> Run:
        inputs = Chunk(shape, self._device)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                run(inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        memory = None if self._first is None else self._first.pool()
        with (
            _capturing,
            torch.cuda.graph(graph, memory, self._stream, capture_error_mode="thread_local"),
        ):
            result = run(inputs)
        self._first = self._first or graph

        def replay(chunk: Chunk) -> Tensor:
            inputs.copy_(chunk)
            graph.replay()
            return result.cpu()

        return replay

    def _uncaptured(self, run: Run, error: Exception) -> Run:
        if not self._reported:
            self._reported = True
            logger.warning(
                "%s cannot be captured as a CUDA graph and runs without: %s",
                self._architecture,
                reason(error),
            )
        return lambda chunk: run(chunk.to(self._device)).cpu()
