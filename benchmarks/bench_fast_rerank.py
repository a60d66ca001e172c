"""fast_rerank against other ways to score the same candidates with the same model.

Every method reads the same JPEG files, sees the same prompts and a new question each round; nothing
is kept from one call to the next. The run fails if their scores differ.

    python benchmarks/bench_fast_rerank.py                # about three minutes on two CPU cores
    python benchmarks/bench_fast_rerank.py --size tiny    # seconds; prints, writes nothing
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from baselines import CrossEncoderBaseline, PaddedBatch, SerialGenerate
from common import compare, save, spread, time_in_turn
from models import SIZES, write_llava
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging
from workload import CAPTIONS, QUESTIONS, write_documents

from ragvl import Document, Reranker, fast_rerank
from ragvl.runtime import resolve_device, resolve_dtype

BASELINE = "serial_generate"
DEFAULT_SIZE = {"cpu": "mid", "cuda": "7b"}
# How far apart two methods' scores may lie: rounding, in another order of additions
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}

Score = Callable[[str, Sequence[Document]], list[float]]


def measure(size: str, device: torch.device, *, rounds: int, num_documents: int) -> dict[str, Any]:
    """Times every method in turn; returns what goes into the JSON.

    Raises:
        ValueError: there are fewer questions than rounds, or a number is out of range.
        RuntimeError: two methods' scores differ by more than rounding.
    """
    if not 2 <= rounds < len(QUESTIONS):
        raise ValueError(f"rounds={rounds}: expected 2 to {len(QUESTIONS) - 1}")
    if not 1 <= num_documents <= len(CAPTIONS):
        raise ValueError(f"num_documents={num_documents}: expected 1 to {len(CAPTIONS)}")
    dtype = resolve_dtype("auto", device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = write_llava(folder, SIZES[size], device=device, dtype=dtype)
        documents = write_documents(folder, num_documents)
        reranker = Reranker.from_pretrained(folder, device=device, dtype=dtype)
        methods: dict[str, Score] = {
            "serial_generate": SerialGenerate(folder, reranker).score,
            "padded_batch": PaddedBatch(folder, reranker).score,
            "cross_encoder": CrossEncoderBaseline(folder, reranker).score,
            "fast_rerank": lambda query, documents: _fast_rerank(query, documents, reranker),
        }
        scores: dict[str, list[list[float]]] = {method: [] for method in methods}

        def ask_next(method: str) -> None:
            question = QUESTIONS[len(scores[method])]  # the warm-up has one of its own
            scores[method].append(methods[method](question, documents))

        calls = {method: partial(ask_next, method) for method in methods}
        samples = time_in_turn(calls, rounds=rounds, device=device)
        difference = _largest_difference(scores)
        if not difference <= TOLERANCE[dtype]:
            raise RuntimeError(f"the methods' scores differ by {difference}: there is a bug")
        figures = compare(samples, BASELINE)
        for method, score in methods.items():
            figures[method]["peak_mib"] = peak_mib(partial(score, QUESTIONS[0], documents), device)
        return {
            "model": {
                "size": size,
                "parameters": parameters,
                "dtype": str(dtype).removeprefix("torch."),
                "image_tokens": reranker.mllm.encode_image(documents[0].load()).num_tokens,
            },
            "num_documents": num_documents,
            "prompt_tokens": _prompt_tokens(reranker, documents),
            "rounds": rounds,
            "baseline": BASELINE,
            "methods": figures,
            "max_score_difference": difference,
            "fast_rerank_stages_ms": stages_ms(reranker, documents, device, rounds=3),
            "sentence_transformers": importlib.metadata.version("sentence-transformers"),
        }


def peak_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """The most memory that `call` takes above what was held before, in MiB.

    On a GPU what torch allocates there; on the CPU the process's resident memory, which only Linux
    tells (elsewhere None).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back, or it would not count as taken
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    except (AttributeError, OSError):
        return None
    before = _resident_kib("VmRSS")
    call()
    return (_resident_kib("VmHWM") - before) / 2**10


