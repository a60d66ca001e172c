from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from gpu_code import compile_for_a_gpu
from numerics import assert_close_to_truth, assert_no_worse
from operations import BACKENDS, HALVES, KERNELS
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ragvl import _C
from ragvl.ops import BackendUnavailableError, rotary_embedding, rotary_embedding_reference
from ragvl.ops.rotary_embedding import _rotary_embedding


@dataclass(frozen=True)
class Case:
    batch: int
    length: int
    heads: int
    kv_heads: int
    dim: int
    one_angle: bool = False  # the same positions in every item
    dtype: torch.dtype = torch.float32

    def inputs(self, device: str = "cpu", seed: int = 0) -> dict:
        """q and k as a layer's projections leave them: a position's heads side by side."""
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng).to(self.dtype).to(device)

        angles = 9 * torch.randn(
            1 if self.one_angle else self.batch, self.length, self.dim, generator=rng
        )
        return {
            "q": normal(self.batch, self.length, self.heads, self.dim).transpose(1, 2),
            "k": normal(self.batch, self.length, self.kv_heads, self.dim).transpose(1, 2),
            "cos": angles.cos().to(self.dtype).to(device),
            "sin": angles.sin().to(self.dtype).to(device),
        }


CASES = [
    Case(1, 70, 4, 2, 64),  # packed suffixes
    Case(3, 5, 3, 1, 128, one_angle=True),  # three heads
    Case(2, 4, 6, 6, 20),  # half a head is no power of two
    Case(2, 3, 1, 1, 2),  # the smallest
]


def truth(dtype: torch.dtype = torch.float64, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Hugging Face's own function, in `dtype`."""
    return apply_rotary_pos_emb(**{name: x.to(dtype) for name, x in inputs.items()})


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_float32_matches_float64(backend, device, case):
    inputs = case.inputs(device)
    for out, exact in zip(
        rotary_embedding(**inputs, backend=backend), truth(**inputs), strict=True
    ):
        assert out.dtype == torch.float32
        assert out.transpose(1, 2).is_contiguous()
        assert_close_to_truth(out, exact)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_half_precision_errs_at_most_twice_as_much_as_torch(backend, device, dtype):
    inputs = replace(CASES[0], dtype=dtype).inputs(device)
    for out, plain, exact in zip(
        rotary_embedding(**inputs, backend=backend),
        truth(**inputs, dtype=dtype),
        truth(**inputs),
        strict=True,
    ):
        assert out.dtype == dtype
        assert_no_worse(out, plain, exact)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_every_instruction_set(isa, dtype, monkeypatch):
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    inputs = Case(2, 5, 3, 2, 38, dtype=dtype).inputs()
    for out, plain, exact in zip(
        rotary_embedding(**inputs, backend="cpu"),
        truth(**inputs, dtype=dtype),
        truth(**inputs),
        strict=True,
    ):
        assert_no_worse(out, plain, exact)


def _heads_first(inputs: dict) -> None:
    inputs["q"] = inputs["q"].contiguous()


def _strided_elements(inputs: dict) -> None:
    inputs["k"] = inputs["k"].transpose(2, 3).contiguous().transpose(2, 3)


def _one_projection(inputs: dict) -> None:
    both = torch.cat([inputs["q"], inputs["k"]], dim=1)
    inputs["q"], inputs["k"] = both.split([inputs["q"].shape[1], inputs["k"].shape[1]], dim=1)


def _strided_angles(inputs: dict) -> None:
    for name in ("cos", "sin"):
        inputs[name] = inputs[name].repeat_interleave(2, 1)[:, ::2]


@pytest.mark.parametrize(
    "change", [_heads_first, _strided_elements, _one_projection, _strided_angles]
)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_memory_layouts(backend, device, change):
    inputs = Case(2, 6, 4, 2, 16).inputs(device)
    change(inputs)
    for out, exact in zip(
        rotary_embedding(**inputs, backend=backend), truth(**inputs), strict=True
    ):
        assert_close_to_truth(out, exact)


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (2, 0)])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_no_positions(backend, device, batch, length):
    q, k = rotary_embedding(**Case(batch, length, 4, 2, 8).inputs(device), backend=backend)
    assert q.shape == (batch, 4, length, 8)
    assert k.shape == (batch, 2, length, 8)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_a_position_has_the_same_bits_in_any_batch(backend, device):
    inputs = Case(2, 33, 4, 2, 38).inputs(device)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1)).to(device)[:9]
    alone = {name: x[1:2].index_select(-2, order) for name, x in inputs.items()}
    for together, fewer in zip(
        rotary_embedding(**inputs, backend=backend),
        rotary_embedding(**alone, backend=backend),
        strict=True,
    ):
        assert torch.equal(together[1:2].index_select(2, order), fewer)


