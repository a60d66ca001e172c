"""fast_rerank on a GPU, at the sizes of real models: warm, cold, against other methods.

    make bench-gpu-rerank PARTS="tiers internvl2-2b"    # some parts, up to ten minutes each
    make bench-gpu-rerank PARTS=qwen2.5-vl-7b:576       # one size of a large model
    make bench-gpu-rerank                               # all of them: over an hour
    python benchmarks/gpu_rerank.py --part tiny       # on a CPU: a small model, to see that it runs

Weights are random, in the published configurations: speed does not depend on what a model knows.
Each part writes a JSON of its own. Needs no network; sentence-transformers for one of the methods.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import tables
import torch
import typer
from bench_fast_rerank import BASELINE, measure_model
from bench_layers import measure_layers
from bench_prefix_cache import measure_tiers
from gpu import Clocks, free_memory, goal, run_parts
from models import build_model
from rich.console import Console
from roofline import Peaks, measure_peaks
from shapes import SHAPES, Shape
from tables import Result, Results, devices, table, unmeasured
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging as transformers_logging
from workload import fitting_questions, write_documents

from ragvl import Reranker
from ragvl.mllm import MLLM
from ragvl.profiling.timing import spread, time_in_turn
from ragvl.runtime import resolve_device, resolve_dtype

MODELS = (
    *("internvl2-2b", "qwen2.5-vl-3b", "internvl2-1b", "qwen2.5-vl-7b", "llava-1.5-7b"),
    *("qwen3-vl-2b", "llava-1.5-13b"),
)
TIERED = "internvl2-2b"
LAYERED = ("internvl2-1b", "internvl2-2b")
PARTS = ("tiers", "layers", *MODELS)  # tiers:llava-1.5-7b for another model than TIERED
NUM_DOCUMENTS = 20
KNOWN_SHARES = (0.0, 0.5, 0.9, 1.0)
QUERIES_TOGETHER = 50  # of the throughput

# Milliseconds: warm at the median; cold with 576 image tokens, the pictures' preparation included
WARM_MS = {
    "internvl2-1b": 2.5,
    **dict.fromkeys(("internvl2-2b", "qwen3-vl-2b"), 6),
    "qwen2.5-vl-3b": 11,
    **dict.fromkeys(("qwen2.5-vl-7b", "llava-1.5-7b"), 25),
}
COLD_MS = {
    **dict.fromkeys(("internvl2-2b", "qwen3-vl-2b"), 200),
    "qwen2.5-vl-3b": 270,
    **dict.fromkeys(("qwen2.5-vl-7b", "llava-1.5-7b"), 450),
}
PAIRS_PER_SECOND = {"internvl2-2b": 3500}


def image_tokens(shape: Shape) -> tuple[int, ...]:
    """How many tokens the pictures are measured with; a square number each."""
    return (256, 576, 1296) if shape.family.startswith("qwen") else (256, 576)


# --- a model ------------------------------------------------------------------------------------


def measure(
    name: str,
    device: torch.device,
    peaks: Peaks,
    *,
    tokens: Sequence[int],
    rounds: int,
    warm_calls: int,
    cold_calls: int,
    seconds: float,
) -> dict[str, Any]:
    """Everything about one model's speed.

    Args:
        name: in `SHAPES`.
        device: where.
        peaks: what the machine was measured to reach.
        tokens: what a picture becomes, the most important first.
        rounds: samples of each method.
        warm_calls: calls for the percentiles of the warm method.
        cold_calls: the same of the cold one.
        seconds: sizes that are not begun in this time are left out, and named.
    """
    started = time.monotonic()
    dtype = resolve_dtype("auto", device)
    cases, throughput, profiles, left_out = [], [], [], []
    with Clocks(device) as clocks:
        for count in tokens:
            if time.monotonic() - started > seconds:
                left_out.append(f"{count} image tokens")
                continue
            try:
                cases += measure_model(
                    *(name, count, device, dtype, peaks),
                    rounds=rounds,
                    num_documents=NUM_DOCUMENTS,
                    warm_calls=warm_calls,
                    cold_calls=cold_calls,
                )
                free_memory(device)
                mllm = _build(name, count, device, dtype)
                throughput.append({"image_tokens": count, **_throughput(mllm, rounds)})
                profiles.append({"image_tokens": count, **_profile(mllm)})
                del mllm
            except torch.cuda.OutOfMemoryError as error:
                left_out.append(f"{count} image tokens: {error}".partition(". ")[0])
            free_memory(device)
    return {
        "model": name,
        "num_documents": NUM_DOCUMENTS,
        "rounds": rounds,
        "baseline": BASELINE,
        "peaks": asdict(peaks),
        "clocks": clocks.spreads(),
        "cases": cases,
        "throughput": throughput,
        "profiles": profiles,
        "left_out": left_out,
    }


def _build(name: str, tokens: int | None, device: torch.device, dtype: torch.dtype) -> MLLM:
    shape = SHAPES[name]
    if tokens is not None:
        shape = replace(shape, image_tokens=tokens)
    return MLLM(*build_model(shape, device=device, dtype=dtype))


def _throughput(mllm: MLLM, rounds: int) -> dict[str, Any]:
    """Warm pairs a second, many queries in one call."""
    with tempfile.TemporaryDirectory() as folder:
        documents = write_documents(Path(folder), NUM_DOCUMENTS)
        reranker = Reranker(mllm)
        queries = fitting_questions(reranker, documents[0], QUERIES_TOGETHER, 30)
        pairs = [(query, document) for query in queries for document in documents]
        calls = {"": lambda: reranker.score(pairs, progress=False)}
        samples = time_in_turn(calls, rounds=rounds, device=mllm.device)[""]
    return {"pairs_per_second": spread([1e3 * len(pairs) / ms for ms in samples])}


def _profile(mllm: MLLM, calls: int = 5) -> dict[str, Any]:
    """Where a warm and a cold call spend their time.

    `busy` is the share of the wall clock in which a kernel runs; the rest is the host's.
    """
    activities = [ProfilerActivity.CPU]
    if mllm.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    profiles: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        documents = write_documents(Path(folder), NUM_DOCUMENTS)
        for state, cache in (("warm", "auto"), ("cold", None)):
            reranker = Reranker(mllm, prefix_cache=cache)
            queries = fitting_questions(reranker, documents[0], calls + 2, 30)
            for query in queries[calls:]:
                reranker.rank(query, documents)
            with profile(activities=activities) as profiler:
                start = time.perf_counter()
                for query in queries[:calls]:
                    reranker.rank(query, documents)
                wall_ms = 1e3 * (time.perf_counter() - start) / calls
            on_gpu = [
                (event.key, event.self_device_time_total / 1e3 / calls, event.count / calls)
                for event in profiler.key_averages()
                # Kernels, not the operators that started them, which are given the same time
                if event.device_type == DeviceType.CUDA and not event.is_user_annotation
            ]
            on_gpu.sort(key=lambda row: -row[1])
            profiles[state] = {
                "wall_ms": wall_ms,
                "busy": sum(ms for _, ms, _ in on_gpu) / wall_ms,
                "launches": sum(count for _, _, count in on_gpu),
                "kernels": [
                    {"name": name[:120], "ms": ms, "calls": count}
                    for name, ms, count in on_gpu[:20]
                ],
            }
    return profiles


# --- tiers --------------------------------------------------------------------------------------


def tiers(name: str, device: torch.device, *, num_documents: int, rounds: int) -> dict[str, Any]:
    """How a query's time falls with the share of its documents that a tier has."""
    mllm = _build(name, None, device, resolve_dtype("auto", device))
    with tempfile.TemporaryDirectory() as folder:
        documents = write_documents(Path(folder), num_documents)
        questions = fitting_questions(Reranker(mllm), documents[0], 40, 30)
        rows = measure_tiers(
            *(mllm, documents, questions, Path(folder) / "cache", rounds),
            known_shares=KNOWN_SHARES,
            keeps=("auto", "kv", "features"),
        )
    tokens = SHAPES[name].image_tokens
    models = [{"model": name, "image_tokens": tokens, "tiers": rows}]
    return {"rounds": rounds, "num_documents": num_documents, "models": models}


