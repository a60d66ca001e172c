"""What a model is computed in on a CPU: `dtype=` of `Reranker.from_pretrained`.

Warm and cold calls in float32, bfloat16 and int8 in turn, on one checkpoint, beside what the
machine's products reach: a call's operations are counted, so that its rate can be held against that
of large products in the same dtype.

    python benchmarks/bench_dtypes.py                 # ten minutes on two CPU cores
    python benchmarks/bench_dtypes.py --model tiny    # seconds; prints, writes nothing
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from bench_layers import profile_call
from common import save
from gpu import goal, print_goals
from models import write_model
from rich.console import Console
from roofline import Work, prefix_work, suffix_work
from shapes import SHAPES
from tables import Result, Results, goals, name_on_cpu, on_each_cpu, table, times, unmeasured
from transformers.utils import logging as transformers_logging
from workload import fitting_questions, write_documents

from ragvl import Document, Reranker
from ragvl.ops import Int8Weight, int8_linear
from ragvl.ops.backends import compiled
from ragvl.profiling.timing import compare, time_in_turn

BASELINE = "float32"
DTYPES = ("float32", "bfloat16", "int8")
DEFAULT_MODEL = "mid"
CPU = torch.device("cpu")
_SUFFIX_TOKENS = 30
_GOALS = {"bfloat16": 2.2, "int8": 3.0}  # times the speed of float32
_MATRIX_SIZE = 2048
_HEADER = ["", "warm", "cold", "rate, warm", "rate, cold", "of a large product"]
_HEADER += ["products", "attention", "between", "difference of a score", "weights"]


def measure_dtypes(name: str, *, num_documents: int, rounds: int) -> dict[str, Any]:
    """One model's warm and cold calls in each dtype.

    Args:
        name: in `SHAPES`.
        num_documents: candidates a question.
        rounds: samples of each dtype.
    """
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_model(Path(folder) / "model", SHAPES[name])
        documents = write_documents(Path(folder), num_documents)
        load = partial(
            Reranker.from_pretrained, Path(folder) / "model", device="cpu", layers="fused"
        )
        warm = {dtype: load(dtype=dtype, prefix_cache="1GiB") for dtype in DTYPES}
        cold = {dtype: Reranker(one.mllm, prefix_cache=None) for dtype, one in warm.items()}
        questions = fitting_questions(warm[BASELINE], documents[0], rounds + 1, _SUFFIX_TOKENS)

        def score(reranker: Reranker, question: str) -> torch.Tensor:
            pairs = [(question, document) for document in documents]
            return reranker.score(pairs, progress=False)

        scores = {d: torch.stack([score(warm[d], q) for q in questions]) for d in DTYPES}
        timed = {}
        for state, rerankers in (("warm", warm), ("cold", cold)):
            calls: dict[str, Callable[[], object]] = {
                dtype: partial(score, one, questions[1]) for dtype, one in rerankers.items()
            }
            timed[state] = compare(time_in_turn(calls, rounds=rounds), BASELINE)
        work = _work(name, warm[BASELINE], questions[1], documents)
        figures = {
            dtype: {
                **{state: timed[state][dtype] for state in timed},
                "flops_per_second": {
                    state: _flops(work[state]) / (timed[state][dtype]["ms"]["median"] / 1e3)
                    for state in timed
                },
                "peak_flops_per_second": _product_rate(dtype),
                "shares": profile_call(partial(score, warm[dtype], questions[-1]), CPU)["shares"],
                "score_difference": _difference(scores[dtype], scores[BASELINE]),
                "weight_bytes": _weight_bytes(warm[dtype]),
            }
            for dtype in DTYPES
        }
    return {"model": name, "parameters": parameters, "dtypes": figures}


def _work(
    name: str, reranker: Reranker, question: str, documents: list[Document]
) -> dict[str, Work]:
    """The operations of a warm call and of a cold one."""
    split = [reranker.split_prompt(question, document) for document in documents]
    prefixes = [len(prefix) for prefix, _ in split]
    warm = suffix_work(SHAPES[name], prefixes, len(split[0][1]), itemsize=4)
    return {"warm": warm, "cold": warm + prefix_work(SHAPES[name], prefixes, itemsize=4)}


def _flops(work: Work) -> float:
    return work.linear_flops + work.attention_flops


def _product_rate(dtype: str) -> float:
    """The median rate of a large product in a dtype, in operations a second."""
    size = _MATRIX_SIZE
    x, weight = torch.randn(size, size), torch.randn(size, size)
    if dtype == "int8":
        call: Callable[[], object] = partial(int8_linear, x, Int8Weight.of(weight))
    else:
        wanted = getattr(torch, dtype)
        call = partial(torch.nn.functional.linear, x.to(wanted), weight.to(wanted))
    samples = time_in_turn({"": call}, rounds=7, sample_ms=20)[""]
    return 2 * size**3 / (torch.tensor(samples).median().item() / 1e3)


def _difference(scores: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    apart = (scores - exact).abs()
    return {"mean": apart.mean().item(), "max": apart.max().item()}


def _weight_bytes(reranker: Reranker) -> int:
    model = reranker.mllm.model
    return sum(x.numel() * x.itemsize for x in (*model.parameters(), *model.buffers()))


def _goals(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """What each dtype promises over float32, and all of them of the rate of products."""
    promised = []
    for dtype, figures in measured["dtypes"].items():
        for state in ("warm", "cold"):
            if dtype in _GOALS:
                speed = figures[state]["speedup"]["median"]
                what = f"speed over float32, {state}"
                promised.append(goal(dtype, what, speed, at_least=_GOALS[dtype]))
            share = figures["flops_per_second"][state] / figures["peak_flops_per_second"]
            promised.append(goal(dtype, f"share of the product rate, {state}", share, at_least=0.9))
    return promised


def dtypes_table(results: Results) -> str:
    """Speed, rates and error in each dtype, and the goals, on each kind of CPU there is."""
    return "\n\n".join(map(_table_of, on_each_cpu(results, "dtypes"))) or unmeasured(_HEADER)


def _table_of(result: Result) -> str:
    rows = [_row(dtype, figures) for dtype, figures in result["dtypes"].items()]
    machine = f"{result['machine']['device']} ({result['machine']['cpu kernels']})"
    note = (
        f"{machine}: a {SHAPES[result['model']].family} of "
        f"{result['parameters'] / 1e6:.0f} M random weights, {result['num_documents']} candidates; "
        f"speed over float32, median (lowest to highest) of {result['rounds']} rounds in one run. "
        "Rates are the counted operations of products and attention over the median time, of "
        "that of a large product in the same dtype; shares are a warm call's. Scores are "
        "probabilities, and differ from float32's on average and at most so much. All with "
        '`layers="fused"`.'
    )
    return "\n\n".join([table(_HEADER, rows, note), goals([result])])


def _row(dtype: str, figures: Result) -> list[str]:
    peak = figures["peak_flops_per_second"]
    rates = [figures["flops_per_second"][state] / peak for state in ("warm", "cold")]
    over_float32 = figures["over_float32"]
    apart = figures["score_difference"]
    return [
        f'`dtype="{dtype}"`',
        *(times(figures[state]["speedup"]) for state in ("warm", "cold")),
        *(f"{100 * rate:.0f} %" for rate in rates),
        f"{over_float32:.1f}x",
        *(f"{100 * share:.0f} %" for share in figures["shares"].values()),
        "" if dtype == BASELINE else f"{apart['mean']:.0e}, {apart['max']:.0e}",
        f"{figures['weight_bytes'] / 2**20:.0f} MiB",
    ]


def main(
    model: Annotated[
        str, typer.Option(help="In shapes.py; another than the default is printed.")
    ] = DEFAULT_MODEL,
    num_documents: Annotated[int, typer.Option(help="Candidates a question.")] = 20,
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each dtype.")] = 9,
) -> None:
    """Measure on the CPU; print the table and write benchmarks/results/dtypes_<isa>.json."""
    transformers_logging.disable_progress_bar()
    result = run(model, num_documents=num_documents, rounds=rounds)
    console = Console(width=200)
    isa = compiled().cpu_isa()
    console.print(_table_of({**result, "machine": {"device": "this CPU", "cpu kernels": isa}}))
    print_goals(result["goals"], console)
    if model == DEFAULT_MODEL:
        console.print(f"wrote {save(name_on_cpu('dtypes', isa), result, CPU)}")


def run(model: str, *, num_documents: int, rounds: int) -> dict[str, Any]:
    """`measure_dtypes` with its goals, as it is written."""
    measured = measure_dtypes(model, num_documents=num_documents, rounds=rounds)
    baseline = measured["dtypes"][BASELINE]["peak_flops_per_second"]
    for figures in measured["dtypes"].values():
        figures["over_float32"] = figures["peak_flops_per_second"] / baseline
    sizes = {"rounds": rounds, "num_documents": num_documents}
    return {**sizes, **measured, "goals": _goals(measured)}


if __name__ == "__main__":
    typer.run(main)
