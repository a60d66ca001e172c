"""How much faster two actors of a core each warm a set than one does.

OMP_NUM_THREADS=1 python benchmarks/bench_ray.py   # some minutes on two quiet CPU cores

An actor's start is left out, which takes as long as to import torch, whatever there is to do.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import ROOT, save
from PIL import Image
from tables import NOT_MEASURED, Results, table, times

from ragvl import Document, PrefixCache, Reranker
from ragvl.profiling.timing import spread

COUNTS = (1, 2)  # actors
GOAL = 1.7


def write_pictures(folder: Path, count: int) -> list[Document]:
    """Pictures of noise, no two alike."""
    documents = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.effect_noise((96, 96), 10 + i % 90).save(path)
        documents.append(Document(path, caption=f"Picture {i}"))
    return documents


def seconds(documents: list[Document], actors: int, folder: Path, model: Path) -> float:
    """How long so many actors take for all prefixes."""
    from ragvl.distributed.actors import actor_map
    from ragvl.distributed.warm import warm_documents, warming_works

    cache = PrefixCache("scratch", folder=folder, keep="kv")
    reranker = Reranker.from_pretrained(model, device="cpu", dtype="float32", prefix_cache=cache)
    works = warming_works(reranker)
    with actor_map(works, device="cpu", max_actors=actors) as map_blocks:
        started = time.perf_counter()
        report = warm_documents(reranker, documents, map_blocks, progress=False)
        took = time.perf_counter() - started
    if report.built != len(documents):
        raise RuntimeError(f"{report.built} of {len(documents)} prefixes were built")
    return took


def measure(count: int, rounds: int, model: Path) -> dict[str, Any]:
    """Seconds by actors, in turn, and how often the time of two fits into that of one.

    Args:
        count: documents.
        rounds: samples of each.
        model: the reranker.
    """
    samples: dict[int, list[float]] = {actors: [] for actors in COUNTS}
    with tempfile.TemporaryDirectory() as folder:
        documents = write_pictures(Path(folder), count)
        for number, actors in itertools.product(range(rounds), COUNTS):
            cache = Path(folder, f"cache-{number}-{actors}")
            samples[actors].append(seconds(documents, actors, cache, model))
    ratios = [one / two for one, two in zip(samples[1], samples[2], strict=True)]
    return {
        "seconds": {str(actors): spread(each) for actors, each in samples.items()},
        "speedup": spread(ratios),
    }


def speedup_table(results: Results) -> str:
    """How often the time of two actors fits into that of one."""
    header = ["to warm", "two actors against one", "goal"]
    result = results.get("ray_cpu")
    documents = f"{result['documents']:,} pictures" if result else "pictures"
    measured = times(result["speedup"]) if result else NOT_MEASURED
    notes = []
    if result:
        notes.append(
            f"{result['machine']['device']}: each actor a process of one core, {result['rounds']} "
            "runs of each in turn, the actors' start left out."
        )
    return table(header, [[documents, measured, f"at least {GOAL:g}x"]], *notes)


def main(
    documents: Annotated[int, typer.Option(min=1, help="Pictures to warm.")] = 4000,
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each.")] = 3,
    model: Annotated[Path, typer.Option(help="A reranker's folder.")] = (
        ROOT / "ragvl" / "assets" / "tiny-reranker"
    ),
    out: Annotated[Path | None, typer.Option(help="Where to; benchmarks/results.")] = None,
) -> None:
    """Measure and write ray_cpu.json."""
    from ragvl.distributed import connected

    if torch.get_num_threads() != 1:
        raise typer.BadParameter("set OMP_NUM_THREADS=1: an actor has as many cores as threads")
    with connected():
        result = measure(documents, rounds, model)
    result |= {"documents": documents, "rounds": rounds}
    print(f"wrote {save('ray_cpu', result, torch.device('cpu'), out)}")


if __name__ == "__main__":
    typer.run(main)
