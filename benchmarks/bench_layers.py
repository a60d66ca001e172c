"""What computes the small operators between a layer's products: `layers=` of `ragvl.mllm.MLLM`.

Warm and cold calls with each kind in turn, on models of the same weights, and where a warm call's
time goes: into products, attention, or what stands between them.

    python benchmarks/bench_layers.py                 # minutes on two CPU cores
    python benchmarks/bench_layers.py --model tiny    # seconds; prints, writes nothing
    make bench-gpu-rerank PARTS=layers                # the same on a GPU
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from common import save
from models import build_model
from rich.console import Console
from shapes import SHAPES
from tables import Result, Results, devices, table, times, unmeasured
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging as transformers_logging
from workload import fitting_questions, write_documents

from ragvl import Document, Reranker
from ragvl.mllm import MLLM
from ragvl.mllm.layers import LayerCode, code_in_force
from ragvl.profiling.timing import compare, time_in_turn
from ragvl.runtime import resolve_dtype

BASELINE = "eager"
DEFAULT_MODEL = "mid"
CPU = torch.device("cpu")
_SUFFIX_TOKENS = 30
_PROFILED_CALLS = 5
# Operators of a CPU and kernels of a GPU; what is neither stands between them
_PRODUCTS = re.compile(r"^aten::(add|b|ba)?mm|linear|gemm|gemv|nvjet|cutlass|xmma", re.IGNORECASE)
_ATTENTION = re.compile(r"prefix_attention|scaled_dot_product|flash", re.IGNORECASE)


def measure_layers(
    name: str,
    device: torch.device,
    *,
    num_documents: int,
    rounds: int,
    kinds: Sequence[LayerCode] = get_args(LayerCode),
) -> dict[str, Any]:
    """One model's warm and cold calls with each kind of layers.

    Args:
        name: in `SHAPES`.
        device: where.
        num_documents: candidates a question.
        rounds: samples of each kind.
        kinds: which; "eager" among them.
    """
    dtype = resolve_dtype("auto", device)
    mllms = {
        layers: MLLM(*build_model(SHAPES[name], device=device, dtype=dtype), layers=layers)
        for layers in kinds
    }
    with tempfile.TemporaryDirectory() as folder:
        documents = write_documents(Path(folder), num_documents)
        warm = {layers: Reranker(mllm) for layers, mllm in mllms.items()}
        cold = {layers: Reranker(mllm, prefix_cache=None) for layers, mllm in mllms.items()}
        questions = fitting_questions(warm[BASELINE], documents[0], rounds + 1, _SUFFIX_TOKENS)
        scores = {layers: _score(warm[layers], questions[0], documents) for layers in warm}
        timed = {}
        for state, rerankers in (("warm", warm), ("cold", cold)):
            calls: dict[str, Callable[[], object]] = {
                layers: partial(_score, reranker, questions[1], documents)
                for layers, reranker in rerankers.items()
            }
            timed[state] = compare(time_in_turn(calls, rounds=rounds, device=device), BASELINE)
        shares = {
            layers: profile_call(partial(_score, reranker, questions[-1], documents), device)
            for layers, reranker in warm.items()
        }
    return {
        "model": name,
        "dtype": str(dtype).removeprefix("torch."),
        "kinds": {
            layers: {
                "in_force": code_in_force(mllm.decoder.layers),
                "warm": timed["warm"][layers],
                "cold": timed["cold"][layers],
                "score_difference": (scores[layers] - scores[BASELINE]).abs().max().item(),
                **shares[layers],
            }
            for layers, mllm in mllms.items()
        },
    }


def _score(reranker: Reranker, question: str, documents: Sequence[Document]) -> torch.Tensor:
    return reranker.score([(question, document) for document in documents], progress=False)


def profile_call(call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Shares of the time that operators take, or kernels on a GPU, and how many a call has."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as run:
        for _ in range(_PROFILED_CALLS):
            call()
    seconds = dict.fromkeys(("products", "attention", "between"), 0.0)
    count = 0
    for event in run.key_averages():
        is_other = event.is_user_annotation and not event.key.startswith("ragvl::")
        if is_other or (event.device_type == DeviceType.CUDA) != on_gpu:
            continue
        kind = "products" if _PRODUCTS.search(event.key) else "between"
        kind = "attention" if _ATTENTION.search(event.key) else kind
        seconds[kind] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        count += event.count
    total = sum(seconds.values()) or 1.0
    shares = {kind: value / total for kind, value in seconds.items()}
    return {"shares": shares, "operators": count / _PROFILED_CALLS}


def layers_table(results: Results) -> str:
    """Speed and shares with each kind, on the CPU and on a GPU."""
    header = [
        *("model", "layers", "warm", "cold", "operators", "products", "attention", "between"),
        "largest difference of a score",
    ]
    measured = [r for name in ("layers_cpu", "gpu_rerank_layers") if (r := results.get(name))]
    if not measured:
        return unmeasured(header)
    rows = [
        _row(model, layers) for r in measured for model in r["models"] for layers in model["kinds"]
    ]
    note = (
        f"{devices(measured)}; of eager's speed, medians of {measured[0]['rounds']} rounds; shares "
        "of a warm call's operators."
    )
    return table(header, rows, note)


def _row(model: Result, layers: str) -> list[str]:
    kind = model["kinds"][layers]
    return [
        f"{model['model']}, {model['dtype']}",
        layers if kind["in_force"] == layers else f"{layers} (not for this model)",
        *(times(kind[state]["speedup"]) for state in ("warm", "cold")),
        f"{kind['operators']:,.0f}",
        *(f"{100 * share:.0f} %" for share in kind["shares"].values()),
        f"{kind['score_difference']:.0e}",
    ]


def main(
    model: Annotated[
        str, typer.Option(help="In shapes.py; another than the default is printed.")
    ] = DEFAULT_MODEL,
    num_documents: Annotated[int, typer.Option(help="Candidates a question.")] = 20,
    rounds: Annotated[int, typer.Option(help="Samples of each kind.")] = 9,
) -> None:
    """Measure on the CPU; print the table and write benchmarks/results/layers_cpu.json."""
    transformers_logging.disable_progress_bar()
    measured = measure_layers(model, CPU, num_documents=num_documents, rounds=rounds)
    result = {"rounds": rounds, "num_documents": num_documents, "models": [measured]}
    console = Console(width=160)
    console.print(layers_table({"layers_cpu": {**result, "machine": {"device": "this CPU"}}}))
    if model == DEFAULT_MODEL:
        console.print(f"wrote {save('layers_cpu', result, CPU)}")


if __name__ == "__main__":
    typer.run(main)
