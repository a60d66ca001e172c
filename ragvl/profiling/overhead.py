"""What `ragvl overhead` measures of a model, and the schema of its `--json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from ragvl.data.formats import open_questions
from ragvl.data.synthetic import Places, write_world
from ragvl.doctor import machine, versions
from ragvl.evaluation.result import ABSENT
from ragvl.mllm import MLLM
from ragvl.output import print_table
from ragvl.profiling.costs import (
    RerankingCost,
    TrainingCost,
    reranking_overhead,
    training_overhead,
)
from ragvl.training.adapters import LoraSettings


@dataclass(frozen=True, kw_only=True)
class OverheadResult:
    """What reranking adds to a query, and noise to a training step.

    Attributes:
        model: a hub id or a folder.
        data: the data set's name.
        rounds: timed queries and steps of each kind.
        num_candidates: documents a query.
        batch_size: examples in a training step.
        rerank: by method; absent if it was not measured.
        train: by kind of noise; absent if it was not measured.
        machine: the processor and the GPUs.
        versions: of the packages that matter.
    """

    model: str
    data: str
    rounds: int
    num_candidates: int
    batch_size: int
    rerank: dict[str, RerankingCost] = field(default_factory=dict, metadata=ABSENT)
    train: dict[str, TrainingCost] = field(default_factory=dict, metadata=ABSENT)
    machine: dict[str, str]
    versions: dict[str, str]


def measure_overhead(
    model: str,
    source: Path | None = None,
    split: str | None = None,
    *,
    only: Literal["rerank", "train"] | None = None,
    num_candidates: int = 20,
    batch_size: int = 4,
    lora_rank: int = 16,
    gradient_checkpointing: bool = False,
    rounds: int = 5,
    device: str = "auto",
    dtype: str = "auto",
) -> OverheadResult:
    """Measures a model's queries and training steps.

    Args:
        model: a hub id or a folder.
        source: a data set; a small one is drawn if it is None.
        split: of it.
        only: one of the two.
        num_candidates: documents a query.
        batch_size: examples in a training step.
        lora_rank: of adapters; 0 trains all weights.
        gradient_checkpointing: compute activations again in the backward pass.
        rounds: timed queries and steps of each kind, at least two.
        device: where.
        dtype: of the model.

    Raises:
        ValueError, OSError: data or model cannot be used.
    """
    with TemporaryDirectory() as drawn:
        if source is None:
            source, split = write_world(drawn, Places(), counts={"train": 20}, seed=0), "train"
        questions = open_questions(source, split=split, purpose="train")
        mllm = MLLM.from_pretrained(model, device=device, dtype=dtype)
        rerank: dict[str, RerankingCost] = {}
        train: dict[str, TrainingCost] = {}
        if only != "train":
            rerank = reranking_overhead(
                mllm, questions, num_candidates=num_candidates, rounds=rounds
            )
        if only != "rerank":  # last, since it changes the weights
            train = training_overhead(
                mllm,
                questions,
                batch_size=batch_size,
                lora=LoraSettings(rank=lora_rank),
                gradient_checkpointing=gradient_checkpointing,
                rounds=rounds,
            )
    return OverheadResult(
        model=model,
        data=questions.name,
        rounds=rounds,
        num_candidates=num_candidates,
        batch_size=batch_size,
        rerank=rerank,
        train=train,
        machine=machine(),
        versions=versions(),
    )


def print_overhead(result: OverheadResult) -> None:
    """Prints a table of queries and one of training steps."""
    _print_costs(result.rerank, "reranking", "ms a query")
    _print_costs(result.train, "noise", "ms a step")


def _print_costs(
    costs: dict[str, RerankingCost] | dict[str, TrainingCost], what: str, unit: str
) -> None:
    if not costs:
        return
    columns = (what, unit, f"against {next(iter(costs))}", "peak MiB")
    rows = [
        (
            name,
            f"{cost['ms']['median']:.1f}",
            f"{1 / cost['speedup']['median']:.2f}x",
            "?" if cost["peak_mib"] is None else f"{cost['peak_mib']:.0f}",
        )
        for name, cost in costs.items()
    ]
    print_table(columns, rows, numbers=columns[1:])