# --- goals --------------------------------------------------------------------------------------


def model_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What a model's speed is to be, and is."""
    name, goals = result["model"], []
    for case in result["cases"]:
        tokens, suffix = case["model"]["image_tokens"], case["prompt_tokens"]["suffix"][1]
        of = f"{name}, {tokens} image and {suffix} suffix tokens"
        warm, cold = case["warm_ms"], case["cold_ms"]
        if name in WARM_MS:
            goals.append(goal(of, "warm p50, ms", warm["p50"], at_most=WARM_MS[name]))
        if name in COLD_MS and tokens == 576:
            goals.append(goal(of, "cold p50, ms", cold["p50"], at_most=COLD_MS[name]))
        goals.append(goal(of, "warm p99 over p50", warm["p99"] / warm["p50"], at_most=1.5))
        limit = warm["p50"] / case["least_ms"]["warm"]
        goals.append(goal(of, "warm p50 over the roofline", limit, at_most=1.5))
        gap = case["max_score_difference"]
        bound = 1e-5 if case["model"]["dtype"] == "float32" else 5e-2
        goals.append(goal(of, "largest difference of two methods' scores", gap, at_most=bound))
        for state, times in (("warm", 200), ("cold", 20)):
            speed = case["methods"][f"fast_rerank_{state}"]["speedup"]["median"]
            goals.append(goal(of, f"{state} speed against `generate`", speed, at_least=times))
    if name in PAIRS_PER_SECOND:
        for row in result["throughput"]:
            rate = row["pairs_per_second"]["median"]
            of = f"{name}, {row['image_tokens']} image tokens"
            goals.append(goal(of, "warm pairs a second", rate, at_least=PAIRS_PER_SECOND[name]))
    return goals