@pytest.mark.slow
@pytest.mark.parametrize("one_angle", [True, False])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_opcheck(backend, device, one_angle):
    inputs = Case(2, 3, 4, 2, 8, one_angle).inputs(device)
    torch.library.opcheck(_rotary_embedding, (), {**inputs, "backend": backend})


@pytest.mark.slow
def test_torch_compile_keeps_it_whole():
    def attention(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k = rotary_embedding(2 * q, k, cos, sin)
        return q @ k.mT

    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (2, 5):
        inputs = Case(2, length, 2, 2, 8).inputs()
        torch.testing.assert_close(compiled(**inputs), attention(**inputs))


def test_only_the_reference_has_gradients():
    inputs = Case(1, 2, 2, 1, 4, dtype=torch.float64).inputs()
    leaves = [inputs[name].requires_grad_() for name in ("q", "k", "cos", "sin")]
    assert torch.autograd.gradcheck(rotary_embedding_reference, leaves)
    with pytest.raises(RuntimeError, match=r"rotary_embedding has no gradient.*_reference"):
        rotary_embedding(*leaves)[0].sum().backward()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": [1.0]}, TypeError, "q must be a torch.Tensor, got list"),
        ({"q": torch.ones(2, 4, 3, 8).int()}, TypeError, "q must be float32 or .*, got int32"),
        ({"q": torch.ones(4, 3, 8)}, ValueError, r"q must have shape \(B, H, T, D\)"),
        ({"q": torch.ones(2, 4, 3, 7)}, ValueError, "q must have heads of even size"),
        ({"q": torch.ones(2, 0, 3, 8)}, ValueError, "q and k must have heads, got 0 and 2"),
        ({"k": torch.ones(2, 2, 4, 8)}, ValueError, r"k must have shape \(2, G, 3, 8\)"),
        ({"k": torch.ones(2, 2, 3, 8).half()}, TypeError, "k must be float32, got float16"),
        ({"cos": torch.ones(2, 3, 4)}, ValueError, r"cos must have shape \(B, 3, 8\)"),
        ({"cos": torch.ones(3, 3, 8)}, ValueError, "cos must have 1 or 2 items as q has, got 3"),
        ({"sin": torch.ones(1, 3, 8)}, ValueError, r"sin must have shape \(2, 3, 8\)"),
        ({"sin": torch.ones(2, 3, 8, device="meta")}, ValueError, "sin must be on cpu"),
        ({"backend": "cuda"}, BackendUnavailableError, "has only reference, cpu, triton"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        rotary_embedding(**{**Case(2, 3, 4, 2, 8).inputs(), **changes})


def test_the_triton_kernel_compiles_for_a_gpu():
    sizes = {"HEADS": 16, "KV_HEADS": 2, "HALF": 64}
    blocks = {"BLOCK_HEADS": 16, "BLOCK_KV_HEADS": 2, "BLOCK_HALF": 64}
    types = {
        "q k cos sin q_out k_out": "*bf16",
        "q_item_stride q_head_stride q_token_stride": "i64",
        "k_item_stride k_head_stride k_token_stride": "i64",
        "angle_stride length": "i64",
    }
    compile_for_a_gpu("rotary_embedding", types, {**sizes, **blocks})


@pytest.mark.gpu
def test_cuda_graph():
    case = Case(1, 640, 16, 8, 128)
    inputs = case.inputs("cuda")
    rotary_embedding(**inputs)  # compiles and loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = rotary_embedding(**inputs)
    inputs["q"].copy_(case.inputs("cuda", seed=1)["q"])
    graph.replay()
    for out, exact in zip(outputs, truth(**inputs), strict=True):
        assert_close_to_truth(out, exact)