def stages_ms(
    reranker: Reranker, documents: Sequence[Document], device: torch.device, *, rounds: int
) -> dict[str, dict[str, float]]:
    """Where fast_rerank's time goes; measured by hooks on the model, outside the timed rounds.

    `other` is reading and preparing pictures and text, the head, and what lies between.
    """
    base = reranker.mllm.model.base_model
    samples: dict[str, list[float]] = {"vision": [], "decoder": [], "other": []}
    for question in QUESTIONS[:rounds]:
        with (
            _timed(base.vision_tower, device) as vision,
            _timed(base.language_model, device) as decoder,
        ):
            start = _now(device)
            _fast_rerank(question, documents, reranker)
            total = _now(device) - start
        samples["vision"].append(sum(vision) * 1e3)
        samples["decoder"].append(sum(decoder) * 1e3)
        samples["other"].append((total - sum(vision) - sum(decoder)) * 1e3)
    return {stage: spread(times) for stage, times in samples.items()}


def _fast_rerank(query: str, documents: Sequence[Document], reranker: Reranker) -> list[float]:
    ranked = fast_rerank(query, documents, model=reranker)
    return [result.score for result in sorted(ranked, key=lambda result: result.index)]


def _largest_difference(scores: dict[str, list[list[float]]]) -> float:
    every = torch.tensor(list(scores.values()))  # (methods, rounds, documents)
    return (every.amax(0) - every.amin(0)).max().item()


def _prompt_tokens(reranker: Reranker, documents: Sequence[Document]) -> dict[str, list[int]]:
    """The shortest and the longest prefix (the same for every query) and suffix, in tokens."""
    splits = [reranker.split_prompt(QUESTIONS[0], document) for document in documents]
    lengths = zip(*([len(part) for part in split] for split in splits), strict=True)
    return {
        part: [min(counts), max(counts)]
        for part, counts in zip(("prefix", "suffix"), lengths, strict=True)
    }


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _timed(module: torch.nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Collects the seconds of each forward of `module`."""
    starts: list[float] = []
    seconds: list[float] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_: starts.append(_now(device))),
        module.register_forward_hook(lambda *_: seconds.append(_now(device) - starts[-1])),
    ]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    size: Annotated[
        str | None, typer.Option(help=f"{', '.join(SIZES)}; by default mid on a CPU, 7b on a GPU.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Samples of each method.")] = 7,
    num_documents: Annotated[int, typer.Option(help="Candidates a question.")] = 20,
) -> None:
    """Measure, print a table and write benchmarks/results/fast_rerank_{cpu,cuda}.json.

    Only the default size is written, since that is what the documents' tables are about.
    """
    transformers_logging.disable_progress_bar()
    where = resolve_device(device)
    default = DEFAULT_SIZE[where.type]
    if size is not None and size not in SIZES:
        raise typer.BadParameter(f"unknown size {size!r}; known: {', '.join(SIZES)}")
    result = measure(size or default, where, rounds=rounds, num_documents=num_documents)
    table = Table("method", "ms", "speedup", "peak MiB", title=f"{size or default} on {where}")
    for method, figures in result["methods"].items():
        peak = figures["peak_mib"]
        table.add_row(
            method,
            f"{figures['ms']['median']:.1f} ± {figures['ms']['iqr'] / 2:.1f}",
            f"{figures['speedup']['median']:.2f}x",
            "?" if peak is None else f"{peak:.0f}",
        )
    console = Console()
    console.print(table)
    stages = result["fast_rerank_stages_ms"]
    console.print(
        "fast_rerank: " + ", ".join(f"{name} {ms['median']:.1f} ms" for name, ms in stages.items())
    )
    console.print(f"scores agree within {result['max_score_difference']:.1e}")
    if size in (None, default):
        console.print(f"wrote {save(f'fast_rerank_{where.type}', result, where)}")


if __name__ == "__main__":
    typer.run(main)
