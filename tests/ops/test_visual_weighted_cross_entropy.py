from __future__ import annotations

import importlib
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from gpu_code import compile_for_a_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close_to_truth, assert_no_worse, relative_error
from operations import BACKENDS, KERNELS
from torch import Tensor

from ragvl.ops import (
    BackendUnavailableError,
    visual_weighted_cross_entropy,
    visual_weighted_cross_entropy_reference,
    visual_weights,
)

# The name in ragvl.ops is the function
module = importlib.import_module("ragvl.ops.visual_weighted_cross_entropy")


@dataclass(frozen=True)
class Case:
    batch: int = 2
    length: int = 9
    dim: int = 16
    vocabulary: int = 50
    share: float = 0.6  # of positions that are labelled
    bias: bool = False
    clamp: tuple[float, float] = (1.0, 5.0)
    window: int = 3
    dtype: torch.dtype = torch.float32

    def inputs(self, device: str = "cpu", seed: int = 0) -> dict:
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng).to(self.dtype).to(device)

        shape = (self.batch, self.length)
        labels = torch.randint(0, self.vocabulary, shape, generator=rng)
        labels[torch.rand(shape, generator=rng) >= self.share] = -100
        return {
            # Logits of a few units, so that some gaps are clamped below, some above, some not
            "hidden": 2 * normal(*shape, self.dim),
            "hidden_noisy": 2 * normal(*shape, self.dim),
            "head_weight": normal(self.vocabulary, self.dim) / self.dim**0.5 * 1.5,
            "labels": labels.to(device),
            "head_bias": normal(self.vocabulary) if self.bias else None,
            "clamp": self.clamp,
            "window": self.window,
        }


CASES = [
    Case(),
    Case(bias=True),
    Case(batch=1, length=1, share=1.0),
    Case(batch=5, length=3, vocabulary=7, dim=3),
    Case(batch=3, length=40, vocabulary=5003, dim=33),
    Case(share=1.0, window=1),
    Case(share=1.0, window=7, clamp=(0.5, 0.5)),
    Case(batch=8, length=4, share=0.3, window=5, bias=True),
]


