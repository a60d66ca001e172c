"""visual_weighted_cross_entropy, forward and backward, against eager code on both branches' logits.

As a script it prints a table of the CPU and writes benchmarks/results; under pytest it is a
pytest-benchmark suite of the same methods, on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Annotated

import pytest
import torch
import torch.nn.functional as F
import typer
from common import backends_to_measure
from operation import CPU, DEVICE, Method, measure_operation, speed_table, speedup
from tables import Result, Results
from torch import Tensor

from ragvl.ops import visual_weighted_cross_entropy, visual_weights

OPERATION = "visual_weighted_cross_entropy"
BASELINE = "eager"


@dataclass(frozen=True)
class Size:
    """How much is to be computed: positions, hidden size, vocabulary, dtype of hidden and head."""

    positions: int
    dim: int
    vocabulary: int
    dtype: torch.dtype


# A quarter of InternVL2-2B's, so that eager fits into memory
SIZE = Size(2048, 512, 37_913, torch.float32)
CASES = list(product(("5 %", "100 %"), ("trained", "frozen")))  # (positions labelled, the head)


def methods(size: Size, labelled: str, head: str, device: torch.device) -> dict[str, Method]:
    """What to compare, by name; each gives the loss and leaves gradients of nothing behind."""
    rng = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device, dtype=size.dtype)

    batch = 4
    shape = (batch, size.positions // batch)
    hidden = normal(*shape, size.dim).requires_grad_()
    hidden_noisy = normal(*shape, size.dim)
    weight = (normal(size.vocabulary, size.dim) / size.dim**0.5).requires_grad_(head == "trained")
    labels = torch.randint(size.vocabulary, shape, generator=rng, device=device)
    # The last of each sequence, as an answer's are
    labels[:, : round((1 - float(labelled.removesuffix(" %")) / 100) * shape[1])] = -100

    def eager_loss() -> Tensor:
        """As RagVL's release computes it, with the label's column."""
        logits = F.linear(hidden, weight).float()
        with torch.no_grad():
            noisy = F.linear(hidden_noisy, weight).float()
        kept = labels != -100
        target = labels[kept]
        with torch.no_grad():
            columns = labels.clamp_min(0)[..., None]
            gap = (logits.gather(2, columns) - noisy.gather(2, columns))[..., 0]
            weights = visual_weights(gap[kept].clamp(1, 5), kept.nonzero()[:, 0], 3)
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100
        )
        return (losses[kept.flatten()] * weights).sum() / weights.sum() + 0 * target.sum()

    def with_gradients(loss: Callable[[], Tensor]) -> Tensor:
        value = loss()
        wanted = [hidden, weight] if head == "trained" else [hidden]
        torch.autograd.grad(value, wanted)
        return value.detach()

    calls: dict[str, Method] = {BASELINE: partial(with_gradients, eager_loss)}
    for backend in backends_to_measure(OPERATION, device, size.dtype):

        def fused(backend: str = backend) -> Tensor:
            return visual_weighted_cross_entropy(
                hidden, hidden_noisy, weight, labels, backend=backend
            )

        calls[backend] = partial(with_gradients, fused)
    liger = _liger(hidden, weight, labels)
    if liger is not None:
        calls["liger, unweighted, one branch"] = partial(with_gradients, liger)
    return calls


def _liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Callable[[], Tensor] | None:
    """Liger's fused linear cross-entropy: the nearest public kernel, without noise or weights.

    Its Triton kernels need a GPU.
    """
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return None
    if not hidden.is_cuda:
        return None
    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda: loss(weight, hidden.flatten(0, 1), labels.flatten())


_SMALL = Size(64, 16, 100, torch.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("method", methods(_SMALL, "100 %", "frozen", DEVICE))
def test_visual_weighted_cross_entropy(benchmark, method: str, case: tuple[str, str]) -> None:
    everyone = methods(SIZE, *case, DEVICE)
    result = benchmark(everyone[method])
    if not method.startswith("liger"):
        torch.testing.assert_close(result, everyone[BASELINE](), rtol=1e-2, atol=0)


def table(results: Results) -> str:
    """Speed and memory of the backends, with gradients, against eager code on all logits."""
    result = results["visual_weighted_cross_entropy_cpu"]

    def with_memory(case: Result, figures: Result) -> str:
        if figures["peak_mib"] is None:
            return speedup(case, figures)
        extra = max(0.0, figures["peak_mib"] - case["gradients_mib"])
        return f"{speedup(case, figures)}, {extra:,.0f} MiB"

    return speed_table(
        result,
        {"labelled": "labelled", "head": "head"},
        ["eager", "reference", "cpu"],
        f"Loss and gradients of {result['positions']:,} positions, hidden size {result['dim']:,}, "
        f"a vocabulary of {result['vocabulary']:,}, {result['dtype']}, against both branches' "
        f"logits in float32. Memory is the peak above inputs and gradients returned",
        cell=with_memory,
    )


def main(
    rounds: Annotated[int, typer.Option(help="Samples of each method.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads.")] = torch.get_num_threads(),
) -> None:
    """Measure, print a table and write benchmarks/results/<operation>_cpu.json.

    Memory is the peak above the inputs, so the gradients that are returned count; what they take is
    in the result, too.
    """
    itemsize = SIZE.dtype.itemsize
    weight_gradient = {"trained": SIZE.vocabulary * SIZE.dim, "frozen": 0}
    cases = [
        {
            "labelled": labelled,
            "head": head,
            "gradients_mib": (SIZE.positions * SIZE.dim + weight_gradient[head]) * itemsize / 2**20,
        }
        for labelled, head in CASES
    ]
    measure_operation(
        OPERATION,
        cases,
        lambda case: methods(SIZE, case["labelled"], case["head"], CPU),
        BASELINE,
        rounds=rounds,
        threads=threads,
        sample_ms=0,
        memory=True,
        **asdict(SIZE) | {"dtype": str(SIZE.dtype).removeprefix("torch.")},
    )


if __name__ == "__main__":
    typer.run(main)
