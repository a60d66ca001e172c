"""The models that `ragvl train` tunes, made of adapters that were trained before.

Training takes an hour or more, so the adapters are kept in `trained/`, as PEFT writes them: other
machines start from these, and every figure is of models that are made of them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from ragvl.files import follow_umask, write_text
from ragvl.mllm import MLLM
from ragvl.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, read_json
from ragvl.reranker.presets import TRAINED_TEMPLATE
from ragvl.training.run_record import RUN_FILE, is_finished, noted_run
from real.layout import Layout, Tuned
from real.packages import sha256_of

TRAINED = Path(__file__).parent / "trained"
TUNED_FROM: dict[Tuned, str] = {"describer": "base", "reranker": "describer", "generator": "base"}
# Files of `trained` that a model was tuned from, whose checksums are kept with its adapters
_BASE = "retriever.safetensors", "projector.safetensors"
_STARTS: dict[Tuned, tuple[str, ...]] = {
    "describer": _BASE,
    "reranker": (f"describer/{ADAPTER_WEIGHTS}",),
    "generator": _BASE,
}
STARTS_FILE = "starts.json"
_AS_IT_IS = CONFIG, RUN_FILE  # with the template, and the questions, that a model was trained on


def keep(layout: Layout, name: Tuned, trained: Path = TRAINED) -> Path:
    """Copies the adapters of a training that is finished, in float16, which halves their bytes.

    Args:
        layout: has the training's folder.
        name: one of `TUNED_FROM`.
        trained: where adapters are kept, a folder a model.

    Returns:
        their folder.

    Raises:
        FileNotFoundError: it is not finished.
        ValueError: it started from another model than is there now.
    """
    run, start = layout.training / name, layout.models / TUNED_FROM[name]
    if not is_finished(run):
        raise FileNotFoundError(f"the training of {run} is not finished")
    if not _started_from(start, run):
        raise ValueError(f"{run} did not start from this {start}: move it away, and tune again")
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    kept = trained / name
    kept.mkdir(parents=True, exist_ok=True)
    weights = load_file(last / ADAPTER_WEIGHTS)
    save_file({key: one.half() for key, one in weights.items()}, kept / ADAPTER_WEIGHTS)
    follow_umask(kept / ADAPTER_WEIGHTS)
    config = read_json(last / ADAPTER_CONFIG) | {"base_model_name_or_path": TUNED_FROM[name]}
    config["target_modules"] = sorted(config["target_modules"])
    write_text(kept / ADAPTER_CONFIG, json.dumps(config, indent=1) + "\n")
    for file in _AS_IT_IS:
        shutil.copyfile(run / file, kept / file)
    write_text(kept / STARTS_FILE, json.dumps(_starts(name, trained), indent=1) + "\n")
    return kept


def _started_from(start: Path, run: Path) -> bool:
    """Whether a training, which notes its start's fingerprint, began with a model as it is now."""
    mllm = MLLM.from_pretrained(start, device="cpu", dtype="bfloat16")  # the recipes' dtype
    if template := read_json(run / CONFIG).get(TRAINED_TEMPLATE):
        setattr(mllm.model.config, TRAINED_TEMPLATE, template)  # before it is fingerprinted
    return noted_run(run).get("model") == mllm.fingerprint


def _starts(name: Tuned, trained: Path) -> dict[str, str]:
    return {file: sha256_of(trained / file) for file in _STARTS[name]}


def make(layout: Layout, name: Tuned, trained: Path = TRAINED) -> Path:
    """Writes a model: what it was tuned from, with its adapters merged into the weights.

    Args:
        layout: has what it was tuned from.
        name: one of `TUNED_FROM`.
        trained: where adapters are kept.

    Returns:
        its folder.

    Raises:
        FileNotFoundError: what it was tuned from is not made yet.
        ValueError: its adapters were tuned from another one.
    """
    start, out, kept = layout.models / TUNED_FROM[name], layout.models / name, trained / name
    if not (start / CONFIG).exists():
        raise FileNotFoundError(f"there is no {start} yet: make it first")
    was = read_json(kept / STARTS_FILE) if (kept / STARTS_FILE).exists() else {}
    if others := [file for file, sha in _starts(name, trained).items() if was.get(file) != sha]:
        raise ValueError(
            f"the adapters of {kept} were tuned from another {' and '.join(others)}: tune them "
            f"again with benchmarks/runs/real.sh {name}"
        )
    mllm = MLLM.from_pretrained(start, device="cpu", dtype="float32")
    merged = PeftModel.from_pretrained(mllm.model, str(kept)).merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(out)
    mllm.prompting.processor.save_pretrained(out)
    follow_umask(*out.glob("*.safetensors"))
    for file in _AS_IT_IS:
        shutil.copyfile(kept / file, out / file)
    return out
