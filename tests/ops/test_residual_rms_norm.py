from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from gpu_code import compile_for_a_gpu
from numerics import assert_close_to_truth, assert_no_worse
from operations import BACKENDS, HALVES, KERNELS
from torch import Tensor

from ragvl import _C
from ragvl.ops import BackendUnavailableError, residual_rms_norm, residual_rms_norm_reference
from ragvl.ops.residual_rms_norm import _residual_rms_norm


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    residual: bool = True
    offset: float = 0.0
    eps: float = 1e-6
    dtype: torch.dtype = torch.float32

    def inputs(self, device: str = "cpu", seed: int = 0) -> dict:
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng).to(self.dtype).to(device)

        return {
            "x": 3 * normal(*self.shape),
            "residual": normal(*self.shape) if self.residual else None,
            "weight": 1 - self.offset + normal(self.shape[-1]) / 4,
            "eps": self.eps,
            "offset": self.offset,
        }


CASES = [
    Case((1, 640, 256)),  # a chunk's rows
    Case((2, 3, 5, 64), residual=False),  # the heads of queries
    Case((4, 1), eps=1.0),  # the smallest size: a norm leaves only the sign
    Case((5, 7)),  # smaller than any vector register, and odd
    Case((3, 5003)),  # a large prime: no alignment anywhere
    Case((9, 100), offset=1.0, eps=1e-2),  # Gemma's
    Case((8,)),  # one row without a batch
]


def truth(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    offset: float,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """The definition in `dtype`, by torch's own norm."""
    summed = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
    return summed, F.rms_norm(summed, weight.shape, weight.to(dtype) + offset, eps)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_float32_matches_float64(backend, device, case):
    inputs = case.inputs(device)
    for out, exact in zip(
        residual_rms_norm(**inputs, backend=backend), truth(**inputs), strict=True
    ):
        assert out.dtype == torch.float32
        assert_close_to_truth(out, exact)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[5]], ids=str)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_half_precision_errs_at_most_twice_as_much_as_torch(backend, device, case, dtype):
    inputs = replace(case, dtype=dtype).inputs(device)
    for out, plain, exact in zip(
        residual_rms_norm(**inputs, backend=backend),
        truth(**inputs, dtype=dtype),
        truth(**inputs),
        strict=True,
    ):
        assert out.dtype == dtype
        assert_no_worse(out, plain, exact)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_every_instruction_set_rounds_the_sum_as_torch_does(isa, dtype, monkeypatch):
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    inputs = Case((6, 103), dtype=dtype).inputs()
    summed, normed = residual_rms_norm(**inputs, backend="cpu")
    assert torch.equal(summed, inputs["x"] + inputs["residual"])
    assert_no_worse(normed, truth(**inputs, dtype=dtype)[1], truth(**inputs)[1])


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_without_a_residual_the_sum_is_the_input_itself(backend, device):
    inputs = Case((3, 8), residual=False).inputs(device)
    assert residual_rms_norm(**inputs, backend=backend)[0] is inputs["x"]


def _strided(inputs: dict) -> None:
    for name in ("x", "residual"):
        inputs[name] = inputs[name].transpose(0, 1).contiguous().transpose(0, 1)


def _misaligned(inputs: dict) -> None:
    inputs["x"] = F.pad(inputs["x"].flatten(), (1, 0))[1:].view(inputs["x"].shape)


def _one_row_for_all(inputs: dict) -> None:
    inputs["residual"] = inputs["residual"][:1].expand_as(inputs["x"])
    inputs["weight"] = inputs["weight"][:1].expand_as(inputs["weight"])


@pytest.mark.parametrize("change", [_strided, _misaligned, _one_row_for_all])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_memory_layouts(backend, device, change):
    inputs = Case((4, 6, 32)).inputs(device)
    change(inputs)
    for out, exact in zip(
        residual_rms_norm(**inputs, backend=backend), truth(**inputs), strict=True
    ):
        assert_close_to_truth(out, exact)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_no_rows(backend, device):
    for out in residual_rms_norm(**Case((0, 8)).inputs(device), backend=backend):
        assert out.shape == (0, 8)


