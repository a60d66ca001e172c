"""fast_rerank against other methods to score the same candidates with the same model, on the CPU.

Every method reads the same JPEG files and sees the same prompts, with a new question each round.
Only warm ones keep something from one call to the next: the documents' prefixes. The run fails if
the methods' scores differ. gpu_rerank.py measures the same on a GPU.

    python benchmarks/bench_fast_rerank.py                # about twenty minutes on two CPU cores
    python benchmarks/bench_fast_rerank.py --model tiny   # seconds; prints, writes nothing
"""

from __future__ import annotations

import importlib.metadata
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from baselines import CrossEncoderBaseline, PaddedBatch, SerialGenerate, StockCache
from common import save
from models import build_model
from rich.console import Console
from rich.table import Table
from roofline import Peaks, measure_peaks, prefix_work, suffix_work
from shapes import SHAPES, Shape
from tables import Result, Results, mib, table, times
from transformers.utils import logging as transformers_logging
from workload import fitting_questions, write_documents

from ragvl import Document, Reranker, fast_rerank
from ragvl.mllm import MLLM
from ragvl.profiling.timing import compare, peak_mib, time_in_turn

BASELINE = "serial_generate"
METHODS = {
    "serial_generate": "one candidate at a time, `generate` (the release)",
    "padded_batch": "one padded batch, all logits",
    "stock_cache_warm": "one at a time, prefixes in Hugging Face's cache, warm",
    "cross_encoder": "sentence-transformers `CrossEncoder`",
    "fast_rerank_cold": "**`ragvl.fast_rerank`, cold**",
    "fast_rerank_warm": "**`ragvl.fast_rerank`, warm**",
}
_FAMILIES = {
    "llava": "LLaVA",
    "internvl": "InternVL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
}
DEFAULT_MODELS = [("mid", 256), ("mid-internvl", 256)]  # and their image tokens
_PERCENTILE_SECONDS, _LEAST_CALLS = 45.0, 20
_MOST_CAPTION_TOKENS = 160  # in a prefix, the turn's beginning and a last page's end included
SUFFIX_TOKENS = (30, 55)
CPU = torch.device("cpu")
# How far apart two methods' scores may lie in float32: rounding, in another order of additions
TOLERANCE = 1e-5

Score = Callable[[str, Sequence[Document]], list[float]]


def measure(
    models: Sequence[tuple[str, int | None]], peaks: Peaks, *, rounds: int, num_documents: int
) -> dict[str, Any]:
    """Times every method in turn on the CPU, for each model and each length of suffix.

    Args:
        models: names in `SHAPES`, each with the number of image tokens; None for the shape's own.
        peaks: what the machine was measured to reach.
        rounds: samples of each method, at least 2.
        num_documents: candidates a question, at least 1.

    Raises:
        RuntimeError: two methods' scores differ by more than rounding.
    """
    cases = [
        case
        for name, image_tokens in models
        for case in measure_model(
            *(name, image_tokens, CPU, torch.float32, peaks),
            rounds=rounds,
            num_documents=num_documents,
        )
    ]
    return {
        "num_documents": num_documents,
        "rounds": rounds,
        "baseline": BASELINE,
        "peaks": asdict(peaks),
        "cases": cases,
        "sentence_transformers": importlib.metadata.version("sentence-transformers"),
    }


