from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from gpu_code import compile_for_a_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close_to_truth, assert_no_worse
from operations import BACKENDS_WITH_CUDA as BACKENDS
from operations import KERNELS_WITH_CUDA as KERNELS
from torch import Tensor

from ragvl import _C
from ragvl.ops import BackendUnavailableError, relevance_head, relevance_head_reference
from ragvl.ops.relevance_head import _IMPLEMENTATIONS, Arguments, _relevance_head


@dataclass(frozen=True)
class Case:
    batch: int
    dim: int
    rows: int = 2
    num_yes: int = 1
    norm: str = "rms"
    norm_weight: bool = True
    norm_bias: bool = False
    head_bias: bool = False
    softcap: float | None = None
    dtype: torch.dtype = torch.float32

    def inputs(self, device: str = "cpu", seed: int = 0) -> dict:
        """Random arguments of `relevance_head`: prompts of 1 to 9 tokens, packed."""
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng).to(self.dtype).to(device)

        lengths = torch.randint(1, 10, (self.batch,), generator=rng)
        arguments = {
            "hidden": 3 * normal(int(lengths.sum()), self.dim),
            "last_index": (lengths.cumsum(0) - 1).to(device),
            "norm_weight": 1 + normal(self.dim) / 4 if self.norm_weight else None,
            "head_rows": normal(self.rows, self.dim) / self.dim**0.5,
            "num_yes": self.num_yes,
            "norm": self.norm,
            "softcap": self.softcap,
        }
        if self.norm_bias:
            arguments["norm_bias"] = normal(self.dim)
        if self.head_bias:
            arguments["head_bias"] = normal(self.rows)
        return arguments


CASES = [
    Case(20, 896),  # a retriever's list in front of a small model
    Case(1, 4096),  # one prompt; the size of a 7 B model
    Case(3, 1),  # the smallest hidden size: an RMS norm leaves only the sign
    Case(5, 7),  # smaller than any vector register, and odd
    Case(4, 100),  # whole vectors and a remainder
    Case(2, 5003),  # a large prime: no alignment anywhere
    Case(130, 48),  # more prompts than threads
    Case(4, 64, norm_weight=False),
    Case(4, 64, norm="layer", norm_bias=True),
    Case(4, 67, norm="layer"),
    Case(4, 64, norm="layer", norm_weight=False),
    Case(4, 64, norm="none", norm_weight=False),
    Case(4, 64, rows=7, num_yes=3),  # several spellings of each answer
    Case(4, 64, rows=7, num_yes=6, head_bias=True),
    Case(4, 64, softcap=30.0),  # Gemma's cap: logits far below it
    Case(4, 64, softcap=0.5),  # logits near it and over it
    Case(4, 67, 5, 2, "layer", True, True, True, 2.0),  # everything at once
]