@pytest.mark.parametrize("dim", [48, 515])  # several rows a program, and one
@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_a_row_has_the_same_bits_in_any_batch(backend, device, dim):
    inputs = Case((70, dim)).inputs(device)
    together = residual_rms_norm(**inputs, backend=backend)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1)).to(device)
    rows = {name: inputs[name][order[:33]] for name in ("x", "residual")}
    alone = {name: inputs[name][7] for name in ("x", "residual")}
    shuffled = residual_rms_norm(**{**inputs, **rows}, backend=backend)
    single = residual_rms_norm(**{**inputs, **alone}, backend=backend)
    for batch, other, one in zip(together, shuffled, single, strict=True):
        assert torch.equal(batch[order[:33]], other)
        assert torch.equal(batch[7], one)


def test_the_number_of_threads_changes_nothing():
    inputs = Case((64, 2048)).inputs()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = residual_rms_norm(**inputs, backend="cpu")
        torch.set_num_threads(4)
        four = residual_rms_norm(**inputs, backend="cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0], four[0])
    assert torch.equal(one[1], four[1])


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nan_stays_in_its_row(backend, device):
    inputs = Case((4, 40)).inputs(device)
    inputs["residual"][2, 5] = float("nan")
    normed = residual_rms_norm(**inputs, backend=backend)[1]
    assert normed.isnan().all(dim=1).tolist() == [False, False, True, False]
    assert normed.isnan().any(dim=1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_opcheck(backend, device, residual):
    inputs = Case((3, 8), residual).inputs(device)
    torch.library.opcheck(_residual_rms_norm, (), {**inputs, "backend": backend})


def test_torch_compile_keeps_it_whole():
    def layer(x: Tensor, **inputs) -> Tensor:
        summed, normed = residual_rms_norm(2 * x, **inputs)
        return summed + normed

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (2, 5):
        inputs = Case((rows, 24)).inputs()
        torch.testing.assert_close(compiled(**inputs), layer(**inputs))


def test_only_the_reference_has_gradients():
    inputs = Case((3, 5), dtype=torch.float64, offset=1.0).inputs()
    leaves = [inputs[name].requires_grad_() for name in ("x", "residual", "weight")]
    assert torch.autograd.gradcheck(
        lambda *tensors: residual_rms_norm_reference(*tensors, eps=1e-6, offset=1.0), leaves
    )
    with pytest.raises(RuntimeError, match=r"residual_rms_norm has no gradient.*_reference"):
        residual_rms_norm(**inputs)[1].sum().backward()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": torch.ones(2, 8).int()}, TypeError, "x must be float32 or .*, got int32"),
        ({"x": torch.ones(2, 0)}, ValueError, "x must have at least one column"),
        ({"x": torch.tensor(1.0)}, ValueError, "x must have at least one column"),
        ({"residual": torch.ones(1, 8)}, ValueError, r"residual must have shape \(2, 8\)"),
        ({"residual": torch.ones(2, 8).half()}, TypeError, "residual must be float32, got float16"),
        ({"weight": torch.ones(7)}, ValueError, r"weight must have shape \(8,\), got \(7,\)"),
        ({"weight": torch.ones(8).half()}, TypeError, "weight must be float32, got float16"),
        ({"weight": torch.ones(8, device="meta")}, ValueError, "weight must be on cpu"),
        ({"eps": -1.0}, ValueError, "eps must not be negative"),
        ({"backend": "cuda"}, BackendUnavailableError, "has only reference, cpu, triton"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        residual_rms_norm(**{**Case((2, 8)).inputs(), **changes})


def test_the_triton_kernel_compiles_for_a_gpu():
    tensors, numbers = "x residual weight summed normed", "eps offset"
    types = {tensors: "*bf16", "num_rows dim": "i32", numbers: "fp32"}
    compile_for_a_gpu("residual_rms_norm", types, {"BLOCK_ROWS": 1, "BLOCK_SIZE": 4096})


@pytest.mark.gpu
def test_cuda_graph():
    inputs = Case((640, 2048)).inputs("cuda")
    residual_rms_norm(**inputs)  # compiles and loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = residual_rms_norm(**inputs)
    inputs["x"].copy_(Case((640, 2048)).inputs("cuda", seed=1)["x"])
    graph.replay()
    for out, exact in zip(outputs, truth(**inputs), strict=True):
        assert_close_to_truth(out, exact)
