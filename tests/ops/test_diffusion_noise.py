from __future__ import annotations

import math

import pytest
import torch
from gpu_code import compile_for_a_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close_to_truth, assert_no_worse
from operations import BACKENDS_WITH_CUDA as BACKENDS
from operations import KERNELS_WITH_CUDA as KERNELS
from operations import TRITON_DEVICE
from torch import Tensor

from ragvl import _C
from ragvl.ops import BackendUnavailableError, diffusion_noise, diffusion_noise_reference
from ragvl.ops.diffusion_noise import (
    _diffusion_noise,
    _philox4x32_10,
    alphas_cumprod,
    philox_normals,
)

GPU_BACKENDS = ["triton", "cuda"]
# A shape whose rows begin within a counter's four elements, spans and items, and one of whole ones
SHAPES = [(3, 17, 192), (2, 5, 7, 33), (1, 1), (5,), (2, 9001)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mask(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4


def truth(
    x: Tensor,
    rows: Tensor | None,
    noise: Tensor,
    timestep: int | Tensor = 500,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The definition, by torch in `dtype`: the schedule as the paper's release writes it."""
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64))
    betas = betas * (0.5e-2 - 1e-5) + 1e-5
    kept = torch.cumprod(1 - betas, 0)[timestep].view(-1, *[1] * (x.ndim - 1))
    noised = kept.sqrt().to(dtype) * x.to(dtype) + (1 - kept).sqrt().to(dtype) * noise.to(dtype)
    return noised if rows is None else torch.where(rows[..., None], noised, x.to(dtype))


def test_schedule_is_the_papers() -> None:
    assert alphas_cumprod()[500].item() == pytest.approx(0.744799, abs=5e-7)
    assert len(alphas_cumprod()) == 1000


def test_philox_is_the_published_generator() -> None:
    # The known answer of Random123 for counter 0 and key 0
    words = _philox4x32_10(torch.tensor([0]), 0)
    assert [hex(int(word)) for word in words] == [
        *("0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8")
    ]


def test_philox_equals_tritons() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(seed, out, COUNT: tl.constexpr):
        counter = tl.arange(0, COUNT)
        words = tl.randint4x(seed, counter)
        for i in tl.static_range(4):
            tl.store(out + i * COUNT + counter, words[i].to(tl.int32, bitcast=True))

    seed, out = 0x123456789ABCDEF0, torch.empty(4, 64, dtype=torch.int32, device=TRITON_DEVICE)
    kernel[(1,)](seed, out, COUNT=64)
    bits = torch.stack(_philox4x32_10(torch.arange(64), seed)).to(torch.int32)
    assert torch.equal(bits, out.cpu())


def test_normals_are_normal() -> None:
    normals = philox_normals(400_003, seed=7)
    assert normals.shape == (400_003,)
    ordered = normals.double().sort().values
    expected = torch.special.ndtr(ordered)
    empirical = (torch.arange(len(ordered)) + 0.5) / len(ordered)
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by 999 samples in 1000
    assert (expected - empirical).abs().max() < 1.95 / math.sqrt(len(ordered))
    neighbours = torch.corrcoef(normals[:400_000].view(-1, 4).T)
    assert (neighbours - torch.eye(4)).abs().max() < 4 / math.sqrt(100_000)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_given_noise_matches_float64(backend, device, marked, shape):
    x, noise = normal(*shape).to(device), normal(*shape, seed=2).to(device)
    rows = mask(*shape[:-1]).to(device) if marked else None
    out = diffusion_noise(x, rows, noise=noise, backend=backend)
    expected = truth(*(t if t is None else t.cpu() for t in (x, rows, noise)))
    assert_close_to_truth(out, expected)
    if rows is not None:
        assert torch.equal(out[~rows], x[~rows])


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_drawn_noise_is_the_references(backend, device, seed, shape):
    zeros = torch.zeros(shape, device=device)
    # At the last timestep the signal is nearly gone, and zeros leave the noise alone
    out = diffusion_noise(zeros, timestep=999, seed=seed, backend=backend).cpu()
    scale = (1 - alphas_cumprod()[999]).sqrt()
    expected = philox_normals(zeros.numel(), seed, dtype=torch.float64).view(shape)
    assert (out / scale - expected).abs().max() < 1e-5


def test_counters_go_beyond_32_bits() -> None:
    far = torch.tensor([2**32, 2**32 + 1])
    near = torch.tensor([0, 1])
    assert not any(
        torch.equal(a, b)
        for a, b in zip(_philox4x32_10(far, 3), _philox4x32_10(near, 3), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_half_precision_rounds_once(backend, device, dtype):
    x, noise = normal(4, 100, dtype=dtype), normal(4, 100, seed=2, dtype=dtype)
    rows = mask(4)
    out = diffusion_noise(
        x.to(device), rows.to(device), noise=noise.to(device), backend=backend
    ).cpu()
    assert out.dtype == dtype
    assert_no_worse(out, truth(x, rows, noise, dtype=dtype), truth(x, rows, noise))
    if backend == "triton" and device == "cpu":
        return  # interpreted, bfloat16 is cut off instead of rounded
    # nearest of what float32 gives, up to the last bit of the sum
    nearest = truth(x, rows, noise).to(dtype)
    assert (out != nearest).float().mean() < 0.01


@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_every_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    x = normal(3, 1001)
    out = diffusion_noise(x, mask(3), seed=11, backend="cpu")
    expected = diffusion_noise(x, mask(3), seed=11, backend="reference")
    assert (out - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_a_timestep_for_each_item(backend, device):
    x, noise = normal(4, 3, 21), normal(4, 3, 21, seed=2)
    timestep = torch.tensor([0, 999, 500, 20])
    out = diffusion_noise(
        x.to(device), timestep=timestep.to(device), noise=noise.to(device), backend=backend
    )
    assert_close_to_truth(out, truth(x, None, noise, timestep))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_an_elements_noise_does_not_depend_on_layout_or_marks(backend, device):
    x = normal(6, 50).to(device)
    whole = diffusion_noise(x, seed=5, backend=backend)
    strided = x.T.contiguous().T
    assert torch.equal(diffusion_noise(strided, seed=5, backend=backend), whole)
    flat = torch.cat([x.new_zeros(1), x.flatten()])[1:]  # not aligned
    assert torch.equal(diffusion_noise(flat.view(6, 50), seed=5, backend=backend), whole)
    rows = mask(6).to(device)
    assert torch.equal(diffusion_noise(x, rows, seed=5, backend=backend)[rows], whole[rows])
    assert not torch.equal(diffusion_noise(x, seed=6, backend=backend), whole)


def test_the_number_of_threads_changes_nothing() -> None:
    x, before = normal(40, 5000), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(diffusion_noise(x, mask(40), seed=3, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nothing_to_do(backend, device):
    assert diffusion_noise(torch.ones(0, 4, device=device), seed=1, backend=backend).shape == (0, 4)
    assert diffusion_noise(torch.ones(3, 0, device=device), seed=1, backend=backend).shape == (3, 0)
    x, rows = torch.ones(2, 3, device=device), torch.zeros(2, dtype=torch.bool, device=device)
    out = diffusion_noise(x, rows, seed=1, backend=backend)
    assert torch.equal(out, x)
    out.zero_()
    assert x.all(), "the result must be a copy"


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nan_stays_where_it_is(backend, device):
    x = torch.ones(2, 8, device=device)
    x[1, 3] = float("nan")
    nan = diffusion_noise(x, seed=1, backend=backend).isnan()
    assert nan.nonzero().tolist() == [[1, 3]]


def test_without_a_seed_torchs_decides() -> None:
    x = torch.zeros(10)
    torch.manual_seed(4)
    first, second = diffusion_noise(x), diffusion_noise(x)
    torch.manual_seed(4)
    assert torch.equal(diffusion_noise(x), first)
    assert not torch.equal(first, second)


def test_gradient() -> None:
    x = normal(2, 3, 5, dtype=torch.float64).requires_grad_()
    timestep = torch.tensor([10, 700])
    assert torch.autograd.gradcheck(
        lambda x: diffusion_noise(x, mask(2, 3), timestep=timestep, seed=1), x
    )


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_gradient_is_the_references(backend, device):
    results = []
    for name in (backend, "reference"):
        x = normal(4, 9).to(device).requires_grad_()
        diffusion_noise(x, mask(4).to(device), seed=1, backend=name).square().sum().backward()
        results.append(x.grad)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_opcheck(backend, device) -> None:
    signal = torch.tensor([0.8], dtype=torch.float64, device=device)
    marked = mask(3).to(device)
    for x in (normal(3, 8).to(device), normal(3, 8).to(device).requires_grad_()):
        torch.library.opcheck(_diffusion_noise, (x, marked, signal, signal, 5, None, backend))


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_compiles(backend, device) -> None:
    x = normal(3, 8).to(device)

    def doubled(x: Tensor) -> Tensor:
        return diffusion_noise(x, seed=2, backend=backend) * 2

    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), doubled(x))


@pytest.mark.slow
def test_compiles_with_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else it compiles a program for each instruction set, to see whether that runs
    monkeypatch.setattr(torch._inductor.config.cpp, "vec_isa_ok", True)
    x = normal(3, 8)
    compiled = torch.compile(lambda x: diffusion_noise(x, seed=2) * 2, fullgraph=True)
    assert torch.equal(compiled(x), diffusion_noise(x, seed=2) * 2)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("marked", [False, True])
def test_cuda_graph(backend, marked) -> None:
    x, rows = normal(5, 64).cuda(), mask(5).cuda() if marked else None
    diffusion_noise(x, rows, seed=3, backend=backend)  # compiles and loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = diffusion_noise(x, rows, seed=3, backend=backend)
    x.copy_(normal(5, 64, seed=1))
    graph.replay()
    assert torch.equal(out, diffusion_noise(x, rows, seed=3, backend=backend))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_runs_on_the_current_stream(backend) -> None:
    x = normal(5, 64).cuda()
    expected = diffusion_noise(x, seed=3, backend="reference")
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on any other stream would see the zeros
        late.copy_(x)
        out = diffusion_noise(late, seed=3, backend=backend)
    stream.synchronize()
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("drawn", [False, True])
def test_the_triton_kernel_compiles_for_a_gpu(drawn):
    types = {
        "x out": "*bf16",
        "rows": "*u8",
        "signal scale": "*fp32",
        "size dim item_size key0 key1": "i32",
    }
    sizes = {"BLOCK_COUNTERS": 256}
    if drawn:
        compile_for_a_gpu("diffusion_noise", types, {**sizes, "noise": None})
    else:
        compile_for_a_gpu("diffusion_noise", {**types, "noise": "*bf16"}, sizes)


@settings(max_examples=80)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    seed=st.integers(0, 2**64 - 1),
    timestep=st.integers(0, 999),
    marked=st.booleans(),
)
def test_any_case_on_the_cpu(shape, seed, timestep, marked):
    x = normal(*shape)
    rows = mask(*shape[:-1], seed=seed % 1000) if marked else None
    out = diffusion_noise(x, rows, timestep=timestep, seed=seed, backend="cpu")
    noise = philox_normals(x.numel(), seed, dtype=torch.float64).view(x.shape)
    torch.testing.assert_close(out.double(), truth(x, rows, noise, timestep), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor"),
        ({"x": torch.ones(2, 3).int()}, TypeError, "x must be float32"),
        ({"x": torch.tensor(1.0)}, ValueError, "at least one dimension"),
        ({"rows": torch.ones(3, dtype=torch.bool)}, ValueError, r"rows must have shape \(2,\)"),
        ({"rows": torch.ones(2)}, TypeError, "rows must be bool"),
        ({"timestep": 1000}, ValueError, "timestep must lie in 0 to 999, got 1000"),
        ({"timestep": -1}, ValueError, "timestep must lie in 0 to 999, got -1"),
        ({"timestep": 3.5}, TypeError, "timestep must be an int"),
        ({"timestep": torch.tensor([1, 1000])}, ValueError, "from 1 to 1000"),
        ({"timestep": torch.tensor([1, 2, 3])}, ValueError, r"timestep must have shape \(2,\)"),
        ({"seed": -1}, ValueError, "seed must lie in"),
        ({"seed": 2**64}, ValueError, "seed must lie in"),
        ({"seed": 1.0}, TypeError, "seed must be an int"),
        ({"noise": torch.ones(2, 4)}, ValueError, r"noise must have shape \(2, 3\)"),
        ({"noise": torch.ones(2, 3).half()}, TypeError, "noise must be float32"),
        ({"noise": torch.ones(2, 3), "seed": 1}, ValueError, "not both"),
        ({"backend": "fast"}, ValueError, "backend='fast'"),
        ({"x": torch.ones(2, 3).double(), "backend": "cpu"}, BackendUnavailableError, "float64"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        diffusion_noise(**{"x": torch.ones(2, 3), **arguments})


def test_the_reference_is_exported() -> None:
    x, kept = normal(2, 3), alphas_cumprod()[100].float()
    out = diffusion_noise_reference(x, timestep=100, seed=1)
    noise = philox_normals(6, 1).view(2, 3)
    torch.testing.assert_close(out, kept.sqrt() * x + (1 - kept).sqrt() * noise)
