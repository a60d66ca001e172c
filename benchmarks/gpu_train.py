"""Noise-injected training on a GPU: time and memory of a step.

    make bench-gpu-train                            # every model; up to ten minutes each
    make bench-gpu-train PARTS=internvl2-1b
    python benchmarks/gpu_train.py --device cpu     # tiny models, to see that it runs

Needs no network and nothing but torch, transformers, peft and accelerate. Each model's part writes
a JSON of its own.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tables
import torch
import typer
from gpu import Clocks, free_memory, goal, run_parts
from models import build_model
from rich.console import Console
from shapes import SHAPES
from tables import Result, Results, devices, mib, table, unmeasured
from torch import Tensor
from transformers.utils import logging as transformers_logging
from workload import WORDS, write_documents

from ragvl import Document
from ragvl.generator.prompt import generator_prompt
from ragvl.mllm import MLLM
from ragvl.profiling.costs import OVERHEAD_ARMS, step_overhead
from ragvl.runtime import resolve_device, resolve_dtype
from ragvl.training.adapters import LoraSettings, trainable
from ragvl.training.examples import IGNORE, Collator, Example
from ragvl.training.noise import ARMS, NoiseSettings, install_loss, uninstall_loss

MODELS = ("internvl2-1b", "internvl2-2b", "llava-1.5-7b")
LABELLED = {"5 %": 0.05, "all": 1.0}
LARGEST_OF = ("token", "both", "release")  # arms whose largest batch is sought


# --- a step -------------------------------------------------------------------------------------


def measure(
    name: str,
    device: torch.device,
    *,
    batch_size: int,
    num_tokens: int,
    rounds: int,
    most: int,
    seconds: float,
) -> dict[str, Any]:
    """One model's steps with each kind of noise, and the largest batches that fit.

    Adapters of rank 16 on the decoder. The data level adds a second picture, and its tokens.

    Args:
        name: in `SHAPES`.
        device: where.
        batch_size: sequences in a timed step.
        num_tokens: of a sequence with one picture.
        rounds: timed steps of each arm.
        most: no larger batch is tried.
        seconds: what is not begun in this time is left out, and named.
    """
    started = time.monotonic()
    dtype = resolve_dtype("auto", device)
    cases, left_out = [], []
    with Clocks(device) as clocks:
        for labelled, share in LABELLED.items():
            if time.monotonic() - started > seconds:
                left_out.append(f"{labelled} labelled")
                continue
            mllm = MLLM(*build_model(SHAPES[name], device=device, dtype=dtype))
            try:
                arms = step_overhead(
                    mllm,
                    OVERHEAD_ARMS,
                    _batches(mllm, OVERHEAD_ARMS, batch_size, num_tokens, share),
                    lora=LoraSettings(rank=16),
                    rounds=rounds,
                )
                cases.append({"labelled": labelled, "arms": arms})
            except torch.cuda.OutOfMemoryError as error:
                left_out.append(f"{labelled} labelled: {error}".partition(". ")[0])
            del mllm
            free_memory(device)
        largest = _largest(name, device, dtype, num_tokens, most, started, seconds)
    return {
        "model": name,
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "num_tokens": num_tokens,
        "rounds": rounds,
        "clocks": clocks.spreads(),
        "cases": cases,
        "largest_batch": largest,
        "left_out": left_out,
    }


def _batches(
    mllm: MLLM,
    arms: Mapping[str, NoiseSettings],
    batch_size: int,
    num_tokens: int,
    labelled: float,
) -> dict[str, dict[str, Tensor]]:
    """A batch for each arm: `num_tokens` tokens a sequence, and a second picture's at data level.

    The last tokens are labelled, as an answer's are; of all, pictures' too.
    """
    with tempfile.TemporaryDirectory() as folder:
        documents = write_documents(Path(folder), 2)
        words = 1 + num_tokens - _sequence(mllm, documents[:1], 1)["input_ids"].shape[1]
        made = {}
        for name, noise in arms.items():
            batch = _sequence(mllm, documents[: max(1, noise.data_level)], words)
            count = round(labelled * batch["input_ids"].shape[1])
            batch["labels"] = torch.full_like(batch["input_ids"], IGNORE)
            batch["labels"][:, -count:] = batch["input_ids"][:, -count:]
            made[name] = {key: torch.cat([x] * batch_size) for key, x in batch.items()}
    return made


def _sequence(mllm: MLLM, documents: Sequence[Document], words: int) -> dict[str, Tensor]:
    """One sequence with a question of so many words, each of which is a token."""
    text = " ".join(WORDS[i % len(WORDS)] for i in range(words))
    template, fields = generator_prompt(text, documents)
    prompt = mllm.prompting.render(template, **fields)
    return Collator(mllm)([Example(prompt, documents, "red")])


def _largest(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    num_tokens: int,
    most: int,
    started: float,
    seconds: float,
) -> dict[str, int | None]:
    """By arm, how many sequences with 5 % labelled fit into a step; None for lack of time."""
    sizes: dict[str, int | None] = {}
    for arm in LARGEST_OF:
        if time.monotonic() - started > seconds:
            sizes[arm] = None
            continue
        mllm = MLLM(*build_model(SHAPES[name], device=device, dtype=dtype))
        model = trainable(mllm, LoraSettings(rank=16), freeze_vision=True)
        (batch,) = _batches(mllm, {arm: ARMS[arm]}, 1, num_tokens, LABELLED["5 %"]).values()
        install_loss(mllm, ARMS[arm])
        model.train()
        sizes[arm] = largest_fitting(partial(_fits, model, batch, device), most)
        uninstall_loss(mllm)
        del mllm, model
        free_memory(device)
    return sizes


def largest_fitting(fits: Callable[[int], bool], most: int) -> int:
    """The largest size up to `most` that fits, to a sixteenth; 1 is taken to fit."""
    size = 1
    while size < most and fits(2 * size):
        size *= 2
    low, high = size, min(2 * size, most + 1)  # the first fits, the second does not
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _fits(model: Any, batch: Mapping[str, Tensor], device: torch.device, size: int) -> bool:
    try:
        rows = {key: torch.cat([x] * size).to(device) for key, x in batch.items()}
        model(**rows).loss.backward()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        rows = {}
        free_memory(device)
    return True


# --- goals --------------------------------------------------------------------------------------


def step_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What a step may cost, and costs."""
    goals = []
    name = result["model"]
    for case in result["cases"]:
        arms, of = case["arms"], f"{name}, {case['labelled']} labelled"
        times = 1 / arms["token"]["speedup"]["median"]
        goals.append(goal(of, "token level on tokens, time of plain", times, at_most=1.45))
        peaks = {arm: figures["peak_mib"] for arm, figures in arms.items()}
        if peaks["plain"] and peaks["token"]:
            share = peaks["token"] / peaks["plain"]
            goals.append(goal(of, "token level on tokens, memory of plain", share, at_most=1.1))
        if name == "internvl2-1b" and peaks["release"] and peaks["both"]:
            share = peaks["release"] / peaks["both"]
            goals.append(goal(of, "memory of the release over ours", share, at_least=3))
    return goals


