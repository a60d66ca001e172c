"""Noise-injected training on a GPU: time and memory of a step, the same curves, better tiny models.

    make bench-gpu-train                            # every part; up to ten minutes each
    make bench-gpu-train PARTS="internvl2-1b curves"
    python benchmarks/gpu_train.py --device cpu     # tiny models, to see that it runs

A model's part needs torch, transformers, peft and accelerate alone. `models` and `ablation` train
the demo's models by the project's own commands and need its other packages too: for a machine
without a network `make gpu-wheels` fetches them. Each part writes a JSON of its own.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import BUILD, ROOT
from gpu import SAFE_PATH, Clocks, goal, run_parts
from models import build_model
from PIL import Image
from rich.console import Console
from shapes import SHAPES
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging
from workload import WORDS, write_documents

from ragvl import Document
from ragvl.generator.prompt import generator_prompt
from ragvl.mllm import MLLM
from ragvl.profiling.overhead import OVERHEAD_ARMS, step_overhead
from ragvl.runtime import resolve_device, resolve_dtype
from ragvl.training.adapters import LoraSettings, trainable
from ragvl.training.examples import IGNORE, Collator, Example
from ragvl.training.noise import ARMS, NoiseSettings, install_loss, uninstall_loss
from ragvl.training.trainer import train

MODELS = ("internvl2-1b", "internvl2-2b", "llava-1.5-7b")
PARTS = (*MODELS, "curves", "models", "ablation")
LABELLED = {"5 %": 0.05, "all": 1.0}
LARGEST_OF = ("token", "both", "release")  # arms whose largest batch is sought
CURVES = ("cpu float32", "cuda float32", "cuda bfloat16")
NEEDED = {"models": ("faiss", "jsonargparse", "pydantic", "simplemma")}
NEEDED["ablation"] = NEEDED["models"]

_CURVES_AT_ONCE = 4 if torch.cuda.is_available() else 2
_COLORS = {"red": "red", "green": "green", "blue": "blue", "white": "white", "black": "black"}


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
            _free(device)
        largest = _largest(name, device, dtype, num_tokens, most, started, seconds)
    return {
        "model": name,
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "num_tokens": num_tokens,
        "rounds": rounds,
        "clocks": clocks.seen(),
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
    template, fields = generator_prompt(text, [d.caption for d in documents])
    return Collator(mllm)([Example(mllm.render(template, **fields), documents, "red")])


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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
    found: dict[str, int | None] = {}
    for arm in LARGEST_OF:
        if time.monotonic() - started > seconds:
            found[arm] = None
            continue
        mllm = MLLM(*build_model(SHAPES[name], device=device, dtype=dtype))
        model = trainable(mllm, LoraSettings(rank=16), freeze_vision=True)
        (batch,) = _batches(mllm, {arm: ARMS[arm]}, 1, num_tokens, LABELLED["5 %"]).values()
        install_loss(mllm, ARMS[arm])
        model.train()
        fits = partial(_fits, model, batch, device)
        size = 1
        while size < most and fits(2 * size):
            size *= 2
        low, high = size, min(2 * size, most + 1)  # the first fits, the second does not
        while high - low > max(1, low // 16):  # to a sixteenth
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        found[arm] = low
        uninstall_loss(mllm)
        del mllm, model
        _free(device)
    return found


def _fits(model: Any, batch: Mapping[str, Tensor], device: torch.device, size: int) -> bool:
    try:
        rows = {key: torch.cat([x] * size).to(device) for key, x in batch.items()}
        model(**rows).loss.backward()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        rows = {}
        _free(device)
    return True


# --- curves -------------------------------------------------------------------------------------


class ColoredSquares(Dataset[Example]):
    """Pictures of one color each, and the question which."""

    def __init__(self, mllm: MLLM, count: int) -> None:
        self._mllm = mllm
        rng = np.random.default_rng(0)
        self._colors = [str(color) for color in rng.choice(list(_COLORS), count)]
        self._captions = [f"Square {number}" for number in rng.permutation(count)]

    def __len__(self) -> int:
        return len(self._colors)

    def __getitem__(self, index: int) -> Example:
        picture = Image.new("RGB", (64, 64), _COLORS[self._colors[index]])
        document = Document(picture, caption=self._captions[index])
        template, fields = generator_prompt("What color is the square?", [document.caption])
        return Example(self._mllm.render(template, **fields), [document], self._colors[index])


def run_curve(kind: str, seed: int, steps: int, folder: Path) -> None:
    """Trains tiny-base on the squares; what `curves` runs in processes of their own."""
    where, dtype = kind.split()
    transformers_logging.disable_progress_bar()
    mllm = MLLM.from_pretrained(
        ROOT / "ragvl" / "assets" / "tiny-base", device="cpu", dtype="float32"
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=3e-4,
        warmup_steps=10,
        logging_steps=1,
        save_steps=max(1, steps // 4),
        save_total_limit=2,
        seed=seed,
        use_cpu=where == "cpu",
        bf16=dtype == "bfloat16",
        report_to="none",
        disable_tqdm=True,
        resume_from_checkpoint="last",
    )
    noise = NoiseSettings(token_level="tokens", timestep=900, clamp_low=0.01)
    train(mllm, arguments, ColoredSquares(mllm, 512), noise=noise)


def curves(kinds: Sequence[str], seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """Loss curves on each device and dtype with each seed, and of a run killed half way."""
    last = kinds[-1]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(_CURVES_AT_ONCE) as pool:
        folder = Path(name)
        coming = {
            kind: [
                pool.submit(_curve, kind, seed, steps, folder / f"{kind} {seed}") for seed in seeds
            ]
            for kind in kinds
        }
        again = pool.submit(_curve, last, seeds[0], steps, folder / "again")
        broken_off = pool.submit(_curve, last, seeds[0], steps, folder / "killed", kill=True)
        losses = {kind: [curve.result() for curve in found] for kind, found in coming.items()}
        repeated, killed = again.result(), broken_off.result()
    base = np.array(losses[kinds[0]])
    # What the seed alone changes, step by step, against what device and dtype do
    pairs = [(i, j) for i in range(len(seeds)) for j in range(i)]
    by_seed = float(np.mean([np.abs(base[i] - base[j]).mean() for i, j in pairs]))
    return {
        "steps": steps,
        "seeds": list(seeds),
        "losses": losses,
        "between_seeds": by_seed,
        "from_first": {
            kind: float(np.abs(np.array(found) - base).mean())
            for kind, found in losses.items()
            if kind != kinds[0]
        },
        "killed": last,
        # Two runs of one seed may differ on a GPU, which adds in any order
        "repeated": float(np.abs(np.array(repeated) - np.array(losses[last][0])).max()),
        "after_kill": float(np.abs(np.array(killed) - np.array(losses[last][0])).max()),
    }


def _curve(kind: str, seed: int, steps: int, folder: Path, kill: bool = False) -> list[float]:
    """Every step's loss. A run that is to be killed is, after its first checkpoint, and goes on."""
    command = [sys.executable, __file__, "--curve", kind, "--seed", str(seed)]
    command += ["--steps", str(steps), "--folder", str(folder)]
    threads = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 4))}
    if kill:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, env=threads, **quiet)
        while process.poll() is None and not list(folder.glob("checkpoint-*/trainer_state.json")):
            time.sleep(0.05)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, env=threads, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{kind}, seed {seed}: {(done.stdout + done.stderr)[-2000:]}")
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


