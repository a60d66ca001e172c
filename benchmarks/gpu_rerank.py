"""fast_rerank on a GPU, at the sizes of real models: right first, then warm, cold, against others.

    make bench-gpu-rerank PARTS="checks internvl2-2b"   # some parts, up to ten minutes each
    make bench-gpu-rerank PARTS=qwen2.5-vl-7b:576       # one size of a large model
    make bench-gpu-rerank PARTS=checks:internvl2-1b     # one model's scores, without the tests
    make bench-gpu-rerank                               # all of them: over an hour
    python benchmarks/gpu_rerank.py --part tiny       # on a CPU: a small model, to see that it runs

Weights are random, in the published configurations: speed does not depend on what a model knows.
Each part writes a JSON of its own. Needs no network; sentence-transformers for one of the methods.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from baselines import SerialGenerate
from bench_fast_rerank import BASELINE, measure_model
from bench_prefix_cache import measure_tiers
from gpu import Clocks, goal, run_parts, run_tests
from models import build_model
from rich.console import Console
from roofline import measure_peaks
from shapes import SHAPES, Shape
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging as transformers_logging
from workload import fitting_questions, write_documents

from ragvl import Document, Reranker
from ragvl.mllm import MLLM
from ragvl.profiling.timing import spread, time_in_turn
from ragvl.runtime import resolve_device, resolve_dtype

MODELS = (
    *("internvl2-2b", "qwen2.5-vl-3b", "internvl2-1b", "qwen2.5-vl-7b", "llava-1.5-7b"),
    *("qwen3-vl-2b", "llava-1.5-13b"),
)
CHECKED = ("internvl2-1b", "qwen3-vl-2b")  # at full size
TIERED = "internvl2-2b"
PARTS = ("checks", "tiers", *MODELS)  # tiers:llava-1.5-7b for another model than TIERED
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
        peaks = measure_peaks(device, dtype)
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
                _free(device)
                mllm = _build(name, count, device, dtype)
                throughput.append({"image_tokens": count, **_throughput(mllm, rounds)})
                profiles.append({"image_tokens": count, **_profile(mllm)})
                del mllm
            except torch.cuda.OutOfMemoryError as error:
                left_out.append(f"{count} image tokens: {error}".partition(". ")[0])
            _free(device)
    return {
        "model": name,
        "num_documents": NUM_DOCUMENTS,
        "rounds": rounds,
        "baseline": BASELINE,
        "peaks": asdict(peaks),
        "clocks": clocks.seen(),
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


def _free(device: torch.device) -> None:
    """Gives back what models that are gone have held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        documents = write_documents(Path(folder), NUM_DOCUMENTS)
        for way, cache in (("warm", "auto"), ("cold", None)):
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
                # Kernels, not the operators that started them, which are told the same time
                if event.device_type == DeviceType.CUDA and not event.is_user_annotation
            ]
            on_gpu.sort(key=lambda row: -row[1])
            found[way] = {
                "wall_ms": wall_ms,
                "busy": sum(ms for _, ms, _ in on_gpu) / wall_ms,
                "launches": sum(count for _, _, count in on_gpu),
                "kernels": [
                    {"name": name[:120], "ms": ms, "calls": count}
                    for name, ms, count in on_gpu[:20]
                ],
            }
    return found


# --- right first --------------------------------------------------------------------------------


def check(
    names: Sequence[str],
    device: torch.device,
    *,
    num_queries: int,
    seconds: float,
) -> dict[str, Any]:
    """Whether scores are the plain way's and do not depend on company; whether memory stays.

    Args:
        names: the models, at full size.
        device: where.
        num_queries: how many warm queries memory must not grow over.
        seconds: for the tests of every architecture at a tiny size.
    """
    folders = ("tests/mllm", "tests/reranker", "tests/prefix_cache")
    return {
        "tests": run_tests(folders, seconds),
        "models": check_models(names, device, num_queries=num_queries),
    }


