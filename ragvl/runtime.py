"""Where a model runs, in which dtype, and whether memory ran out there."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ragvl.messages import quoted, shown

logger = logging.getLogger(__name__)

# By which a CPU multiplies numbers of 16 bits, of x86 and of ARM, as Linux names them
_INSTRUCTIONS = {
    torch.bfloat16: frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    torch.float16: frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}
_FAMILIES = frozenset({"sse2", "asimd"})  # of x86 and of ARM
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory")


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device that `device` means; "auto" is CUDA where it is present, else the CPU.

    Raises:
        ValueError: torch knows no such device, or this machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={quoted(device)} is unknown: expected auto, cpu, cuda, cuda:1, ..."
        ) from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r} is requested, but torch sees no CUDA device here")
    try:
        torch.empty(0, device=resolved).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = shown(str(error).partition("\n")[0])
        raise ValueError(f"device={str(device)!r} cannot be used: {why}") from error
    return resolved


DeviceMap = str | int | torch.device | Mapping[str, Any]
_BY_SPACE = ("auto", "balanced", "balanced_low_0", "sequential")  # of what devices there are


def mapped_device(device: str | torch.device, device_map: DeviceMap | None) -> str | torch.device:
    """The one device that Hugging Face's `device_map` names; `device` where it is None.

    Args:
        device: as `resolve_device` takes it.
        device_map: a device or its number, a mapping from parts of a model to devices, or "auto"
            and its like, which mean the only device that is here.

    Raises:
        ValueError: it names several devices or a disk, or `device` is given too.
    """
    if device_map is None:
        return device
    if device != "auto":
        raise ValueError(
            f"both device={quoted(device)} and device_map={shown(repr(device_map))} say where the "
            "model is: give one"
        )
    whole = "a model is on one device here, whole"
    advice = "give device= one of them, and for several of them load a model on each"
    if isinstance(device_map, str) and device_map in _BY_SPACE:
        if (count := torch.cuda.device_count()) > 1:
            raise ValueError(
                f"device_map={device_map!r} would spread the model over {count} GPUs, and {whole}: "
                f"{advice}"
            )
        return "auto"
    places = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    named = dict.fromkeys(f"cuda:{one}" if isinstance(one, int) else str(one) for one in places)
    if len(named) != 1 or "disk" in named:
        raise ValueError(
            f"device_map names {shown(', '.join(named)) or 'no device'}, and {whole}: {advice}"
        )
    return next(iter(named))


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The floating dtype that `dtype` means; "auto" is bfloat16 on a GPU, float32 on a CPU.

    Raises:
        ValueError: `dtype` names no floating-point dtype of torch.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(
            f"dtype={quoted(dtype)} is not a floating-point dtype; try 'float32' or 'bfloat16'"
        )
    return resolved


def warn_of_slow_products(dtype: torch.dtype, device: torch.device) -> None:
    """Says, once a dtype, that a model computes on a CPU that has no instructions for it."""
    if device.type == "cpu" and is_slow_on_cpu(dtype):
        _warn_once(dtype)


@cache
def _warn_once(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    logger.warning(
        "this CPU has no instructions for %s: products may take many times as long as in float32; "
        "dtype='float32' is faster, in twice the memory",
        name,
    )


def is_slow_on_cpu(dtype: torch.dtype) -> bool:
    """Whether the CPU is known to lack instructions for products in a dtype of 16 bits."""
    flags = _cpu_flags()
    known = not flags.isdisjoint(_FAMILIES)
    return known and dtype in _INSTRUCTIONS and flags.isdisjoint(_INSTRUCTIONS[dtype])


def multiplies_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware, and so faster than float32."""
    return bool(_INSTRUCTIONS[torch.bfloat16] & _cpu_flags())


@cache
def _cpu_flags() -> frozenset[str]:
    """What Linux says that the CPU has; nothing where that is not known."""
    facts = Path("/proc/cpuinfo")
    return frozenset(facts.read_text().split()) if facts.exists() else frozenset()


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`; from the CPU to a GPU through pinned memory, so that the host goes on."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """When what is queued on a GPU's current stream is done; None on a CPU, where all is."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


class Timer:
    """How long a device takes for what it is given between `start` and `stop`.

    On a GPU nothing waits for it before `seconds` is read.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._marks: list[Any] = []

    def start(self) -> None:
        """Begins anew."""
        self._marks = []
        self.stop()

    def stop(self) -> None:
        """Ends what `start` began."""
        if not self._on_gpu:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)

    @property
    def seconds(self) -> float:
        """From the last `start` to the `stop` after it."""
        start, stop = self._marks
        if not self._on_gpu:
            return float(stop - start)
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """The memory that tensors keep from being freed, in bytes.

    A view counts with all of the memory that it is a view of, once for all such views.
    """
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or the host, in `error` or in what it came after.

    torch says so in errors of several types; the end of a graph's capture covers one with another.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(current, RuntimeError) and _OUT_OF_MEMORY.search(str(current)):
            return True
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return False


def float32_precision(device: torch.device) -> list[str]:
    """How torch computes float32 products and convolutions on a device: "ieee", "tf32" or "bf16".

    torch's older question, `get_float32_matmul_precision`, is an error where these were set.
    """
    backends: Any = vars(torch.backends)
    if device.type == "cuda":
        parts = backends["cuda"].matmul, backends["cudnn"].conv
    else:
        parts = backends["mkldnn"].matmul, backends["mkldnn"].conv
    precisions = (part.fp32_precision for part in parts)
    return ["ieee" if precision == "none" else precision for precision in precisions]