def truth(
    hidden: Tensor,
    last_index: Tensor,
    norm_weight: Tensor | None,
    head_rows: Tensor,
    num_yes: int = 1,
    eps: float = 1e-6,
    norm: str = "rms",
    norm_bias: Tensor | None = None,
    head_bias: Tensor | None = None,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """The definition, by torch's own modules in `dtype`, and probabilities by a softmax."""

    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    x, shape = hidden[last_index.long()].to(dtype), (hidden.shape[1],)
    if norm == "rms":
        x = F.rms_norm(x, shape, cast(norm_weight), eps)
        x = x if norm_bias is None else x + cast(norm_bias)
    elif norm == "layer":
        x = F.layer_norm(x, shape, cast(norm_weight), cast(norm_bias), eps)
    z = F.linear(x, cast(head_rows), cast(head_bias))
    z = z if softcap is None else torch.tanh(z / softcap) * softcap
    probabilities = z.to(torch.promote_types(dtype, torch.float32)).softmax(-1)
    yes, no = probabilities[:, :num_yes].sum(-1), probabilities[:, num_yes:].sum(-1)
    logits = torch.stack([z[:, :num_yes].logsumexp(-1), z[:, num_yes:].logsumexp(-1)], -1)
    return logits, yes / (yes + no)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_float32_matches_float64(backend, device, case):
    inputs = case.inputs(device)
    logits, relevance = relevance_head(**inputs, backend=backend)
    expected_logits, expected_relevance = truth(**inputs)
    assert logits.dtype == relevance.dtype == torch.float32
    assert_close_to_truth(logits, expected_logits)
    assert_close_to_truth(relevance, expected_relevance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [Case(20, 896), Case(9, 67, 5, 2, "layer", True, True, True, 2.0)])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_half_precision_errs_at_most_twice_as_much_as_torch(backend, device, case, dtype):
    inputs = replace(case, dtype=dtype).inputs(device)
    outputs = relevance_head(**inputs, backend=backend)
    for out, plain, exact in zip(
        outputs, truth(**inputs, dtype=dtype), truth(**inputs), strict=True
    ):
        assert out.dtype == torch.float32
        assert_no_worse(out, plain, exact)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_float32_parameters_beside_bfloat16_hidden_keep_their_precision(backend, device):
    inputs = Case(8, 96, head_bias=True).inputs(device)
    inputs["hidden"] = inputs["hidden"].bfloat16()
    outputs = relevance_head(**inputs, backend=backend)
    for out, exact in zip(outputs, truth(**inputs), strict=True):
        assert_close_to_truth(out, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_every_instruction_set(isa, dtype, monkeypatch):
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    assert _C.cpu_isa() == isa
    for case in (Case(6, 103, 5, 2, "layer", True, True, True, 2.0), Case(6, 512)):
        inputs = replace(case, dtype=dtype).inputs()
        outputs = relevance_head(**inputs, backend="cpu")
        for out, exact in zip(outputs, truth(**inputs), strict=True):
            assert_close_to_truth(out, exact)


def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("RAGVL_CPU_ISA", "mmx")
    with pytest.raises(ValueError, match=r"RAGVL_CPU_ISA=mmx.*available: baseline"):
        relevance_head(**Case(1, 8).inputs(), backend="cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("isa", _C.cpu_isas())
def test_every_half_precision_number_is_read_exactly(isa, dtype, monkeypatch):
    monkeypatch.setenv("RAGVL_CPU_ISA", isa)
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    one_is_the_number = torch.tensor([[1.0], [0.0]])
    logits, _ = relevance_head(
        numbers[:, None], torch.arange(2**16), None, one_is_the_number, norm="none", backend="cpu"
    )
    torch.testing.assert_close(logits[:, 0], numbers.float(), rtol=0, atol=0, equal_nan=True)


def _strided_rows(inputs: dict) -> None:
    inputs["hidden"] = torch.cat([inputs["hidden"]] * 2, dim=1)[:, : inputs["hidden"].shape[1]]


def _misaligned(inputs: dict) -> None:
    flat = F.pad(inputs["hidden"].flatten(), (1, 0))
    inputs["hidden"] = flat[1:].view(inputs["hidden"].shape)


def _strided_columns(inputs: dict) -> None:
    inputs["hidden"] = inputs["hidden"].t().contiguous().t()


def _one_row_for_all(inputs: dict) -> None:
    inputs["hidden"] = inputs["hidden"][:1].expand_as(inputs["hidden"])


def _strided_parameters(inputs: dict) -> None:
    for name in ("norm_weight", "norm_bias", "head_bias"):
        inputs[name] = inputs[name].repeat_interleave(2)[::2]
    inputs["head_rows"] = inputs["head_rows"].t().contiguous().t()


def _strided_int32_index(inputs: dict) -> None:
    inputs["last_index"] = inputs["last_index"].repeat_interleave(3)[::3].int()


@pytest.mark.parametrize(
    "change",
    [
        _strided_rows,
        _misaligned,
        _strided_columns,
        _one_row_for_all,
        _strided_parameters,
        _strided_int32_index,
    ],
)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_memory_layouts(backend, device, change):
    inputs = Case(5, 64, 3, 1, "layer", True, True, True).inputs(device)
    change(inputs)
    outputs = relevance_head(**inputs, backend=backend)
    for out, exact in zip(outputs, truth(**inputs), strict=True):
        assert_close_to_truth(out, exact)


@pytest.mark.parametrize("num_tokens", [0, 6])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_no_prompts(backend, device, num_tokens):
    inputs = Case(3, 8).inputs(device)
    inputs["hidden"] = inputs["hidden"].new_ones(num_tokens, 8)
    inputs["last_index"] = inputs["last_index"][:0]
    logits, relevance = relevance_head(**inputs, backend=backend)
    assert logits.shape == (0, 2)
    assert relevance.shape == (0,)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_a_prompt_scores_the_same_in_any_batch(backend, device):
    inputs = Case(33, 515).inputs(device)
    together = relevance_head(**inputs, backend=backend)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1)).to(device)
    shuffled = relevance_head(
        **{**inputs, "last_index": inputs["last_index"][order]}, backend=backend
    )
    alone = relevance_head(**{**inputs, "last_index": inputs["last_index"][7:8]}, backend=backend)
    for batch, other, single in zip(together, shuffled, alone, strict=True):
        # Bitwise: each prompt's sums are taken in an order that only the hidden size sets.
        assert torch.equal(batch[order], other)
        assert torch.equal(batch[7:8], single)


def test_the_number_of_threads_changes_nothing():
    inputs = Case(64, 2048).inputs()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = relevance_head(**inputs, backend="cpu")
        torch.set_num_threads(4)
        four = relevance_head(**inputs, backend="cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0], four[0])
    assert torch.equal(one[1], four[1])


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nan_stays_with_its_prompt(backend, device):
    inputs = Case(4, 40).inputs(device)
    inputs["hidden"][inputs["last_index"][2], 5] = float("nan")
    logits, relevance = relevance_head(**inputs, backend=backend)
    assert relevance.isnan().tolist() == [False, False, True, False]
    assert logits.isnan().all(dim=1).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("name", "logits_nan"),
    [("norm_weight", [True, True]), ("head_rows", [True, False]), ("head_bias", [True, False])],
)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nan_parameters_show(backend, device, name, logits_nan):
    inputs = Case(2, 16, head_bias=True).inputs(device)
    inputs[name].view(-1)[0] = float("nan")
    logits, relevance = relevance_head(**inputs, backend=backend)
    assert logits.isnan().tolist() == [logits_nan] * 2
    assert relevance.isnan().all()


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_kernels_read_nothing_outside_hidden(backend, device):
    inputs = Case(4, 64).inputs(device)
    rows = inputs["hidden"].shape[0]
    last_index = torch.tensor([0, rows, -1, rows - 1], device=device)
    # Past the check, which a GPU's indices do not get since reading them would mean waiting.
    arguments = Arguments(
        inputs["hidden"],
        last_index,
        inputs["norm_weight"],
        inputs["head_rows"],
        num_yes=1,
        eps=1e-6,
        norm="rms",
        norm_bias=None,
        head_bias=None,
        softcap=None,
    )
    logits, relevance = _IMPLEMENTATIONS[backend](arguments)
    assert relevance.isnan().tolist() == [False, True, True, False]
    assert logits.isnan().all(dim=1).tolist() == [False, True, True, False]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_extreme_logits(backend, device):
    #                     yes far above, far below, beyond float32, both beyond it
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [3e38, 0.0], [3e38, 3e38]], device=device)
    head_rows = torch.tensor([[2.0, 0.0], [0.0, 2.0]], device=device)
    logits, relevance = relevance_head(
        hidden, torch.arange(4, device=device), None, head_rows, norm="none", backend=backend
    )
    inf = float("inf")
    assert logits.tolist() == [[2e4, 0], [-2e4, 0], [inf, 0], [inf, inf]]
    assert relevance[:3].tolist() == [1.0, 0.0, 1.0]
    assert relevance[3].isnan()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_layer_norm_far_from_zero(backend, device):
    inputs = Case(6, 768, norm="layer", norm_bias=True).inputs(device)
    # mean(x²) - mean(x)², taken in one pass, would lose every digit of a variance of 9 here.
    inputs["hidden"] = inputs["hidden"] + 3e3
    outputs = relevance_head(**inputs, backend=backend)
    plain = truth(**inputs, dtype=torch.float32)
    for out, in_float32, exact in zip(outputs, plain, truth(**inputs), strict=True):
        assert_no_worse(out, in_float32, exact, floor=2e-4)