def check_models(
    names: Sequence[str], device: torch.device, *, num_queries: int
) -> list[dict[str, Any]]:
    """See `check`; without the tests."""
    models = []
    for name in names:
        models.append(_check_model(name, device, num_queries))
        _free(device)
    return models


def _check_model(name: str, device: torch.device, num_queries: int) -> dict[str, Any]:
    half = torch.bfloat16
    model, processor = build_model(SHAPES[name], device=device, dtype=half)
    stock, _ = build_model(SHAPES[name], device=device, dtype=half)
    with tempfile.TemporaryDirectory() as folder:
        documents = write_documents(Path(folder), 8)
        reranker = Reranker(MLLM(model, processor), prefix_cache=None)
        queries = fitting_questions(reranker, documents[0], 4, 30)
        found: dict[str, Any] = {"model": name}
        scores: dict[torch.dtype, torch.Tensor] = {}
        plain: dict[torch.dtype, torch.Tensor] = {}
        for dtype in (half, torch.float32):
            mllm = MLLM(model.to(dtype), processor)
            serial = SerialGenerate(stock.to(dtype), Reranker(mllm, prefix_cache=None))
            plain[dtype] = torch.tensor(
                [score for query in queries for score in serial.score(query, documents)]
            )
            scores[dtype], found[f"same_bits_{dtype}".replace("torch.", "")] = _scores(
                mllm, queries, documents
            )
        exact = plain[torch.float32]
        found["difference_float32"] = (scores[torch.float32] - exact).abs().max().item()
        found["error_bfloat16"] = (scores[half] - exact).abs().max().item()
        found["plain_error_bfloat16"] = (plain[half] - exact).abs().max().item()
        found["scores_spread"] = exact.std().item()
        del stock, serial
        mllm = MLLM(model.to(resolve_dtype("auto", device)), processor)
        found["threads_agree"] = _threads_agree(mllm, queries, documents)
        found["memory_growth_mib"] = _memory_growth(mllm, documents, num_queries)
        found["num_queries"] = num_queries
    return found


def _scores(
    mllm: MLLM, queries: Sequence[str], documents: Sequence[Document]
) -> tuple[torch.Tensor, bool]:
    """Relevance of every pair, and whether cold, warm, alone and shuffled give the same bits."""
    pairs = [(query, document) for query in queries for document in documents]
    reranker = Reranker(mllm)
    cold = reranker.score(pairs, progress=False)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    others = [
        reranker.score(pairs, progress=False),
        torch.cat([reranker.score([pair]) for pair in pairs]),
        torch.empty_like(cold).index_copy_(
            0, order, reranker.score([pairs[i] for i in order.tolist()], progress=False)
        ),
        Reranker(mllm, prefix_cache=None).score(pairs, progress=False),
    ]
    return cold, all(torch.equal(cold, other) for other in others)


def _threads_agree(mllm: MLLM, queries: Sequence[str], documents: Sequence[Document]) -> bool:
    """Whether two threads at once, each on a stream of its own, get the scores of one alone."""
    pairs = [(query, document) for query in queries for document in documents]
    expected = Reranker(mllm).score(pairs, progress=False)
    shared = Reranker(mllm)  # with nothing cached: both build
    found: list[bool] = []

    def ask() -> None:
        on_gpu = mllm.device.type == "cuda"
        with torch.cuda.stream(torch.cuda.Stream()) if on_gpu else nullcontext():
            for _ in range(5):
                found.append(torch.equal(shared.score(pairs, progress=False), expected))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(found) == 10 and all(found)


