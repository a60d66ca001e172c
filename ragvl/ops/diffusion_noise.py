"""diffusion_noise: diffusion's forward process on marked rows, with a stream that can be replayed.

Noise-injected training sees each picture twice, clean and noised. One pass writes the noised copy:
marked rows noised, the others as they are, random numbers drawn as they are used.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ragvl.ops.arguments import check_tensor
from ragvl.ops.backends import KERNEL_DTYPES, Backend, choose, on_device
from ragvl.ops.compiled import run_compiled

NUM_TIMESTEPS = 1000
_BETA_FIRST, _BETA_LAST = 1e-5, 5e-3

# Philox4x32-10 (Salmon et al. 2011): multipliers, and what the key grows by each round
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

# Under this many elements a second thread costs more than it saves.
_WORK_PER_THREAD = 1 << 14


def diffusion_noise(
    x: Tensor,
    rows: Tensor | None = None,
    *,
    timestep: int | Tensor = 500,
    seed: int | None = None,
    noise: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """sqrt(ā_t) x + sqrt(1 - ā_t) ε in the marked rows, x in the others.

    ```
    beta = sigmoid(linspace(-6, 6, 1000)) * (5e-3 - 1e-5) + 1e-5
    ā    = cumprod(1 - beta)                                   # ā_500 = 0.744799
    bits = philox4x32_10(key=seed, counter=element // 4)       # four numbers of 32 bits
    a, b = (bits[0] // 2⁸ + 1) / 2²⁴, (bits[1] // 2⁸) / 2²⁴    # likewise bits[2] and bits[3]
    ε    = sqrt(-2 ln a) * (cos(2πb), sin(2πb))                # elements 0 and 1 of the four
    ```

    Equivalent to diffusers' `DDPMScheduler(beta_schedule="sigmoid", beta_start=1e-5, beta_end=5e-3)
    .add_noise(x, ε, timestep)`, and a `where` with `rows`. An element's ε depends on the seed and
    its place in `x` alone (row-major, whatever the strides): the uniform bits are the same with
    every backend, device and launch, the normals within 1e-5. Arithmetic is in float32 (float64 for
    float64), and rounded to `x`'s dtype once.

    Args:
        x: (..., D) float32, bfloat16, float16 or (reference only) float64: visual tokens, or
            pixels. Copied first where it is not contiguous.
        rows: bool mask of the shape `x.shape[:-1]`, which rows to noise; None for all.
        timestep: how far the process has gone, 0 to 999; an int, or (x.shape[0],) int64 with one
            for each item of the batch.
        seed: 0 to 2⁶⁴ - 1. None draws one from torch's default generator, so that
            `torch.manual_seed` decides it.
        noise: ε given, in `x`'s shape and dtype, instead of drawn; not together with a seed.
        backend: "auto" for the fastest that is present, or a name; see `ragvl.ops.backends`.

    Returns:
        A new contiguous tensor of `x`'s shape and dtype. Its gradient reaches `x` alone.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or number; both seed and noise (timesteps in a GPU's
            tensor cannot be read without waiting: there, one outside of 0 to 999 gives NaN).
        BackendUnavailableError: the backend named is not available here.

    Source: RagVL, arXiv 2407.21439, section 3.3 and its release; Philox is Salmon et al., "Parallel
    random numbers: as easy as 1, 2, 3", 2011.

    Examples:
        >>> x = torch.ones(2, 3)
        >>> diffusion_noise(x, torch.tensor([True, False]), noise=torch.zeros(2, 3))
        tensor([[0.8630, 0.8630, 0.8630],
                [1.0000, 1.0000, 1.0000]])
    """
    _check(x, rows, timestep, seed, noise)
    # Of one item: one pair of numbers, or one for each item of the batch
    signal, scale = _levels(timestep, x.device)
    return _diffusion_noise(x, rows, signal, scale, _seed_bits(seed, noise), noise, backend)


def diffusion_noise_reference(
    x: Tensor,
    rows: Tensor | None = None,
    *,
    timestep: int | Tensor = 500,
    seed: int | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """`diffusion_noise` in plain PyTorch, differentiable: what every other backend must equal."""
    signal, scale = _levels(timestep, x.device)
    return _reference(x, rows, signal, scale, _seed_bits(seed, noise), noise)


def _reference(
    x: Tensor,
    rows: Tensor | None,
    signal: Tensor,
    scale: Tensor,
    seed: int,
    noise: Tensor | None,
) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    if noise is None:
        noise = philox_normals(x.numel(), seed, x.device, dtype).view(x.shape)
    per_item = (-1, *[1] * (x.ndim - 1))
    signal, scale = (level.to(dtype).view(per_item) for level in (signal, scale))
    noised = (signal * x.to(dtype) + scale * noise.to(dtype)).to(x.dtype)
    return noised if rows is None else torch.where(rows[..., None], noised, x)


def alphas_cumprod() -> Tensor:
    """ā, (1000,) float64: the share of the signal's variance that is left at each timestep."""
    # A copy, since a caller may write into it
    return _alphas_cumprod().clone()


def philox_normals(
    count: int, seed: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """The first `count` normals of a seed's stream, (count,); see `diffusion_noise`."""
    counter = torch.arange(-(-count // 4), device=device)
    bits = _philox4x32_10(counter, seed)
    normals = []
    for a, b in (bits[:2], bits[2:]):
        radius = ((a // 2**8 + 1).to(dtype) / 2**24).log().mul(-2).sqrt()
        angle = (b // 2**8).to(dtype) / 2**24 * (2 * math.pi)
        normals += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(normals, -1).flatten()[:count]


def _philox4x32_10(counter: Tensor, seed: int) -> list[Tensor]:
    """Four int64 tensors of `counter`'s shape with 32 random bits in each element."""
    zeros = torch.zeros_like(counter)
    c = [counter & _MASK, counter >> 32, zeros, zeros]
    key = [seed & _MASK, (seed >> 32) & _MASK]
    for _ in range(10):
        # Products of 64 bits: that int64 overflows into its sign changes none of them
        first, second = (m * c[i] for m, i in zip(_MULTIPLIERS, (0, 2), strict=True))
        c = [
            ((second >> 32) & _MASK) ^ c[1] ^ key[0],
            second & _MASK,
            ((first >> 32) & _MASK) ^ c[3] ^ key[1],
            first & _MASK,
        ]
        key = [(k + w) & _MASK for k, w in zip(key, _WEYL, strict=True)]
    return c


@functools.cache
def _alphas_cumprod() -> Tensor:
    betas = torch.linspace(-6, 6, NUM_TIMESTEPS, dtype=torch.float64).sigmoid()
    return (1 - (betas * (_BETA_LAST - _BETA_FIRST) + _BETA_FIRST)).cumprod(0)


@functools.cache
def _level_table(device: torch.device) -> Tensor:
    """(2, 1001) float64: what signal and noise are multiplied by; the last column is NaN."""
    kept = _alphas_cumprod()
    table = torch.stack([kept.sqrt(), (1 - kept).sqrt()])
    return torch.cat([table, table.new_full((2, 1), torch.nan)], 1).to(device)


def _levels(timestep: int | Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    table = _level_table(device)
    if isinstance(timestep, Tensor):
        outside = (timestep < 0) | (timestep >= NUM_TIMESTEPS)
        signal, scale = table[:, timestep.masked_fill(outside, NUM_TIMESTEPS)]
    else:
        signal, scale = table[:, timestep : timestep + 1]
    return signal, scale


def _seed_bits(seed: int | None, noise: Tensor | None) -> int:
    """The seed, or one drawn if noise is to be drawn: 64 bits, signed as torch's integers are."""
    if seed is None:
        return 0 if noise is not None else int(torch.randint(2**63 - 1, ()))
    return seed - 2**64 if seed >= 2**63 else seed


def _check(
    x: Tensor,
    rows: Tensor | None,
    timestep: int | Tensor,
    seed: int | None,
    noise: Tensor | None,
) -> None:
    """Everything that can be checked without reading a tensor's values, and a CPU's timesteps."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.ndim == 0:
        raise ValueError("x must have at least one dimension")
    check_tensor("x", x, shape=tuple(x.shape), dtypes=(*KERNEL_DTYPES, torch.float64))
    if rows is not None:
        check_tensor("rows", rows, shape=tuple(x.shape[:-1]), dtypes=(torch.bool,), device=x.device)
    if isinstance(timestep, Tensor):
        check_tensor(
            "timestep", timestep, shape=(x.shape[0],), dtypes=(torch.int64,), device=x.device
        )
        if x.ndim == 1:
            raise ValueError("a timestep for each item needs x of two or more dimensions")
        if x.device.type == "cpu" and timestep.numel():
            low, high = (int(t) for t in timestep.aminmax())
            if low < 0 or high >= NUM_TIMESTEPS:
                raise ValueError(f"timestep must lie in 0 to 999, got values from {low} to {high}")
    elif isinstance(timestep, bool) or not isinstance(timestep, int):
        raise TypeError(f"timestep must be an int or a tensor, got {type(timestep).__name__}")
    elif not 0 <= timestep < NUM_TIMESTEPS:
        raise ValueError(f"timestep must lie in 0 to 999, got {timestep}")
    if noise is not None:
        if seed is not None:
            raise ValueError("give a seed or the noise itself, not both")
        check_tensor("noise", noise, shape=tuple(x.shape), dtypes=(x.dtype,), device=x.device)
    if seed is not None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an int, got {type(seed).__name__}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must lie in 0 to 2**64 - 1, got {seed}")


@torch.library.custom_op("ragvl::diffusion_noise", mutates_args=())
def _diffusion_noise(
    x: Tensor,
    rows: Tensor | None,
    signal: Tensor,
    scale: Tensor,
    seed: int,
    noise: Tensor | None,
    backend: str,
) -> Tensor:
    """The operation as torch.compile and autograd see it: one node, whatever backend runs it."""
    name, _ = choose("diffusion_noise", backend, x.device, x.dtype)
    with on_device(x.device):
        return _IMPLEMENTATIONS[name](x.contiguous(), rows, signal, scale, seed, noise)


@_diffusion_noise.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, rows, signal, *_ = inputs
    ctx.save_for_backward(rows, signal)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, signal = ctx.saved_tensors
    factor = signal.to(grad.dtype).view(-1, *[1] * (grad.ndim - 1))
    scaled = factor * grad
    return (scaled if rows is None else torch.where(rows[..., None], scaled, grad), *[None] * 6)


_diffusion_noise.register_autograd(_backward, setup_context=_setup_context)


def _compiled(
    x: Tensor,
    rows: Tensor | None,
    signal: Tensor,
    scale: Tensor,
    seed: int,
    noise: Tensor | None,
) -> Tensor:
    """csrc/diffusion_noise.cpp for CPU tensors, csrc/diffusion_noise.cu for CUDA tensors."""
    out = torch.empty_like(x)
    run_compiled(
        "diffusion_noise",
        x.device,
        threads=x.numel() // _WORK_PER_THREAD,
        x=x,
        rows=None if rows is None else rows.contiguous(),
        noise=None if noise is None else noise.contiguous(),
        signal=signal.float().contiguous(),
        scale=scale.float().contiguous(),
        out=out,
        size=x.numel(),
        dim=max(1, x.shape[-1]),
        item_size=max(1, x.numel() // signal.shape[0]),
        seed=seed % 2**64,
        dtype=x.dtype,
    )
    return out


def _triton(
    x: Tensor,
    rows: Tensor | None,
    signal: Tensor,
    scale: Tensor,
    seed: int,
    noise: Tensor | None,
) -> Tensor:
    """kernels/diffusion_noise.py, imported where it is used since Triton is optional."""
    from ragvl.kernels.diffusion_noise import diffusion_noise_fwd

    out = torch.empty_like(x)
    diffusion_noise_fwd(x, rows, signal.float(), scale.float(), seed, noise, out)
    return out


_IMPLEMENTATIONS = {
    "reference": _reference,
    "cpu": _compiled,
    "triton": _triton,
    "cuda": _compiled,
}