# Hypothesis draws what no grid has: sizes, counts of spellings and seeds, together.
_cases = st.builds(
    Case,
    batch=st.integers(1, 6),
    dim=st.integers(1, 300),
    rows=st.just(6),
    num_yes=st.integers(1, 5),
    norm=st.sampled_from(["rms", "layer"]),
    norm_bias=st.booleans(),
    head_bias=st.booleans(),
    softcap=st.sampled_from([None, 5.0]),
)


@settings(max_examples=60)
@given(case=_cases, seed=st.integers(0, 2**32 - 1))
def test_any_case_on_the_cpu(case, seed):
    inputs = case.inputs(seed=seed)
    # eps bounds 1 / std: where all of a row's few columns are near its mean, it would be rounding.
    for out, exact in zip(
        relevance_head(**inputs, eps=1e-2, backend="cpu"), truth(**inputs, eps=1e-2), strict=True
    ):
        torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)


@settings(max_examples=30)
@given(case=_cases, seed=st.integers(0, 2**32 - 1))
def test_yes_and_no_are_symmetric(case, seed):
    inputs = case.inputs(seed=seed)
    logits, relevance = relevance_head(**inputs, backend="cpu")
    for name in ("head_rows", "head_bias"):
        if name in inputs:
            inputs[name] = inputs[name].roll(-case.num_yes, 0)  # the No rows come first
    inputs["num_yes"] = case.rows - case.num_yes
    swapped_logits, swapped = relevance_head(**inputs, backend="cpu")
    assert torch.equal(logits, swapped_logits.flip(1))
    torch.testing.assert_close(relevance + swapped, torch.ones(case.batch), rtol=0, atol=2e-7)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_a_second_equal_spelling_adds_log_two(backend, device):
    inputs = Case(5, 32).inputs(device)
    once, _ = relevance_head(**inputs, backend=backend)
    inputs["head_rows"] = inputs["head_rows"][[0, 0, 1]]
    inputs["num_yes"] = 2
    twice, _ = relevance_head(**inputs, backend=backend)
    torch.testing.assert_close(twice[:, 0], once[:, 0] + torch.tensor(2.0).log().item())
    torch.testing.assert_close(twice[:, 1], once[:, 1])


