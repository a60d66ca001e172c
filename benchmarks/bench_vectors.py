"""Vectors in FAISS and in Milvus side by side, and more of them than memory has on disk.

python benchmarks/bench_vectors.py compared     # a quarter of an hour on two quiet CPU cores
python benchmarks/bench_vectors.py disk         # as long, and 10 GB of disk; no times, so anywhere
python benchmarks/bench_vectors.py disk --vectors 50000 --out build   # a quick look

Vectors are drawn around centres, as embeddings lie, from a seed for each block, so that no process
ever holds all of them. Those on disk are built and searched by processes with a limit on memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import save
from tables import NOT_MEASURED, Results, mib, table

from ragvl.data.document import Document
from ragvl.profiling.timing import spread
from ragvl.retriever import DiskStore, FaissStore, MilvusStore, VectorIndex, VectorStore

DIM = 512
NUM_CENTRES = 1000
NUM_QUERIES = 100
K = 10
BLOCK = 25_000  # vectors that are in memory at once: 50 MiB
_DRAWN_AT_ONCE = 5_000
LIMIT_GIB = 1
# What a store asks of the encoder that makes its vectors
ENCODER: Any = SimpleNamespace(dim=DIM, fingerprint="random", reads_pictures=False, origin={})

ARMS = {
    "FAISS exact": "exact, in memory",
    "FAISS hnsw": "a graph, in memory",
    "FAISS ivfpq": "64 bytes a vector, in memory",
    "FAISS on disk": "64 bytes a vector, memory-mapped; exact scores of candidates",
    "Milvus Lite exact": "exact",
    "Milvus Lite hnsw": "a graph",
}


def drawn(seed: int, count: int) -> np.ndarray:
    """Unit vectors (count, DIM) around the centres that all blocks share."""
    centres = np.random.default_rng(0).standard_normal((NUM_CENTRES, DIM), np.float32)
    rng = np.random.default_rng([1, seed])
    vectors = np.empty((count, DIM), np.float32)
    for start in range(0, count, _DRAWN_AT_ONCE):
        some = vectors[start : start + _DRAWN_AT_ONCE]
        some[:] = centres[rng.integers(NUM_CENTRES, size=len(some))]
        some += rng.standard_normal(some.shape, np.float32)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    return vectors


def queries() -> np.ndarray:
    """Vectors of their own from the same centres."""
    return drawn(2**31, NUM_QUERIES)


def blocks(count: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first, vectors), block after block."""
    for start in range(0, count, BLOCK):
        yield start, drawn(start // BLOCK, min(BLOCK, count - start))


def nearest(count: int) -> np.ndarray:
    """Numbers (NUM_QUERIES, K) of the true best, found block after block."""
    asked = queries()
    scores = np.full((NUM_QUERIES, 0), -np.inf, np.float32)
    numbers = np.empty((NUM_QUERIES, 0), np.int64)
    for start, vectors in blocks(count):
        found = asked @ vectors.T
        scores = np.concatenate([scores, found], axis=1)
        new = np.broadcast_to(np.arange(start, start + len(vectors)), found.shape)
        numbers = np.concatenate([numbers, new], axis=1)
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        scores, numbers = (np.take_along_axis(x, kept, axis=1) for x in (scores, numbers))
    return numbers


def fill(store: VectorStore, count: int) -> None:
    """Adds vectors, block after block."""
    for start, vectors in blocks(count):
        texts = {f"v{start + i}": Document(text=f"v{start + i}") for i in range(len(vectors))}
        store.add(texts, vectors)


def recall(store: VectorStore, truth: np.ndarray) -> float:
    """The share of the true best among as many results."""
    hits = 0
    for query, row in zip(queries(), truth, strict=True):
        (found,) = store.search(query[None], K)
        hits += len({id for id, _ in found} & {f"v{number}" for number in row.tolist()})
    return hits / truth.size


def searched(store: VectorStore, truth: np.ndarray, rounds: int) -> dict[str, Any]:
    """Recall of the true best among as many results, and milliseconds a query, one at a time."""
    asked, share, samples = queries(), recall(store, truth), []
    for _ in range(rounds):
        began = time.perf_counter()
        for query in asked:
            store.search(query[None], K)
        samples.append((time.perf_counter() - began) / len(asked) * 1e3)
    return {"recall": share, "ms": spread(samples)}


def makers(folder: Path) -> dict[str, Callable[[int], VectorStore]]:
    """What makes each arm's store, for so many vectors."""
    database = folder / "vectors.db"
    return {
        "FAISS exact": lambda _: FaissStore(VectorIndex(DIM, kind="exact")),
        "FAISS hnsw": lambda _: FaissStore(VectorIndex(DIM, kind="hnsw")),
        "FAISS ivfpq": lambda _: FaissStore(VectorIndex(DIM, kind="ivfpq")),
        "FAISS on disk": lambda count: DiskStore.create(folder / "disk", ENCODER, expected=count),
        "Milvus Lite exact": lambda _: MilvusStore.create(f"{database}#exact", ENCODER),
        "Milvus Lite hnsw": lambda _: MilvusStore.create(f"{database}#h", ENCODER, kind="hnsw"),
    }


def compared(count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Every arm with the same vectors: what it finds, and how long it takes."""
    truth = nearest(count)
    arms = {}
    for name, make in makers(folder).items():
        store = make(count)
        began = time.perf_counter()
        fill(store, count)
        arms[name] = {"fill_s": time.perf_counter() - began, **searched(store, truth, rounds)}
        print(f"{name}: {arms[name]}")
    return {"vectors": count, "arms": arms}


def on_disk(count: int, folder: Path) -> dict[str, Any]:
    """Builds and searches an index on disk, each in a process that may have `LIMIT_GIB` of memory.

    Raises:
        subprocess.CalledProcessError: a process needed more, or failed.
    """
    truth = folder / "truth.npy"
    np.save(truth, nearest(count))
    told = {}
    for what in ("build", "search"):
        arguments = [what, str(folder / "large"), str(count), str(truth)]
        command = [sys.executable, __file__, "limited", json.dumps(arguments)]
        # A thread's own heap would count as memory before it is used
        few = {**os.environ, "MALLOC_ARENA_MAX": "2"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=few)
        told[what] = json.loads(done.stdout.splitlines()[-1])
        print(f"{what}: {told[what]}")
    size = sum(path.stat().st_size for path in (folder / "large").rglob("*") if path.is_file())
    return {"vectors": count, "limit_gib": LIMIT_GIB, "bytes": size, **told}


def limited(arguments: list[str]) -> dict[str, Any]:
    """What a process with a limit on its memory does: builds, or searches."""
    limit = LIMIT_GIB << 30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    what, folder, count, truth = arguments
    told: dict[str, Any] = {}
    if what == "build":
        fill(DiskStore.create(folder, ENCODER, expected=int(count)), int(count))
    else:
        told["recall"] = recall(DiskStore.open(folder), np.load(truth))
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if peak_kib > limit >> 10:
        raise MemoryError(f"{peak_kib >> 10} MiB were resident: more than {LIMIT_GIB} GiB")
    return {**told, "peak_mib": peak_kib / 2**10}


def compared_table(results: Results) -> str:
    """Recall and latency of every arm."""
    header = ["index", "how", f"recall of the best {K}", "time of a query"]
    result = results.get("vectors_cpu")
    arms: Mapping[str, Any] = result["arms"] if result else {}
    rows = []
    for name, how in ARMS.items():
        figures = [NOT_MEASURED] * 2
        if name in arms:
            ratio = arms[name]["ms"]["median"] / arms["FAISS exact"]["ms"]["median"]
            figures = [f"{arms[name]['recall']:.3f}", f"{ratio:.2f}x"]
        rows.append([name, how, *figures])
    notes = []
    if result:
        notes.append(
            f"{result['machine']['device']}: {result['vectors']:,} vectors of {DIM} "
            f"numbers around {NUM_CENTRES:,} centres, {NUM_QUERIES} queries one at a time; times "
            "against FAISS's exact search, in one run."
        )
    return table(header, rows, *notes)


def disk_table(results: Results) -> str:
    """An index on disk that was built and searched within a limit on memory."""
    header = [
        "vectors",
        "on disk",
        "memory to build",
        "memory to search",
        f"recall of the best {K}",
    ]
    disk = results.get("vectors_disk_cpu")
    if disk is None:
        return table(header, [["2,000,000", *[NOT_MEASURED] * 4]])
    row = [
        f"{disk['vectors']:,}",
        f"{disk['bytes'] / 2**30:.1f} GiB",
        mib(disk["build"]["peak_mib"]),
        mib(disk["search"]["peak_mib"]),
        f"{disk['search']['recall']:.3f}",
    ]
    note = f"Limit: {disk['limit_gib']} GiB, Python and its libraries included."
    return table(header, [row], note)


Scratch = Annotated[Path | None, typer.Option("--folder", help="For files: 3 KB a vector.")]
Out = Annotated[Path | None, typer.Option(help="Where the JSON goes; results/.")]
app = typer.Typer(no_args_is_help=True)


@app.command("compared")
def measure_compared(
    vectors: Annotated[int, typer.Option(help="Of every arm.")] = 50_000,
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each time.")] = 5,
    folder: Scratch = None,
    out: Out = None,
) -> None:
    """Every arm's recall and latency; writes benchmarks/results/vectors_cpu.json."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        result = compared(vectors, rounds, Path(scratch))
    print(f"wrote {save('vectors_cpu', result, torch.device('cpu'), out)}")


@app.command("disk")
def measure_disk(
    vectors: Annotated[int, typer.Option(help="On disk.")] = 2_000_000,
    folder: Scratch = None,
    out: Out = None,
) -> None:
    """More vectors than memory has; writes benchmarks/results/vectors_disk_cpu.json."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        result = on_disk(vectors, Path(scratch))
    print(f"wrote {save('vectors_disk_cpu', result, torch.device('cpu'), out)}")


@app.command("limited", hidden=True)
def run_limited(arguments: str) -> None:
    """One process of `disk`."""
    print(json.dumps(limited(json.loads(arguments))))


if __name__ == "__main__":
    app()
