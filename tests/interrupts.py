"""An interrupt at each place at which Python would raise one, in turn."""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any


@functools.cache
def _opcodes(code: CodeType) -> dict[int, str]:
    return {step.offset: step.opname for step in dis.get_instructions(code)}


class Interrupt:
    """Raises KeyboardInterrupt at the nth place in a file at which Python would.

    Signals are looked at after a call, at a function's start and where a loop turns back.

    Args:
        file: how the name of the file ends.
        after: which place, from 1.
    """

    def __init__(self, file: str, after: int) -> None:
        self._file = file
        self._left = after

    def run(self, function: Callable[[], object]) -> bool:
        """Calls `function`; whether that place was reached."""
        tracing = sys.gettrace()
        sys.settrace(self._enter)
        try:
            function()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracing)
        return self._left <= 0

    def _enter(self, frame: FrameType, _event: str, _: Any) -> Callable | None:
        if not frame.f_code.co_filename.endswith(self._file):
            return None
        frame.f_trace_opcodes = True
        names, previous = _opcodes(frame.f_code), ""

        def step(frame: FrameType, event: str, _: Any) -> Callable:
            nonlocal previous
            if event == "opcode":
                before, previous = previous, names[frame.f_lasti]
                self._left -= before.startswith(("CALL", "RESUME", "JUMP_BACKWARD"))
                if self._left == 0:
                    self._left = -1
                    raise KeyboardInterrupt
            return step

        return step