def measure_model(
    name: str,
    image_tokens: int | None,
    device: torch.device,
    dtype: torch.dtype,
    peaks: Peaks,
    *,
    rounds: int,
    num_documents: int,
    warm_calls: int = 0,
    cold_calls: int = 0,
) -> list[dict[str, Any]]:
    """One model's cases, one for each length of suffix; see `measure`.

    Args:
        name: in `SHAPES`.
        image_tokens: what a picture becomes; None for the shape's own.
        device: where.
        dtype: of the weights.
        peaks: what the machine was measured to reach.
        rounds: samples of each method.
        num_documents: candidates a question.
        warm_calls: single calls for the percentiles of the warm method; 0 or at least 2.
        cold_calls: the same of the cold one.
    """
    shape = SHAPES[name]
    if image_tokens is not None:
        shape = replace(shape, image_tokens=image_tokens)
    model, processor = build_model(shape, device=device, dtype=dtype)
    stock, _ = build_model(shape, device=device, dtype=dtype)
    cold = Reranker(MLLM(model, processor), prefix_cache=None)
    # Memory for its documents and no more: the other methods need the rest
    tokens = num_documents * (shape.image_tokens + _MOST_CAPTION_TOKENS)
    warm = Reranker(cold.mllm, prefix_cache=tokens * cold.mllm.kv_layout.bytes_per_token())
    with tempfile.TemporaryDirectory() as folder:
        documents = write_documents(Path(folder), num_documents)
        methods: dict[str, Score] = {
            "serial_generate": SerialGenerate(stock, cold).score,
            "padded_batch": PaddedBatch(stock, cold).score,
            "stock_cache_warm": StockCache(stock, cold).score,
            "fast_rerank_cold": partial(_fast_rerank, reranker=cold),
            "fast_rerank_warm": partial(_fast_rerank, reranker=warm),
        }
        if shape.family == "llava":  # of the others it wants the processor for videos
            stock.save_pretrained(folder)
            processor.save_pretrained(folder)
            methods["cross_encoder"] = CrossEncoderBaseline(Path(folder), cold).score
        described = {
            "name": name,
            "family": shape.family,
            "parameters": model.num_parameters(),
            "dtype": str(dtype).removeprefix("torch."),
            "image_tokens": cold.mllm.prompting.encode_image(documents[0].load()).num_tokens,
        }
        shape = replace(shape, image_tokens=described["image_tokens"])
        cases = []
        for tokens in SUFFIX_TOKENS:
            count = rounds + 1 + warm_calls + cold_calls
            questions = fitting_questions(cold, documents[0], count, tokens)
            case = _measure_case(methods, questions[: rounds + 1], documents, device, dtype)
            coming = iter(questions[rounds + 1 :])
            percentiles = {
                f"{state}_ms": _percentiles_ms(
                    methods[f"fast_rerank_{state}"], list(islice(coming, calls)), documents, device
                )
                for state, calls in (("warm", warm_calls), ("cold", cold_calls))
                if calls
            }
            if evicted := warm.prefix_cache.statistics()["device"].evictions:
                raise RuntimeError(f"the warm method lost {evicted} documents: give it more memory")
            prompts = _prompt_tokens(cold, questions[: rounds + 1], documents)
            cases.append(
                {
                    "model": described,
                    "prompt_tokens": {p: [min(n), max(n)] for p, n in prompts.items()},
                    **case,
                    **percentiles,
                    "least_ms": _least_ms(shape, prompts, dtype, peaks),
                }
            )
    return cases


def _measure_case(
    methods: dict[str, Score],
    questions: Sequence[str],
    documents: Sequence[Document],
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """One question after another, the first to warm up."""
    scores: dict[str, list[list[float]]] = {method: [] for method in methods}

    def ask_next(method: str) -> None:
        question = questions[len(scores[method])]
        scores[method].append(methods[method](question, documents))

    calls = {method: partial(ask_next, method) for method in methods}
    samples = time_in_turn(calls, rounds=len(questions) - 1, device=device)
    difference = _largest_difference(scores)
    # In bfloat16 the models' own rounding decides how far: the GPU's benchmark has a goal for it
    if dtype == torch.float32 and not difference <= TOLERANCE:
        raise RuntimeError(f"the methods' scores differ by {difference}: there is a bug")
    figures = compare(samples, BASELINE)
    if "cross_encoder" in methods:
        for method, over in compare(samples, "cross_encoder").items():
            figures[method]["speedup_over_cross_encoder"] = over["speedup"]
    for method, score in methods.items():
        figures[method]["peak_mib"] = peak_mib(partial(score, questions[0], documents), device)
    return {"methods": figures, "max_score_difference": difference}


def _percentiles_ms(
    score: Score,
    questions: Sequence[str],
    documents: Sequence[Document],
    device: torch.device,
) -> dict[str, float]:
    """The 50th, 90th and 99th percentile of single calls; of fewer where they take long."""
    samples: list[float] = []
    end = time.monotonic() + _PERCENTILE_SECONDS
    for question in questions:
        call = {"": partial(score, question, documents)}
        samples += time_in_turn(call, rounds=1, warmup=0, device=device)[""]
        if len(samples) >= _LEAST_CALLS and time.monotonic() > end:
            break
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "calls": len(samples)}


def _fast_rerank(query: str, documents: Sequence[Document], *, reranker: Reranker) -> list[float]:
    ranked = fast_rerank(query, documents, model=reranker)
    return [result.score for result in sorted(ranked, key=lambda result: result.index)]


