"""The Ray Serve application: two replicas against one, and what its router costs.

    python benchmarks/bench_ray_serve.py             # about five minutes on two CPU cores
    python benchmarks/bench_ray_serve.py --quick     # a look; writes into build

On a local Ray of two cores, of which a replica gets one. A request's candidates are documents that
are known by their ids and warm, and every question is new. Throughput is measured with a model
whose work outweighs everything else, the router with the tiny one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import workload
from common import BUILD, save
from gpu import goal, print_goals
from load_generator import Load, run
from models import write_model
from rich.console import Console
from shapes import SHAPES
from tables import NOT_MEASURED, Results, goals, table, times

from ragvl import Document, Query
from ragvl.distributed.owners import Link, Owners
from ragvl.profiling.timing import spread
from ragvl.server.settings import TINY_RERANKER

MODEL, IMAGE_TOKENS = "half-internvl", 64
CANDIDATES = 20
CONNECTIONS = 6
PATIENT = {"X-Request-Timeout": "600"}
_QUESTION_WORDS = 8
_APP = "ragvl"


class Served:
    """An application that runs, and documents that it knows.

    Args:
        port: of Serve's proxy.
        documents: which it is given.
    """

    def __init__(self, port: int, documents: Sequence[Document]) -> None:
        self.port = port
        kept = [
            {
                "id": str(number),
                "image": base64.b64encode(Path(document.image).read_bytes()).decode(),
                "text": document.caption,
            }
            for number, document in enumerate(documents)
        ]
        self.ask("PUT", "/v1/documents", json.dumps({"documents": kept}))

    def ask(self, method: str, path: str, body: str) -> Any:
        """The JSON of an answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            body.encode(),
            {"Content-Type": "application/json", **PATIENT},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)


@contextmanager
def ray_of_two_cores() -> Iterator[int]:
    """A local Ray that ends with the block, and Serve's port on it."""
    # Its processes are as important as the one that measures them
    os.environ.update(
        RAY_worker_niceness="0", RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled"
    )
    import ray
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # whose sockets need short names
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield port
        finally:
            serve.shutdown()
            ray.shutdown()


@contextmanager
def served(
    port: int, model: str | Path, replicas: int, documents: Sequence[Document]
) -> Iterator[Served]:
    """The application on so many replicas of a core each, until the block ends."""
    from ray import serve

    from ragvl.distributed.app import build

    given = {"model": str(model), "replicas": replicas, "dtype": "float32"}
    serve.run(build(given), name=_APP)
    try:
        yield Served(port, documents)
    finally:
        serve.delete(_APP)


def bodies(questions: Sequence[str]) -> list[str]:
    """A request's body for each question."""
    documents = [{"id": str(number)} for number in range(CANDIDATES)]
    return [json.dumps({"query": one, "documents": documents}) for one in questions]


def throughput(app: Served, questions: Iterator[str], rounds: int, seconds: float) -> list[float]:
    """Pairs a second of each round, of several clients at a time."""
    samples = []
    for round_ in range(rounds + 1):
        asked = [next(questions) for _ in range(int(seconds * 100) + 100)]
        load = Load(app.port, "/rerank", bodies(asked), None, CONNECTIONS, seconds, headers=PATIENT)
        sent = run(load)
        if any(one.status != 200 for one in sent):
            raise RuntimeError(f"answers were {sorted({one.status for one in sent})}")
        if round_:  # the first one warms up
            took = max(one.moment + one.seconds for one in sent)
            samples.append(len(sent) * CANDIDATES / took)
    return samples


