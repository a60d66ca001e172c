"""What kept visual tokens save where no prefix can be reused: with the query first.

python benchmarks/bench_visual_tokens.py                 # some minutes on two CPU cores
python benchmarks/bench_visual_tokens.py --model tiny    # seconds; prints, writes nothing
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from bench_prefix_cache import Tier, hits_and_misses, tier_rows
from common import save
from models import write_model
from shapes import SHAPES
from transformers.utils import logging as transformers_logging
from workload import questions, unseen_pictures, write_documents

from ragvl import Document, PrefixCache, Reranker
from ragvl.mllm import MLLM, encode_picture
from ragvl.profiling.timing import spread, time_in_turn
from ragvl.reranker import PromptTemplate
from ragvl.reranker.presets import resolve_preset
from ragvl.runtime import resolve_device, resolve_dtype

# An InternVL's tower looks at four patches for each token that its decoder sees
DEFAULT_MODEL = {"cpu": "half-internvl", "cuda": "internvl2-1b"}
QUERY_FIRST = "qwen3-vl-reranker"  # the preset whose template is asked
NUM_WORDS = 15  # of a question


def measure(model: str, device: torch.device, *, num_documents: int, rounds: int) -> dict[str, Any]:
    """Everything about one model; what goes into the JSON.

    Args:
        model: a name in `SHAPES`.
        device: where.
        num_documents: that a question is asked about.
        rounds: samples of each figure, 2 to 15.

    Raises:
        RuntimeError: scores differ where pictures are known.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dtype = resolve_dtype("auto", device)
        write_model(folder / "model", SHAPES[model], device=device, dtype=dtype)
        mllm = MLLM.from_pretrained(folder / "model", device=device)
        documents = write_documents(folder, num_documents)
        asked = questions(40, NUM_WORDS)
        template = resolve_preset(QUERY_FIRST).template
        plain = Reranker(mllm, template=template, prefix_cache=None)
        tiers = _tiers(mllm, template, documents, folder / "cache")
        _check_same(plain, tiers, documents, asked[0])
        share = _vision_share(plain, documents, asked, rounds)
        rows = tier_rows(tiers, plain, documents, asked, rounds, (0.0, 1.0), others=unseen_pictures)
        return {
            "model": {
                "name": model,
                "dtype": str(mllm.dtype).removeprefix("torch."),
                "image_tokens": SHAPES[model].image_tokens,
            },
            "num_documents": num_documents,
            "rounds": rounds,
            "vision_share": share,
            "tiers": hits_and_misses(rows),
        }


def _tiers(
    mllm: MLLM, template: PromptTemplate, documents: Sequence[Document], folder: Path
) -> dict[str, Tier]:
    """The known documents' visual tokens in each tier."""
    caches = {
        "device": ("pictures", PrefixCache("1GiB")),
        "host": ("host", PrefixCache("scratch", host_bytes="1GiB")),
        "disk": ("disk", PrefixCache("scratch", folder=folder)),
    }
    tiers = {}
    for name, (counted, cache) in caches.items():
        reranker = Reranker(mllm, template=template, prefix_cache=cache)
        reranker.warm(documents, progress=False)
        tiers[f"{name}, visual tokens"] = Tier(reranker, counted)
    return tiers


def _check_same(
    plain: Reranker, tiers: dict[str, Tier], documents: Sequence[Document], question: str
) -> None:
    pairs = [(question, document) for document in documents]
    expected = plain.score(pairs, progress=False)
    for name, tier in tiers.items():
        if not torch.equal(tier.reranker.score(pairs, progress=False), expected):
            raise RuntimeError(f"the tier {name} changes scores")


def _vision_share(
    plain: Reranker, documents: Sequence[Document], asked: Sequence[str], rounds: int
) -> dict[str, float]:
    """How much of a question without a cache the vision tower takes, the pictures prepared."""
    mllm = plain.mllm
    images = [encode_picture(mllm.prompting, one) for d in documents for one in d.pictures]
    coming = itertools.cycle(asked)
    calls = {
        "whole": lambda: plain.score(
            [(q, d) for q in [next(coming)] for d in documents], progress=False
        ),
        "vision": lambda: [mllm.with_features(image) for image in images],
    }
    samples = time_in_turn(calls, rounds=rounds, device=mllm.device)
    shares = [part / whole for part, whole in zip(samples["vision"], samples["whole"], strict=True)]
    return spread(shares)


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    model: Annotated[str | None, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = None,
    documents: Annotated[int, typer.Option(min=1, help="That a question is asked about.")] = 1,
    rounds: Annotated[int, typer.Option(min=2, max=15, help="Samples of each figure.")] = 11,
) -> None:
    """Measure and write benchmarks/results/visual_tokens_{cpu,cuda}.json."""
    transformers_logging.disable_progress_bar()
    where = resolve_device(device)
    if model is not None and model not in SHAPES:
        raise typer.BadParameter(f"unknown model {model!r}; known: {', '.join(SHAPES)}")
    result = measure(
        model or DEFAULT_MODEL[where.type], where, num_documents=documents, rounds=rounds
    )
    print(json.dumps(result, indent=1))
    if model is None:
        print(f"wrote {save(f'visual_tokens_{where.type}', result, where)}")


if __name__ == "__main__":
    typer.run(main)