def cost_table(results: Results) -> str:
    """Time, tokens a second and memory of a step on a GPU by kind of noise; the largest batches."""
    header = ["model", "labelled", "noise", "time", "of plain", "tokens/s", "memory", "batch"]
    models = _measured_models(results)
    if not models:
        return unmeasured(header, names=3)
    rows = []
    for model in models:
        for case in model["cases"]:
            for arm, figures in case["arms"].items():
                ms, largest = figures["ms"]["median"], model["largest_batch"].get(arm)
                rows.append(
                    [
                        *(model["model"], case["labelled"], arm, f"{ms:.0f} ms"),
                        f"{1 / figures['speedup']['median']:.2f}x",
                        f"{1e3 * figures['tokens'] / ms:,.0f}",
                        mib(figures["peak_mib"]),
                        "" if largest is None else str(largest),
                    ]
                )
    first = models[0]
    note = (
        f"{devices(models)}, {first['dtype']}, random weights, adapters of rank 16; "
        f"{first['batch_size']} sequences of {first['num_tokens']:,} tokens with one picture; "
        f"medians of {first['rounds']} rounds in one run. Memory is the peak above model, "
        f"gradients and optimizer. Batch: the largest that fits, to a sixteenth."
    )
    if left_out := [f"{model['model']}, {what}" for model in models for what in model["left_out"]]:
        note += f" Not measured, for lack of time: {'; '.join(left_out)}."
    return table(header, rows, note)


def goals_table(results: Results) -> str:
    """What noise-injected training promises on a GPU, and whether it keeps it."""
    return tables.goals(_measured_models(results))


def _measured_models(results: Results) -> list[Result]:
    stems = [f"gpu_train_{name}" for name in MODELS]
    return [results[stem] for stem in stems if stem in results]


# --- command line -------------------------------------------------------------------------------


def run(part: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """One part's result; tiny where there is no GPU."""
    on_gpu = device.type == "cuda"
    result = measure(
        part,
        device,
        batch_size=4 if on_gpu else 2,
        num_tokens=1024 if on_gpu else 96,
        rounds=7 if on_gpu else 2,
        most=512 if on_gpu else 2,
        seconds=0.6 * seconds,
    )
    return {**result, "goals": step_goals(result)}


def main(
    part: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(MODELS)}; all by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    seconds: Annotated[float, typer.Option(help="For each part.")] = 560,
) -> None:
    """Measure; write benchmarks/results/gpu_train_<part>.json, or on a CPU the same in build."""
    transformers_logging.disable_progress_bar()
    where = resolve_device(device)
    on_gpu = where.type == "cuda"
    parts = part or (MODELS if on_gpu else ("tiny", "tiny-internvl"))
    run_parts(
        "gpu_train",
        parts,
        SHAPES,
        lambda name: run(name, where, seconds),
        _describe,
        where,
    )


def _describe(part: str, result: dict[str, Any], console: Console) -> None:
    for case in result.get("cases", ()):
        for arm, figures in case["arms"].items():
            rate = 1e3 * figures["tokens"] / figures["ms"]["median"]
            peak = math.nan if figures["peak_mib"] is None else figures["peak_mib"]
            console.print(
                f"{part}, {case['labelled']} labelled, {arm}: {figures['ms']['median']:.1f} ms, "
                f"{rate:,.0f} tokens/s, {peak:,.0f} MiB"
            )
    if "largest_batch" in result:
        console.print(f"{part}, largest batches: {result['largest_batch']}")


if __name__ == "__main__":
    typer.run(main)