def truth(
    hidden: Tensor,
    hidden_noisy: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    head_bias: Tensor | None = None,
    clamp: tuple[float, float] = (1.0, 5.0),
    window: int = 3,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The definition, position by position, on all logits of both branches."""
    head = (head_weight.to(dtype), None if head_bias is None else head_bias.to(dtype))
    logits, noisy = (F.linear(h.to(dtype), *head) for h in (hidden, hidden_noisy))
    total, norm = logits.new_zeros(()), logits.new_zeros(())
    for b in range(len(labels)):
        marked = [t for t in range(labels.shape[1]) if labels[b, t] != -100]
        gaps = [(logits[b, t] - noisy[b, t])[labels[b, t]].detach().clamp(*clamp) for t in marked]
        for i, t in enumerate(marked):
            near = gaps[max(0, i - window // 2) : i + window // 2 + 1]
            weight = sum(near) / len(near)
            total = total - weight * logits[b, t].log_softmax(0)[labels[b, t]]
            norm = norm + weight
    return total / norm


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_float32_matches_float64(backend, device, case):
    inputs = case.inputs(device)
    loss = visual_weighted_cross_entropy(**inputs, backend=backend)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert_close_to_truth(loss, truth(**inputs))


def gradients(function, inputs: dict, names: list[str], **options) -> list[Tensor]:
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in names}
    (2.5 * function(**{**inputs, **leaves}, **options)).backward()
    return [leaves[name].grad for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("names", [["hidden"], ["head_weight"], ["hidden", "head_weight"]])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_gradients_match_float64(backend, device, names, case):
    inputs = case.inputs(device)
    names = [*names, "head_bias"] if case.bias else names
    grads = gradients(visual_weighted_cross_entropy, inputs, names, backend=backend)
    for ours, exact in zip(grads, gradients(truth, inputs, names), strict=True):
        assert_close_to_truth(ours, exact)


def test_gradcheck() -> None:
    inputs = Case(bias=True, vocabulary=6, dim=4, length=4, dtype=torch.float64).inputs()
    names = ["hidden", "head_weight", "head_bias"]
    leaves = [inputs[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(
        # The weights are constants: a small step of hidden must not move them
        lambda *t: visual_weighted_cross_entropy(
            **{**inputs, **dict(zip(names, t, strict=True)), "clamp": (2.0, 2.0)}
        ),
        leaves,
    )


def test_weights_are_constants() -> None:
    inputs = Case(share=1.0).inputs()
    leaf = inputs["hidden_noisy"].requires_grad_()
    hidden = inputs["hidden"].requires_grad_()
    visual_weighted_cross_entropy(**inputs).backward()
    assert leaf.grad is None
    assert hidden.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk_bytes", [1 << 30, 1])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_half_precision_errs_at_most_twice_as_much_as_torch(
    backend, device, chunk_bytes, dtype, monkeypatch
):
    monkeypatch.setattr(module, "_CHUNK_BYTES", {"cpu": chunk_bytes, "cuda": chunk_bytes})
    inputs = replace(CASES[4], dtype=dtype).inputs(device)
    names = ["hidden", "head_weight"]
    assert_no_worse(
        visual_weighted_cross_entropy(**inputs, backend=backend),
        truth(**inputs, dtype=dtype),
        truth(**inputs),
    )
    grads = gradients(visual_weighted_cross_entropy, inputs, names, backend=backend)
    plain = gradients(truth, inputs, names, dtype=dtype)
    exact = gradients(truth, {k: v.double() if k in names else v for k, v in inputs.items()}, names)
    for ours, torchs, best in zip(grads, plain, exact, strict=True):
        assert_no_worse(ours, torchs, best, floor=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_chunks_change_nothing(backend, device, monkeypatch):
    inputs = replace(CASES[4], bias=True).inputs(device)
    names = ["hidden", "head_weight", "head_bias"]
    whole = gradients(visual_weighted_cross_entropy, inputs, names, backend=backend)
    monkeypatch.setattr(module, "_CHUNK_BYTES", {"cpu": 1, "cuda": 1})  # 16 rows
    chunked = gradients(visual_weighted_cross_entropy, inputs, names, backend=backend)
    for one, other in zip(whole, chunked, strict=True):
        assert relative_error(one, other) < 1e-6


def count_products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what is multiplied with the vocabulary from now on, without gradients'."""
    seen: list[torch.Size] = []
    product, add_product = module._product, module._add_product

    def counted(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        seen.append(a.shape)
        return product(a, b, dtype)

    def counted_add(total: Tensor, a: Tensor, b: Tensor) -> None:
        seen.append(a.shape)
        add_product(total, a, b)

    monkeypatch.setattr(module, "_product", counted)
    monkeypatch.setattr(module, "_add_product", counted_add)
    return seen


def test_never_holds_the_whole_logits(monkeypatch) -> None:
    """The largest product with the vocabulary has a chunk's rows, and labelled ones only."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", {"cpu": 1})
    seen = count_products(monkeypatch)
    inputs = Case(batch=4, length=64, share=0.5).inputs()
    visual_weighted_cross_entropy(**inputs)
    labelled = int((inputs["labels"] != -100).sum())
    assert sum(rows for rows, _ in seen) == labelled
    assert max(rows for rows, _ in seen) == 16


def test_a_frozen_head_costs_no_product(monkeypatch) -> None:
    seen = count_products(monkeypatch)
    inputs = Case().inputs()
    inputs["hidden"].requires_grad_()
    visual_weighted_cross_entropy(**inputs)
    assert len(seen) == 1
    inputs["head_weight"].requires_grad_()
    visual_weighted_cross_entropy(**inputs)
    assert len(seen) == 3


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_all_ignored(backend, device):
    inputs = Case(share=0.0).inputs(device)
    assert visual_weighted_cross_entropy(**inputs, backend=backend) == 0
    for grad in gradients(
        visual_weighted_cross_entropy, inputs, ["hidden", "head_weight"], backend=backend
    ):
        assert not grad.any()


@pytest.mark.parametrize("name", ["hidden", "hidden_noisy"])
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nan_shows_where_it_counts(backend, device, name):
    inputs = Case(share=0.5).inputs(device)
    labelled = inputs["labels"] != -100
    inputs[name][~labelled] = float("nan")
    assert visual_weighted_cross_entropy(**inputs, backend=backend).isfinite()
    b, t = labelled.nonzero()[0]
    inputs[name][b, t, 0] = float("nan")
    assert visual_weighted_cross_entropy(**inputs, backend=backend).isnan()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_extreme_logits(backend, device):
    hidden = torch.tensor([[[1e4, 0.0], [0.0, 1e4]]], device=device)
    head, labels = torch.eye(2, device=device), torch.tensor([[0, 0]], device=device)
    loss = visual_weighted_cross_entropy(
        hidden, torch.zeros_like(hidden), head, labels, window=1, backend=backend
    )
    # weights 5 and 1, losses 0 and 10,000
    assert loss.item() == pytest.approx(1e4 / 6, rel=1e-6)


def test_weights_by_hand() -> None:
    gap = torch.tensor([1.0, 2.0, 6.0, 4.0, 5.0])
    sequence = torch.tensor([0, 0, 0, 2, 2])
    assert visual_weights(gap, sequence, 3).tolist() == [1.5, 3.0, 4.0, 4.5, 4.5]
    assert visual_weights(gap, sequence, 1).tolist() == gap.tolist()
    assert visual_weights(gap[:0], sequence[:0], 3).tolist() == []
    assert visual_weights(gap, sequence, 99).tolist() == [3.0, 3.0, 3.0, 4.5, 4.5]


@settings(max_examples=60)
@given(
    case=st.builds(
        Case,
        batch=st.integers(1, 4),
        length=st.integers(1, 12),
        dim=st.integers(1, 40),
        vocabulary=st.integers(2, 300),
        share=st.floats(0.1, 1),
        bias=st.booleans(),
        window=st.sampled_from([1, 3, 5, 9]),
        clamp=st.sampled_from([(1.0, 5.0), (0.1, 2.0)]),
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_case_on_the_cpu(case, seed):
    inputs = case.inputs(seed=seed)
    if not (inputs["labels"] != -100).any():
        return
    loss = visual_weighted_cross_entropy(**inputs, backend="cpu")
    torch.testing.assert_close(loss.double(), truth(**inputs), rtol=1e-4, atol=1e-5)


def test_without_a_gap_it_is_the_mean_cross_entropy() -> None:
    inputs = Case().inputs()
    inputs["hidden_noisy"] = inputs["hidden"]
    logits = F.linear(inputs["hidden"], inputs["head_weight"])
    plain = F.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())
    torch.testing.assert_close(visual_weighted_cross_entropy(**inputs), plain)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0)], ids=str)
def test_no_positions(backend, device, shape):
    inputs = Case(batch=shape[0], length=shape[1]).inputs(device)
    assert visual_weighted_cross_entropy(**inputs, backend=backend) == 0


def _strided_rows(inputs: dict) -> None:
    for name in ("hidden", "hidden_noisy"):
        inputs[name] = torch.cat([inputs[name]] * 2, dim=2)[..., : inputs[name].shape[2]]


def _strided_columns(inputs: dict) -> None:
    for name in ("hidden", "hidden_noisy"):
        inputs[name] = inputs[name].transpose(0, 2).contiguous().transpose(0, 2)


def _strided_head(inputs: dict) -> None:
    inputs["head_weight"] = inputs["head_weight"].t().contiguous().t()
    inputs["head_bias"] = inputs["head_bias"].repeat_interleave(2)[::2]


def _strided_labels(inputs: dict) -> None:
    inputs["labels"] = inputs["labels"].t().contiguous().t()


@pytest.mark.parametrize(
    "change", [_strided_rows, _strided_columns, _strided_head, _strided_labels]
)
@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_memory_layouts(backend, device, change):
    inputs = Case(batch=3, bias=True).inputs(device)
    change(inputs)
    assert_close_to_truth(visual_weighted_cross_entropy(**inputs, backend=backend), truth(**inputs))
    names = ["hidden", "head_weight", "head_bias"]
    grads = gradients(visual_weighted_cross_entropy, inputs, names, backend=backend)
    for ours, exact in zip(grads, gradients(truth, inputs, names), strict=True):
        assert_close_to_truth(ours, exact)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_opcheck(backend, device) -> None:
    inputs = Case(bias=True).inputs(device)
    names = ("hidden", "hidden_noisy", "head_weight", "labels", "head_bias")
    tensors = [inputs[name] for name in names]
    torch.library.opcheck(
        module._visual_weighted_cross_entropy,
        (*tensors, 1.0, 5.0, 3, -100, True, True, True, backend),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "device"), KERNELS)
def test_torch_compile_changes_nothing(backend, device) -> None:
    def doubled(**inputs) -> Tensor:
        return 2 * visual_weighted_cross_entropy(**inputs, backend=backend)

    # Not in one graph: that labels are in the vocabulary is looked at first
    compiled = torch.compile(doubled, backend="aot_eager")
    inputs = Case().inputs(device)
    assert_close_to_truth(compiled(**inputs), 2 * truth(**inputs))
    for ours, exact in zip(
        *(
            gradients(function, inputs, ["hidden", "head_weight"])
            for function in (compiled, doubled)
        ),
        strict=True,
    ):
        torch.testing.assert_close(ours, exact)


@pytest.mark.gpu
def test_runs_on_the_current_stream() -> None:
    inputs = Case().inputs("cuda")
    expected, hidden = truth(**inputs), inputs["hidden"].clone()
    inputs["hidden"].zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on any other stream would see the zeros
        inputs["hidden"].copy_(hidden)
        loss = visual_weighted_cross_entropy(**inputs, backend="triton")
    stream.synchronize()
    assert_close_to_truth(loss, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_refuses_to_be_captured_in_a_graph(backend) -> None:
    inputs = Case().inputs("cuda")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="labelled positions"), torch.cuda.graph(graph):
        visual_weighted_cross_entropy(**inputs, backend=backend)


def test_the_triton_kernel_compiles_for_a_gpu():
    types = {
        "logits weights losses": "*fp32",
        "label": "*i64",
        "row_stride": "i64",
        "vocabulary": "i32",
    }
    sizes = {"NEEDS_SLOPES": True, "BLOCK_SIZE": 4096}
    compile_for_a_gpu("visual_weighted_cross_entropy", types, sizes, "_weighted_softmax_fwd_kernel")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hidden": torch.ones(2, 9)}, ValueError, r"hidden must have shape \(B, T, D\)"),
        ({"hidden_noisy": torch.ones(3, 9, 16)}, ValueError, r"hidden_noisy must have shape \(2"),
        ({"hidden_noisy": torch.ones(2, 9, 16).half()}, TypeError, "hidden_noisy must be float32"),
        ({"head_weight": torch.ones(50, 15)}, ValueError, r"head_weight must have shape \(V, 16\)"),
        ({"labels": torch.zeros(2, 8).long()}, ValueError, r"labels must have shape \(2, 9\)"),
        ({"labels": torch.zeros(2, 9)}, TypeError, "labels must be int64"),
        ({"labels": torch.full((2, 9), 50)}, ValueError, r"labels\[0, 0\] is 50.*has 50 rows"),
        ({"labels": torch.full((2, 9), -1)}, ValueError, r"labels\[0, 0\] is -1"),
        ({"head_bias": torch.ones(49)}, ValueError, r"head_bias must have shape \(50,\)"),
        ({"clamp": (5.0, 1.0)}, ValueError, "clamp must be two positive numbers"),
        ({"clamp": (0.0, 1.0)}, ValueError, "clamp must be two positive numbers"),
        ({"window": 2}, ValueError, "window must be odd"),
        ({"window": -1}, ValueError, "window must be odd"),
        ({"ignore_index": 3}, ValueError, "ignore_index=3 is a token"),
        ({"backend": "cuda"}, BackendUnavailableError, "has only reference, cpu, triton"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        visual_weighted_cross_entropy(**{**Case().inputs(), **arguments})


def test_the_reference_is_exported() -> None:
    inputs = Case().inputs()
    loss = visual_weighted_cross_entropy_reference(**inputs)
    torch.testing.assert_close(loss, visual_weighted_cross_entropy(**Case().inputs()))