def _largest_difference(scores: dict[str, list[list[float]]]) -> float:
    every = torch.tensor(list(scores.values()))  # (methods, rounds, documents)
    return (every.amax(0) - every.amin(0)).max().item()


def _prompt_tokens(
    reranker: Reranker, questions: Sequence[str], documents: Sequence[Document]
) -> dict[str, list[int]]:
    """Every prefix's and every suffix's tokens."""
    return {
        "prefix": [len(reranker.split_prompt(questions[0], d)[0]) for d in documents],
        "suffix": [len(reranker.split_prompt(question, documents[0])[1]) for question in questions],
    }


def _least_ms(
    shape: Shape, prompts: dict[str, list[int]], dtype: torch.dtype, peaks: Peaks
) -> dict[str, float]:
    """The roofline: what the machine's measured peaks allow at best, warm and cold."""
    warm = suffix_work(shape, prompts["prefix"], max(prompts["suffix"]), dtype.itemsize)
    cold = warm + prefix_work(shape, prompts["prefix"], dtype.itemsize)
    return {"warm": 1e3 * warm.seconds(peaks), "cold": 1e3 * cold.seconds(peaks)}


def speed_table(results: Results) -> str:
    """Speed and memory by method on the CPU, a column for each model and length of suffix."""
    result = results["fast_rerank_cpu"]
    cases = result["cases"]

    def speed(case: Result, method: str) -> str:
        figures = case["methods"].get(method)
        return "" if figures is None else times(figures["speedup"])

    first = cases[0]["methods"]
    rows = [
        [label, *(speed(case, method) for case in cases), mib(first[method]["peak_mib"])]
        for method, label in METHODS.items()
        if method in first
    ]
    (tokens,) = {case["model"]["image_tokens"] for case in cases}
    return table(
        ["", *map(_case_name, cases), "memory"],
        rows,
        f"{result['machine']['device']}, float32, {result['num_documents']} candidates of {tokens} "
        f"image tokens, a new question each round; median (lowest to highest) of "
        f"{result['rounds']} rounds in one run, against the first row. Memory is the peak above "
        f"what the loaded models and cached prefixes hold, in the first column's case. All "
        f"methods' scores agree within {max(c['max_score_difference'] for c in cases):.0e}.",
    )


def _case_name(case: Result) -> str:
    model, suffix = case["model"], case["prompt_tokens"]["suffix"][1]
    family = _FAMILIES[model["family"]]
    return f"{family}, {model['parameters'] / 1e6:,.0f} M, {suffix} suffix tokens"


def main(
    model: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(SHAPES)}; by default two.")
    ] = None,
    image_tokens: Annotated[
        int | None, typer.Option(help="What a picture becomes, a square number.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each method.")] = 7,
    num_documents: Annotated[int, typer.Option(min=1, help="Candidates a question.")] = 20,
) -> None:
    """Measure, print a table and write benchmarks/results/fast_rerank_cpu.json.

    Only the default models are written, since those are what the documents' tables are about.
    """
    transformers_logging.disable_progress_bar()
    if model is not None and model not in SHAPES:
        raise typer.BadParameter(f"unknown model {model!r}; known: {', '.join(SHAPES)}")
    result = measure(
        DEFAULT_MODELS if model is None else [(model, image_tokens)],
        measure_peaks(CPU, torch.float32),
        rounds=rounds,
        num_documents=num_documents,
    )
    console = Console()
    for case in result["cases"]:
        tokens, suffix = case["model"]["image_tokens"], case["prompt_tokens"]["suffix"][1]
        title = f"{case['model']['name']}, {tokens} image tokens, {suffix} suffix tokens"
        table = Table("method", "ms", "speedup", "peak MiB", title=title)
        for method, figures in case["methods"].items():
            peak = figures["peak_mib"]
            table.add_row(
                method,
                f"{figures['ms']['median']:.1f} ± {figures['ms']['iqr'] / 2:.1f}",
                f"{figures['speedup']['median']:.2f}x",
                "?" if peak is None else f"{peak:.0f}",
            )
        console.print(table)
        console.print(f"scores agree within {case['max_score_difference']:.1e}")
    if model is None:
        console.print(f"wrote {save('fast_rerank_cpu', result, CPU)}")


if __name__ == "__main__":
    typer.run(main)