def overhead(app: Served, questions: Iterator[str], requests: int) -> dict[str, Any]:
    """One question after the other by HTTP, by a router in this process, and by its replica alone.

    Returns:
        `http`, `router` and `replica`, milliseconds as spreads; `router_added_p50` and
        `http_added_p50` are between medians.
    """
    from ray import serve

    from ragvl.distributed.routing import ReplicaLink

    handle = serve.get_deployment_handle("Owner", _APP)
    samples: dict[str, list[float]] = {"http": [], "router": [], "replica": []}
    with tempfile.TemporaryDirectory() as folder:
        documents = [
            Document(Path(one.image).read_bytes(), one.caption)
            for one in workload.write_documents(Path(folder), CANDIDATES)
        ]

    async def measure() -> None:
        link = ReplicaLink(handle)
        await link.describe()
        noting = _Noting(link)
        router = Owners(noting)
        for number in range(requests + 5):
            query = Query(next(questions))
            start = time.perf_counter()
            await router.score([(query, one) for one in documents])
            routed = time.perf_counter()
            again = noting.task_for(Query(next(questions)))
            before = time.perf_counter()
            await link.ask("score", again)
            asked = time.perf_counter()
            (body,) = bodies([next(questions)])
            app.ask("POST", "/rerank", body)
            answered = time.perf_counter()
            if number >= 5:  # the first ones warm up
                samples["router"].append((routed - start) * 1e3)
                samples["replica"].append((asked - before) * 1e3)
                samples["http"].append((answered - asked) * 1e3)
        router.close()

    asyncio.run(measure())
    middle = {name: statistics.median(values) for name, values in samples.items()}
    return {
        **{name: spread(values) for name, values in samples.items()},
        "router_added_p50": middle["router"] - middle["replica"],
        "http_added_p50": middle["http"] - middle["replica"],
    }


class _Noting:
    """A link that remembers its last task, to put the same to the replica without the router."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.owners, self.describe = link.owners, link.describe
        self._last: Any = None

    async def ask(self, method: Any, task: Any) -> Any:
        self._last = task
        return await self._link.ask(method, task)

    def task_for(self, query: Query) -> Any:
        """The last task, of another question."""
        return replace(self._last, queries=[query])


def measure(rounds: int, seconds: float, requests: int) -> dict[str, Any]:
    """All figures, and whether they are good enough."""
    questions = iter(workload.questions(60_000, _QUESTION_WORDS))
    with tempfile.TemporaryDirectory() as folder, ray_of_two_cores() as port:
        model = Path(folder) / "model"
        parameters = write_model(model, SHAPES[MODEL], image_tokens=IMAGE_TOKENS)
        documents = workload.write_documents(Path(folder), CANDIDATES)
        pairs = {}
        for replicas in (1, 2):
            with served(port, model, replicas, documents) as app:
                pairs[replicas] = throughput(app, questions, rounds, seconds)
        with served(port, TINY_RERANKER, 1, documents) as app:
            added = overhead(app, questions, requests)
    ratio = [two / one for one, two in zip(pairs[1], pairs[2], strict=True)]
    return {
        "model": {"name": MODEL, "parameters": parameters, "image_tokens": IMAGE_TOKENS},
        "candidates": CANDIDATES,
        "connections": CONNECTIONS,
        "pairs_per_second": {str(count): spread(values) for count, values in pairs.items()},
        "ratio": spread(ratio),
        "overhead_ms": added,
        "goals": [
            goal(
                "Ray Serve",
                "throughput of two replicas of a core each, by one's",
                statistics.median(ratio),
                at_least=1.6,
            ),
            goal(
                "Ray Serve",
                "milliseconds that the router adds to a call of its replica, at p50",
                added["router_added_p50"],
                at_most=5.0,
            ),
        ],
    }


def ray_serve_table(results: Results) -> str:
    """Of `docs/scale.md`."""
    result = results.get("ray_serve_cpu")
    header = ["figure", "measured"]
    names = (
        "two replicas of a core each, against one",
        "what the router adds to a call of its replica",
    )
    if result is None:
        return table(header, [[name, NOT_MEASURED] for name in names])
    added = result["overhead_ms"]
    share = added["router_added_p50"] / added["replica"]["median"]
    return "\n\n".join(
        [
            table(header, [[names[0], times(result["ratio"])], [names[1], f"{100 * share:.0f} %"]]),
            goals([result]),
        ]
    )


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Measure little, into build.")] = False,
) -> None:
    """Measure, print the goals and write benchmarks/results/ray_serve_cpu.json."""
    result = measure(*((2, 5.0, 20) if quick else (5, 12.0, 200)))
    print(json.dumps({key: result[key] for key in ("ratio", "overhead_ms")}, indent=2))
    print_goals(result["goals"], Console())
    folder = BUILD if quick else None
    print(f"wrote {save('ray_serve_cpu', result, torch.device('cpu'), folder)}")


if __name__ == "__main__":
    typer.run(main)