DIFFERENTIABLE = ["hidden", "norm_weight", "head_rows", "norm_bias", "head_bias"]


def test_gradients_in_float64():
    case = Case(3, 5, 4, 2, "layer", True, True, True, 2.0, torch.float64)
    inputs = case.inputs()
    leaves = [inputs[name].requires_grad_() for name in DIFFERENTIABLE]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return relevance_head(**{**inputs, **dict(zip(DIFFERENTIABLE, tensors, strict=True))})

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("names", [DIFFERENTIABLE, ["head_rows"], ["hidden"]], ids=str)
@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_gradients_equal_the_references(backend, device, names):
    inputs = Case(4, 24, 3, 1, "rms", True, True, True, 4.0).inputs(device)
    for name in names:
        inputs[name].requires_grad_()

    def gradients(function, **options) -> tuple[Tensor, ...]:
        logits, relevance = function(**inputs, **options)
        loss = logits.square().sum() - relevance.log().sum()
        return torch.autograd.grad(loss, [inputs[name] for name in names])

    for ours, reference in zip(
        gradients(relevance_head, backend=backend), gradients(relevance_head_reference), strict=True
    ):
        assert_close_to_truth(ours, reference)


def test_gradient_of_a_tensor_given_twice():
    inputs = Case(3, 8).inputs()
    weight = inputs["norm_weight"].requires_grad_()
    inputs["norm_bias"] = weight
    ours = torch.autograd.grad(relevance_head(**inputs)[1].sum(), weight)[0]
    reference = torch.autograd.grad(relevance_head_reference(**inputs)[1].sum(), weight)[0]
    torch.testing.assert_close(ours, reference)


@pytest.mark.slow
@pytest.mark.parametrize("case", [Case(3, 8), Case(3, 8, 4, 2, "layer", True, True, True, 2.0)])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_opcheck(backend, device, case):
    inputs = {"eps": 1e-6, "norm_bias": None, "head_bias": None} | case.inputs(device)
    for name in DIFFERENTIABLE:
        if inputs[name] is not None:
            inputs[name].requires_grad_()
    torch.library.opcheck(_relevance_head, (), {**inputs, "backend": backend})


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_torch_compile_keeps_it_whole(backend, device):
    def rerank(scale: float, **inputs) -> Tensor:
        inputs["hidden"] = inputs["hidden"] * scale
        return relevance_head(**inputs, backend=backend)[1] + 1

    # Without inductor: what is tested is that tracing neither breaks nor specialises wrongly.
    compiled = torch.compile(rerank, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 5):
        inputs = Case(batch, 24).inputs(device)
        torch.testing.assert_close(compiled(0.5, **inputs), rerank(0.5, **inputs))