# --- the demo's models --------------------------------------------------------------------------


def models(device: torch.device, folder: Path, *, small: bool) -> dict[str, Any]:
    """Trains the demo's models by their own script, and evaluates them as the demo does.

    They stay in `folder`; whether they are better than those that ship is for `models_goals`.
    """
    steps = ["retriever", "describe", "base", "reranker", "generator"]
    flags = [f"--{step}-steps=2" for step in steps] + ["--places=24"] if small else []
    _run(
        *("-m", "ragvl.training.tiny", "--out", str(folder), "--work", str(folder / "work")),
        *("--device", device.type, *flags),
    )
    world = folder / "places"
    _run("-m", "ragvl.cli", "data", "draw", str(world), "--test", "24" if small else "520")
    stages = [f"--{stage}={folder / f'tiny-{name}'}" for stage, name in _STAGES.items()]
    _run(
        *("-m", "ragvl.cli", "evaluate", str(world), "--split", "test", *stages),
        *("--device", device.type, "--dtype", "float32", "--max-new-tokens", "8"),
        *("--timed", "0", "--out", str(folder / "report"), "--no-progress"),
    )
    return json.loads((folder / "report" / "result.json").read_text())


_STAGES = {"encoder": "retriever", "reranker": "reranker", "generator": "generator"}