def _memory_growth(mllm: MLLM, documents: Sequence[Document], num_queries: int) -> float:
    """MiB by which memory, the GPU's or the process's, has grown after so many warm queries."""
    reranker = Reranker(mllm)
    questions = itertools.cycle(fitting_questions(reranker, documents[0], 1000, 30))

    def held() -> float:
        gc.collect()
        if mllm.device.type == "cuda":
            return torch.cuda.memory_allocated(mllm.device) / 2**20
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20

    for _ in range(50):
        reranker.rank(next(questions), documents)
    before = held()
    for _ in range(num_queries):
        reranker.rank(next(questions), documents)
    return held() - before


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
    name, found = result["model"], []
    for case in result["cases"]:
        tokens, suffix = case["model"]["image_tokens"], case["prompt_tokens"]["suffix"][1]
        of = f"{name}, {tokens} image and {suffix} suffix tokens"
        warm, cold = case["warm_ms"], case["cold_ms"]
        if name in WARM_MS:
            found.append(goal(of, "warm p50, ms", warm["p50"], at_most=WARM_MS[name]))
        if name in COLD_MS and tokens == 576:
            found.append(goal(of, "cold p50, ms", cold["p50"], at_most=COLD_MS[name]))
        found.append(goal(of, "warm p99 over p50", warm["p99"] / warm["p50"], at_most=1.5))
        limit = warm["p50"] / case["least_ms"]["warm"]
        found.append(goal(of, "warm p50 over the roofline", limit, at_most=1.5))
        gap = case["max_score_difference"]
        bound = 1e-5 if case["model"]["dtype"] == "float32" else 5e-2
        found.append(goal(of, "largest difference of two ways' scores", gap, at_most=bound))
        for way, times in (("warm", 200), ("cold", 20)):
            speed = case["methods"][f"fast_rerank_{way}"]["speedup"]["median"]
            found.append(goal(of, f"{way} speed against `generate`", speed, at_least=times))
    if name in PAIRS_PER_SECOND:
        for row in result["throughput"]:
            rate = row["pairs_per_second"]["median"]
            of = f"{name}, {row['image_tokens']} image tokens"
            found.append(goal(of, "warm pairs a second", rate, at_least=PAIRS_PER_SECOND[name]))
    return found


def check_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What has to hold before speed counts, and whether it does."""
    found = []
    for model in result["models"]:
        of = model["model"]
        found.append(goal(of, "difference in float32", model["difference_float32"], at_most=1e-5))
        allowed = 2 * model["plain_error_bfloat16"] + 1e-3
        found.append(goal(of, "error in bfloat16", model["error_bfloat16"], at_most=allowed))
        for name in ("same_bits_float32", "same_bits_bfloat16", "threads_agree"):
            found.append(goal(of, name.replace("_", " "), float(model[name]), at_least=1))
        growth = model["memory_growth_mib"]
        what = f"MiB grown over {model['num_queries']:,} queries"
        found.append(goal(of, what, growth, at_most=1))
    return found


def tier_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """That "auto" keeps what is faster to get back."""
    found = []
    for model in result["models"]:
        ms = {row["tier"]: row["by_share"]["1.0"]["ms"]["median"] for row in model["tiers"]}
        for tier in ("host", "disk"):
            best = min(ms[f"{tier}, kv"], ms[f"{tier}, features"])
            share = ms[f"{tier}, auto"] / best
            found.append(
                goal(f"{model['model']}, {tier}", "auto over the best", share, at_most=1.1)
            )
    return found


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
    if name == "checks":
        num_queries = (2000 if brief else 10_000) if on_gpu else 100
        if only:
            result = {"models": check_models([only], device, num_queries=num_queries)}
        else:
            result = check(
                CHECKED if on_gpu else ("tiny", "tiny-qwen3-vl"),
                device,
                num_queries=num_queries,
                seconds=0.5 * seconds,
            )
        return {**result, "goals": check_goals(result)}
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
    shape = SHAPES[name]
    sizes = image_tokens(shape) if on_gpu else (shape.image_tokens,)
    result = measure(
        name,
        device,
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
    parts = part or (PARTS if on_gpu else ("checks", "tiers", "tiny", "tiny-qwen3-vl"))
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