def tier_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """That "auto" keeps what is faster to get back."""
    goals = []
    for model in result["models"]:
        ms = {row["tier"]: row["by_share"]["1.0"]["ms"]["median"] for row in model["tiers"]}
        for tier in ("host", "disk"):
            best = min(ms[f"{tier}, kv"], ms[f"{tier}, features"])
            share = ms[f"{tier}, auto"] / best
            goals.append(
                goal(f"{model['model']}, {tier}", "auto over the best", share, at_most=1.1)
            )
    return goals


def layer_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """That each kind of layers is in force, with the scores of eager ones."""
    goals = []
    for model in result["models"]:
        bound = 1e-5 if model["dtype"] == "float32" else 5e-2
        for layers, kind in model["kinds"].items():
            of = f"{model['model']}, {layers} layers"
            goals.append(goal(of, "in force", float(kind["in_force"] == layers), at_least=1))
            gap = kind["score_difference"]
            goals.append(goal(of, "largest difference to eager scores", gap, at_most=bound))
    return goals


def measured_models(results: Results) -> list[Result]:
    """Results of the models that were measured on a GPU, some at one number of image tokens."""
    stems = [f"gpu_rerank_{name}" for name in MODELS]
    return [
        results[name]
        for stem in stems
        for name in sorted(results)
        if name == stem or name.startswith(f"{stem}_")
    ]


def speed_table(results: Results) -> str:
    """Times on the GPU, a row for each model, number of image tokens and length of suffix."""
    header = [
        *("model", "image tokens", "suffix tokens", "warm p50", "p90", "p99", "at best"),
        *("cold p50", "at best", "`generate`", "padded batch", "CrossEncoder", "stock cache, warm"),
    ]
    models = measured_models(results)
    if not models:
        return unmeasured(header)
    rows = [_row(case) for model in models for case in model["cases"]]
    first = models[0]
    calls = first["cases"][0]["warm_ms"]["calls"], first["cases"][0]["cold_ms"]["calls"]
    rates = [
        f"{model['model']} {row['pairs_per_second']['median']:,.0f} ({row['image_tokens']} tokens)"
        for model in models
        for row in model["throughput"]
    ]
    note = (
        f"{devices(models)}, bfloat16, {first['num_documents']} candidates; percentiles of "
        f"{calls[0]:,} warm and {calls[1]:,} cold calls, other methods' medians of "
        f"{first['rounds']} rounds in the same run. At best: operations and bytes counted, at "
        f"the rates of a large product and a large copy measured in the run. Warm pairs a second, "
        f"many queries in one call: {', '.join(rates)}."
    )
    if left_out := [f"{model['model']}, {what}" for model in models for what in model["left_out"]]:
        note += f" Not measured, for lack of time or memory: {'; '.join(left_out)}."
    return table(header, rows, note)


def _row(case: Result) -> list[str]:
    others = ("serial_generate", "padded_batch", "cross_encoder", "stock_cache_warm")
    figures = [case["methods"].get(name) for name in others]
    return [
        case["model"]["name"],
        f"{case['model']['image_tokens']:,}",
        str(case["prompt_tokens"]["suffix"][1]),
        *(f"{case['warm_ms'][p]:.2f} ms" for p in ("p50", "p90", "p99")),
        f"{case['least_ms']['warm']:.2f} ms",
        f"{case['cold_ms']['p50']:.0f} ms",
        f"{case['least_ms']['cold']:.0f} ms",
        *("" if each is None else f"{each['ms']['median']:.0f} ms" for each in figures),
    ]