def ablation(folder: Path, *, small: bool) -> dict[str, Any]:
    """The noise ablation of the demo's world with five seeds; goes on where it was."""
    text = (ROOT / "benchmarks" / "ablations" / "noise_gpu.yaml").read_text()
    text = text.replace("runs/worlds", str(folder))
    numbers = "8" if small else "1500", "8" if small else "520"
    if small:
        for what, instead in (
            ("seeds: [0, 1, 2, 3, 4]", "seeds: [0, 1]"),
            ("max_steps: 120", "max_steps: 2"),
            ("use_cpu: false", "use_cpu: true"),
        ):
            text = text.replace(what, instead)
    draw = ("-m", "ragvl.cli", "data", "draw")
    _run(*draw, str(folder / "learn"), "--train", numbers[0], "--questions", "6")
    _run(*draw, str(folder / "places"), "--test", numbers[1])
    grid = folder / "grid.yaml"
    grid.write_text(text)
    _run("-m", "ragvl.cli", "ablate", str(grid), "--out", str(folder / "out"))
    return json.loads((folder / "out" / "ablation.json").read_text())


def _run(*arguments: str) -> None:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=SAFE_PATH, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {(done.stdout + done.stderr)[-2000:]}")


def missing(part: str) -> list[str]:
    """Packages that a part needs and that are not here."""
    return [name for name in NEEDED.get(part, ()) if importlib.util.find_spec(name) is None]


# --- goals --------------------------------------------------------------------------------------


def step_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What a step may cost, and costs."""
    found = []
    name = result["model"]
    for case in result["cases"]:
        arms, of = case["arms"], f"{name}, {case['labelled']} labelled"
        times = 1 / arms["token"]["speedup"]["median"]
        found.append(goal(of, "token level on tokens, time of plain", times, at_most=1.45))
        peaks = {arm: figures["peak_mib"] for arm, figures in arms.items()}
        if peaks["plain"] and peaks["token"]:
            share = peaks["token"] / peaks["plain"]
            found.append(goal(of, "token level on tokens, memory of plain", share, at_most=1.1))
        if name == "internvl2-1b" and peaks["release"] and peaks["both"]:
            share = peaks["release"] / peaks["both"]
            found.append(goal(of, "memory of the release's way over ours", share, at_least=3))
    return found


def curve_goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """That device and dtype change a curve no more than a seed does, and a kill nothing."""
    noise = result["between_seeds"]
    found = [
        goal(f"{kind} against {CURVES[0]}", "mean difference of loss", gap, at_most=noise)
        for kind, gap in result["from_first"].items()
    ]
    gap = result["after_kill"]
    found.append(
        goal(f"{result['killed']}, killed", "largest difference of loss", gap, at_most=1e-3)
    )
    return found


def model_goals(result: dict[str, Any], shipped: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether the new models are better on the test split than those that ship."""
    found = []
    for path in (
        ("reranked", "recall@1"),
        ("kept", "natural", "f1"),
        ("answers", "natural", "accuracy"),
    ):
        new, old = (_at(of["pools"]["full"], path)["value"] for of in (result, shipped))
        found.append(goal("full pool", " ".join(path), new, at_least=old))
    return found


def _at(found: Any, path: Sequence[str]) -> Any:
    for key in path:
        found = found[key]
    return found


# --- command line -------------------------------------------------------------------------------


def run(part: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """One part's result; tiny where there is no GPU."""
    on_gpu = device.type == "cuda"
    if part == "curves":
        kinds = CURVES if on_gpu else ("cpu float32", "cpu bfloat16")
        result = curves(kinds, (0, 1, 2) if on_gpu else (0, 1), 200 if on_gpu else 8)
        return {**result, "goals": curve_goals(result)}
    if part in NEEDED:
        if lacking := missing(part):
            raise typer.BadParameter(
                f"{part} needs {', '.join(lacking)}: `make gpu-wheels` where there is a network, "
                "and bring build/wheels along"
            )
        folder = BUILD / f"gpu-{part}"
        if part == "ablation":
            return {**ablation(folder, small=not on_gpu), "goals": []}
        result = models(device, folder, small=not on_gpu)
        shipped = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
        return {**result, "goals": model_goals(result, shipped)}
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
        list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}; all by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    seconds: Annotated[float, typer.Option(help="For each part.")] = 560,
    curve: Annotated[str | None, typer.Option(hidden=True)] = None,
    seed: Annotated[int, typer.Option(hidden=True)] = 0,
    steps: Annotated[int, typer.Option(hidden=True)] = 200,
    folder: Annotated[Path, typer.Option(hidden=True)] = BUILD,
) -> None:
    """Measure; write benchmarks/results/gpu_train_<part>.json, or on a CPU the same in build."""
    transformers_logging.disable_progress_bar()
    if curve is not None:  # what `curves` runs
        return run_curve(curve, seed, steps, folder)
    where = resolve_device(device)
    on_gpu = where.type == "cuda"
    parts = part or (PARTS if on_gpu else ("tiny", "tiny-internvl", "curves"))
    run_parts(
        "gpu_train",
        parts,
        (*PARTS, *SHAPES),
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
