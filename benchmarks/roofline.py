"""What a call has to compute and to read at least, and how fast this machine could do that.

Counted from a model's dimensions alone: matrix products and attention, weights and cached keys and
values. Norms, activations and embeddings are left out; they are a few percent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from shapes import Shape

from ragvl.profiling.timing import time_in_turn

_MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}


@dataclass(frozen=True)
class Work:
    """Floating-point operations (a multiply-add is two), and bytes read and written."""

    linear_flops: float
    attention_flops: float
    moved_bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(
            self.linear_flops + other.linear_flops,
            self.attention_flops + other.attention_flops,
            self.moved_bytes + other.moved_bytes,
        )

    def seconds(self, peaks: Peaks) -> float:
        """The time below which no program can be on such a machine."""
        flops = self.linear_flops + self.attention_flops
        return max(flops / peaks.flops_per_second, self.moved_bytes / peaks.bytes_per_second)


@dataclass(frozen=True)
class Peaks:
    """What a machine was measured to reach: a large square product; a large copy, both ways."""

    flops_per_second: float
    bytes_per_second: float


def suffix_work(shape: Shape, prefixes: Sequence[int], suffix: int, itemsize: int) -> Work:
    """A warm call: suffixes of `suffix` tokens over cached prefixes of the lengths `prefixes`.

    The last layer has queries, output projection and MLP for one token of each suffix. Weights and
    prefixes are read once.

    Args:
        shape: the model.
        prefixes: tokens of each candidate's prefix.
        suffix: tokens of each suffix.
        itemsize: bytes of a number.
    """
    decoder, batch = shape.decoder, len(prefixes)
    keys_and_values, others = _layer_weights(shape)
    rows = batch * suffix
    full_layers = decoder.num_layers - 1
    products = full_layers * rows * (keys_and_values + others)
    products += rows * keys_and_values + batch * others
    heads = decoder.num_heads * decoder.head_dim
    seen_by_all = sum(suffix * n + suffix * (suffix + 1) // 2 for n in prefixes)
    seen_by_last = sum(n + suffix for n in prefixes)
    attention = 2 * heads * (full_layers * seen_by_all + seen_by_last)
    numbers = decoder.num_layers * (keys_and_values + others)
    numbers += 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * sum(prefixes)
    return Work(2 * products, 2 * attention, itemsize * numbers)


def prefix_work(shape: Shape, prefixes: Sequence[int], itemsize: int) -> Work:
    """Building prefixes, each with one picture: vision tower, projector, decoder.

    Of the last layer only keys and values are needed. Weights are read once, as in one large batch.
    """
    decoder, vision = shape.decoder, shape.vision
    keys_and_values, others = _layer_weights(shape)
    rows, full_layers = sum(prefixes), decoder.num_layers - 1
    products = full_layers * rows * (keys_and_values + others) + rows * keys_and_values
    heads = decoder.num_heads * decoder.head_dim
    attention = 2 * heads * full_layers * sum(n * (n + 1) // 2 for n in prefixes)

    patches = shape.image_tokens * shape.patches_per_token + (shape.family in _WITH_CLASS_TOKEN)
    gates = 3 if shape.family == "qwen2_5_vl" else 2
    vision_layer = vision.hidden_size * (4 * vision.hidden_size + gates * vision.intermediate_size)
    # LLaVA takes the last layer but one
    layers = vision.num_layers - (shape.family == "llava")
    products += len(prefixes) * patches * layers * vision_layer
    attention += len(prefixes) * layers * 2 * vision.hidden_size * patches**2
    numbers = decoder.num_layers * (keys_and_values + others) + layers * vision_layer
    return Work(2 * products, 2 * attention, itemsize * numbers)


def measure_peaks(device: torch.device, dtype: torch.dtype, rounds: int = 7) -> Peaks:
    """The median rate of a large matrix product, and of a large copy."""
    size, count = _MATRIX_SIZE[device.type], _COPY_BYTES[device.type] // dtype.itemsize
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(count, dtype=dtype, device=device)
    target = torch.zeros_like(source)

    def rate(amount: float, call: Callable[[], object]) -> float:
        samples = time_in_turn({"": call}, rounds=rounds, sample_ms=20, device=device)[""]
        return amount / (torch.tensor(samples).median().item() / 1e3)

    # A copy reads and writes as much
    return Peaks(
        rate(2 * size**3, lambda: a @ b),
        rate(2 * count * dtype.itemsize, lambda: target.copy_(source)),
    )


_WITH_CLASS_TOKEN = ("llava", "internvl")


def _layer_weights(shape: Shape) -> tuple[int, int]:
    """A decoder layer's numbers: those of keys and values, and the others'."""
    decoder = shape.decoder
    heads, kv_heads = decoder.num_heads * decoder.head_dim, decoder.num_kv_heads * decoder.head_dim
    others = 2 * decoder.hidden_size * heads + 3 * decoder.hidden_size * decoder.intermediate_size
    return 2 * decoder.hidden_size * kv_heads, others