def goals_table(results: Results) -> str:
    """What reranking promises on a GPU, right and fast, and whether it keeps it."""
    stems = ("tests_sizes", "tests_sizes_internvl2-1b", "rerank_tiers", "rerank_layers")
    others = [f"gpu_{stem}" for stem in stems]
    return tables.goals([*map(results.get, others), *measured_models(results)])


def tiers_table(results: Results) -> str:
    """How a query's time falls with the share of known documents, by tier."""
    result = results.get("gpu_rerank_tiers")
    header = ["model", "tier", "none known", "50 %", "90 %", "100 %", "pays from"]
    if result is None:
        return unmeasured(header, names=2)
    rows = [
        [
            *(model["model"], row["tier"]),
            *(f"{figures['ms']['median']:.1f} ms" for figures in row["by_share"].values()),
            f"{100 * row['break_even']:.0f} %",
        ]
        for model in result["models"]
        for row in model["tiers"]
    ]
    return table(header, rows, f"{devices([result])}, medians of {result['rounds']} rounds.")


# --- command line -------------------------------------------------------------------------------


def run(part: str, device: torch.device, seconds: float, *, brief: bool = False) -> dict[str, Any]:
    """One part's result. On a CPU parts run on tiny models; a tiny model is a part of its own.

    Args:
        part: which.
        device: where.
        seconds: for it.
        brief: fewer samples of everything.
    """
    on_gpu = device.type == "cuda"
    name, _, only = part.partition(":")
    if name == "tiers":
        model = only or (TIERED if on_gpu else "tiny")
        # A large model's documents would fill the memory, and the disk
        is_large = SHAPES[model].kv_bytes_per_token() > 2**18
        result = tiers(
            model,
            device,
            num_documents=5 if is_large else NUM_DOCUMENTS,
            rounds=(3 if is_large or brief else 9) if on_gpu else 2,
        )
        return {**result, "goals": tier_goals(result)}
    if name == "layers":
        rounds = (15 if brief else 50) if on_gpu else 2
        models = (only,) if only else LAYERED if on_gpu else ("tiny",)
        result = {
            "rounds": rounds,
            "num_documents": NUM_DOCUMENTS,
            "models": [
                measure_layers(model, device, num_documents=NUM_DOCUMENTS, rounds=rounds)
                for model in models
            ],
        }
        return {**result, "goals": layer_goals(result)}
    shape = SHAPES[name]
    sizes = image_tokens(shape) if on_gpu else (shape.image_tokens,)
    result = measure(
        name,
        device,
        measure_peaks(device, resolve_dtype("auto", device)),
        tokens=(int(only),) if only else sizes,
        rounds=(5 if brief else 7) if on_gpu else 2,
        warm_calls=(300 if brief else 1000) if on_gpu else 5,
        cold_calls=(25 if brief else 100) if on_gpu else 2,
        seconds=0.5 * seconds,
    )
    return {**result, "goals": model_goals(result)}


def main(
    part: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; all by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    seconds: Annotated[float, typer.Option(help="For each part.")] = 560,
    brief: Annotated[bool, typer.Option(help="Fewer samples of everything.")] = False,
) -> None:
    """Measure; write benchmarks/results/gpu_rerank_<part>.json, or on a CPU the same in build."""
    transformers_logging.disable_progress_bar()
    where = resolve_device(device)
    on_gpu = where.type == "cuda"
    parts = part or (PARTS if on_gpu else ("tiers", "layers", "tiny", "tiny-qwen3-vl"))
    run_parts(
        "gpu_rerank",
        parts,
        (*PARTS, *SHAPES),
        lambda name: run(name, where, seconds, brief=brief),
        _describe,
        where,
    )


def _describe(part: str, result: dict[str, Any], console: Console) -> None:
    for case in result.get("cases", ()):
        tokens, suffix = case["model"]["image_tokens"], case["prompt_tokens"]["suffix"][1]
        times = ", ".join(f"{n} {f['ms']['median']:.2f}" for n, f in case["methods"].items())
        console.print(f"{part}, {tokens} image and {suffix} suffix tokens, ms: {times}")


if __name__ == "__main__":
    typer.run(main)
