"""A whole evaluation of the demo's world against scoring its pairs one by one.

Every method retrieves, scores and answers the same questions over both pools from scratch, with the
same models; only how pairs are scored differs, each pair once. The run fails if the relevances
differ.

    python benchmarks/bench_evaluate.py                  # about twenty minutes on two CPU cores
    python benchmarks/bench_evaluate.py --questions 20   # a minute; prints, writes nothing
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from baselines import SerialGenerate, stock_model
from common import save
from rich.console import Console
from rich.table import Table
from tables import Results, table, times
from torch import Tensor
from transformers.utils import logging as transformers_logging

from ragvl import Document, Query, Reranker
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.demo.run import NUM_PLACES, WORLD_SEED
from ragvl.evaluation.evaluate import Evaluation, evaluate
from ragvl.evaluation.models import Models
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.generator import Generator
from ragvl.mllm import MLLM
from ragvl.profiling.timing import compare, time_in_turn
from ragvl.retriever import DualEncoder

BASELINE = "generate"
METHODS = {
    "generate": "a call of `generate` for each pair (the release)",
    "one_pair": "a call of `Reranker.score` for each pair",
    "evaluate": "**`ragvl evaluate`**",
}
CPU = torch.device("cpu")
TOLERANCE = 1e-5  # of a relevance: rounding, in another order of additions


class OnePairAtATime(Reranker):
    """ragvl's own reranker, called for each pair by itself."""

    def score(self, pairs: Sequence[tuple[Query, Document]], **options: Any) -> Tensor:  # type: ignore[override]
        return torch.cat([super(OnePairAtATime, self).score([pair], **options) for pair in pairs])


class GeneratePerPair(Reranker):
    """RagVL's release: a call of `generate` for each pair."""

    def __init__(self, mllm: MLLM, serial: SerialGenerate) -> None:
        super().__init__(mllm)
        self._serial = serial

    def score(self, pairs: Sequence[tuple[Query, Document]], **_: Any) -> Tensor:  # type: ignore[override]
        """Raw scores, which an evaluation takes: of a probability its log-odds."""
        scores = [self._serial.score(query.text or "", [document])[0] for query, document in pairs]
        return torch.tensor(scores).logit()


def measure(num_questions: int | None, rounds: int) -> dict[str, Any]:
    """Evaluates in every method, in turn.

    Args:
        num_questions: only the first so many; None for all.
        rounds: evaluations of each method, at least 2.

    Raises:
        RuntimeError: two methods' relevances differ by more than rounding.
    """
    evaluated: dict[str, Evaluation] = {}
    with tempfile.TemporaryDirectory() as folder, as_file(files("ragvl") / "assets") as assets:
        write_world(folder, Places(), counts={"test": NUM_PLACES}, seed=WORLD_SEED)
        source = WebQA(folder, split="test")
        mllm = MLLM.from_pretrained(assets / "tiny-reranker", device="cpu")
        encoder = DualEncoder.from_pretrained(assets / "tiny-retriever", device="cpu")
        generator = Generator.from_pretrained(assets / "tiny-generator", device="cpu")
        plain = Reranker(mllm)
        serial = SerialGenerate(stock_model(assets / "tiny-reranker", plain), plain)
        # Made anew for each evaluation, so that none has the prefixes of the one before
        rerankers: dict[str, Callable[[], Reranker]] = {
            "generate": lambda: GeneratePerPair(mllm, serial),
            "one_pair": lambda: OnePairAtATime(mllm),
            "evaluate": lambda: Reranker(mllm),
        }
        settings = EvaluationSettings(num_questions=num_questions, num_timed=0, max_new_tokens=8)
        kept = Path(folder) / "kept"  # what an evaluation has computed, for its answers

        def rank(method: str) -> None:
            shutil.rmtree(kept, ignore_errors=True)
            models = Models(encoder, rerankers[method]())
            evaluated[method] = evaluate(source, models, settings, work=kept, progress=False)

        def answer() -> None:
            models = Models(encoder, Reranker(mllm), generator)
            evaluate(source, models, settings, work=kept, progress=False)

        steps: dict[str, Callable[[], None]] = {}
        for method in rerankers:
            steps |= {f"{method}, ranked": partial(rank, method), f"{method}, answered": answer}
        samples = time_in_turn(steps, rounds=rounds, warmup=0)
    every = torch.tensor([list(_pairs(evaluation).values()) for evaluation in evaluated.values()])
    difference = (every.amax(0) - every.amin(0)).max().item()
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the methods' relevances differ by {difference:.1e}")
    ranked = {method: samples[f"{method}, ranked"] for method in evaluated}
    whole = {
        method: [sum(times) for times in zip(of_way, samples[f"{method}, answered"], strict=True)]
        for method, of_way in ranked.items()
    }
    pairs = _pairs(evaluated["evaluate"])
    return {
        "rounds": rounds,
        "baseline": BASELINE,
        "num_questions": evaluated["evaluate"].result.num_questions,
        "num_pairs": len(pairs),
        "num_documents": len({document_id for _, document_id in pairs}),
        "max_relevance_difference": difference,
        "ranked": compare(ranked, BASELINE),
        "whole": compare(whole, BASELINE),
    }


def _pairs(evaluation: Evaluation) -> dict[tuple[str, str], float]:
    """Relevance by question and document, each pair once."""
    return {
        (ranking.question.id, candidate.id): candidate.relevance
        for of_pool in evaluation.rankings.values()
        for ranking in of_pool
        for candidate in ranking.retrieved
    }


def speed_table(results: Results) -> str:
    """A whole evaluation against scoring pair by pair."""
    result = results["evaluate_cpu"]
    rows = [
        [label, *(times(result[part][method]["speedup"]) for part in ("ranked", "whole"))]
        for method, label in METHODS.items()
    ]
    return table(
        ["pairs are scored by", "retrieved and reranked", "and answered"],
        rows,
        f"{result['machine']['device']}, float32: {result['num_questions']} questions over both "
        f"pools, {result['num_pairs']:,} pairs of {result['num_documents']:,} documents; median "
        f"(lowest to highest) of {result['rounds']} rounds in one run, against the first row.",
    )


def main(
    questions: Annotated[int | None, typer.Option(min=1, help="Only so many; all.")] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Evaluations of each method.")] = 3,
) -> None:
    """Measure, print a table and write benchmarks/results/evaluate_cpu.json of all questions."""
    transformers_logging.disable_progress_bar()
    result = measure(questions, rounds)
    table = Table("method", "ranked: s", "speedup", "and answered: s", "speedup")
    for method in result["whole"]:
        row = [method]
        for part in ("ranked", "whole"):
            figures = result[part][method]
            row.append(f"{figures['ms']['median'] / 1e3:.1f}")
            row.append(f"{figures['speedup']['median']:.2f}x")
        table.add_row(*row)
    console = Console()
    console.print(table)
    if questions is None:
        console.print(f"wrote {save('evaluate_cpu', result, CPU)}")


if __name__ == "__main__":
    typer.run(main)