class _NotATensor:
    """Refused by its type."""


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": _NotATensor()}, TypeError, "hidden must be a torch.Tensor, got _NotATensor"),
        ({"hidden": torch.ones(9, 8).int()}, TypeError, "hidden must be float32 or .*, got int32"),
        ({"hidden": torch.ones(8)}, ValueError, r"hidden must have shape \(N, D\), got \(8,\)"),
        ({"hidden": torch.ones(9, 0)}, ValueError, "hidden must have at least one column"),
        ({"hidden": torch.ones(9, 8, device="meta")}, ValueError, "must be on meta .* got cpu"),
        ({"last_index": torch.ones(2)}, TypeError, "last_index must be int64 or int32"),
        ({"last_index": torch.tensor(1)}, ValueError, r"last_index must have shape \(B,\)"),
        ({"last_index": torch.tensor([0, 9])}, ValueError, "the 9 rows of hidden.*from 0 to 9"),
        ({"last_index": torch.tensor([-1, 3])}, ValueError, "from -1 to 3"),
        ({"hidden": torch.ones(0, 8)}, ValueError, "the 0 rows of hidden"),
        ({"norm_weight": torch.ones(7)}, ValueError, r"norm_weight must have shape \(8,\)"),
        ({"norm_weight": torch.ones(8).half()}, TypeError, "norm_weight must be .*, got float16"),
        ({"head_rows": torch.ones(3, 7)}, ValueError, r"head_rows must have shape \(R, 8\)"),
        ({"head_rows": torch.ones(3, 8).double()}, TypeError, "head_rows must be float32"),
        ({"head_rows": torch.ones(1, 8)}, ValueError, "num_yes=1 of 1 rows"),
        ({"num_yes": 0}, ValueError, "num_yes=0 of 3 rows"),
        ({"num_yes": 3}, ValueError, "num_yes=3 of 3 rows"),
        ({"norm": "batch"}, ValueError, "norm must be one of rms, layer, none, got 'batch'"),
        ({"norm": "none"}, ValueError, "norm='none' takes no norm_weight"),
        ({"eps": -1e-6}, ValueError, "eps must not be negative"),
        ({"eps": float("nan")}, ValueError, "eps must not be negative"),
        ({"norm_bias": torch.ones(1, 8)}, ValueError, r"norm_bias must have shape \(8,\)"),
        ({"head_bias": torch.ones(2)}, ValueError, r"head_bias must have shape \(3,\)"),
        ({"softcap": 0.0}, ValueError, "softcap must be positive"),
        ({"backend": "gpu"}, ValueError, "backend='gpu': expected one of auto, reference"),
        ({"backend": "cuda"}, BackendUnavailableError, "cannot run on cpu: it takes CUDA tensors"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments(changes, error, message):
    inputs = Case(2, 8, 3).inputs() | {"hidden": torch.ones(9, 8), "last_index": torch.arange(2)}
    with pytest.raises(error, match=message):
        relevance_head(**{**inputs, **changes})


def test_kernels_refuse_float64():
    inputs = Case(2, 8, dtype=torch.float64).inputs()
    assert relevance_head(**inputs)[1].dtype == torch.float64
    with pytest.raises(BackendUnavailableError, match=r"not torch\.float64; use backend='ref"):
        relevance_head(**inputs, backend="cpu")


def test_the_triton_kernel_compiles_for_a_gpu():
    types = {
        "hidden head_rows": "*bf16",
        "norm_weight norm_bias head_bias logits relevance": "*fp32",
        "last_index": "*i64",
        "row_stride": "i64",
        "num_rows dim num_head_rows num_yes": "i32",
        "eps softcap": "fp32",
    }
    compile_for_a_gpu("relevance_head", types, {"NORM": "layer", "BLOCK_SIZE": 4096})


GPU_BACKENDS = ["triton", "cuda"]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_cuda_graph(backend):
    inputs = Case(20, 896).inputs("cuda")
    relevance_head(**inputs, backend=backend)  # compiles and loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = relevance_head(**inputs, backend=backend)
    inputs["hidden"].copy_(Case(20, 896).inputs("cuda", seed=1)["hidden"][0])
    graph.replay()
    for out, exact in zip(outputs, truth(**inputs), strict=True):
        assert_close_to_truth(out, exact)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_runs_on_the_current_stream(backend):
    inputs = Case(20, 896).inputs("cuda")
    expected = truth(**inputs)
    hidden = inputs["hidden"].clone()
    inputs["hidden"].zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on any other stream would see the zeros
        inputs["hidden"].copy_(hidden)
        outputs = relevance_head(**inputs, backend=backend)
    stream.synchronize()
    for out, exact in zip(outputs, expected, strict=True):
        assert_close_to_truth(out, exact)
