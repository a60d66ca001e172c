"""What `ragvl serve` costs beside the reranker that it runs, and what it does under load.

    python benchmarks/bench_serve.py             # six minutes on two CPU cores
    python benchmarks/bench_serve.py --quick     # a look; writes into build

The server has the tiny model, and documents that it knows by id; the reranker that it is compared
with has the same model and documents in this process, and every query is new to both. One request
is one query and twenty candidates. Requests come from `load_generator.py`, by loopback.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import workload
from common import BUILD, ROOT, save
from gpu import goal, print_goals
from load_generator import Load, Sent, run
from rich.console import Console
from server_process import ServerProcess, serving
from tables import Results, goals, times

from ragvl import Document, Reranker
from ragvl.profiling.timing import spread

MODEL = ROOT / "ragvl" / "assets" / "tiny-reranker"
CANDIDATES = 20
CONNECTIONS = 16
DEADLINE = 5.0  # seconds that a request under overload may take
_QUESTION_WORDS = 8
_SEED = 0


class Workload:
    """Queries that have not been asked yet, of documents that the server knows by id."""

    def __init__(self, folder: Path, reranker: Reranker) -> None:
        self.reranker = reranker
        self.documents = workload.write_documents(folder, CANDIDATES)
        self._questions = iter(workload.questions(60_000, _QUESTION_WORDS))

    def questions(self, count: int) -> list[str]:
        """The next ones."""
        return list(itertools.islice(self._questions, count))

    def pairs(self, questions: Sequence[str]) -> list[tuple[str, Document]]:
        """Each question with each document."""
        return list(itertools.product(questions, self.documents))

    def bodies(self, questions: Sequence[str], candidates: int = CANDIDATES) -> list[str]:
        """A request's body for each question."""
        documents = [{"id": str(number)} for number in range(candidates)]
        return [json.dumps({"query": one, "documents": documents}) for one in questions]

    def put(self, server: ServerProcess) -> None:
        """Has the server know the documents."""
        documents = [
            {
                "id": str(number),
                "image": base64.b64encode(Path(document.image).read_bytes()).decode(),
                "text": document.caption,
            }
            for number, document in enumerate(self.documents)
        ]
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        _ask(connection, "PUT", "/v1/documents", json.dumps({"documents": documents}))
        connection.close()


def latency(server: ServerProcess, known: Workload, requests: int) -> dict[str, Any]:
    """One request after the other, in turn with the same call in this process.

    Returns:
        `in_process`, `http` and `added` (of each question), milliseconds as spreads, and
        `added_p50`: between the medians.

    Raises:
        RuntimeError: a score is not the same to the bit.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    times: dict[str, list[float]] = {"in_process": [], "http": []}
    warmup = 5
    for question in known.questions(warmup + requests):
        pairs = known.pairs([question])
        (body,) = known.bodies([question])
        start = time.perf_counter()
        scores = known.reranker.score(pairs, raw=True).tolist()
        between = time.perf_counter()
        answer = _ask(connection, "POST", "/v1/rerank", body)
        end = time.perf_counter()
        times["in_process"].append((between - start) * 1e3)
        times["http"].append((end - between) * 1e3)
        _compare(json.loads(answer), scores)
    connection.close()
    samples = {name: values[warmup:] for name, values in times.items()}
    samples["added"] = [h - p for h, p in zip(samples["http"], samples["in_process"], strict=True)]
    middle = {name: statistics.median(values) for name, values in samples.items()}
    return {
        **{name: spread(values) for name, values in samples.items()},
        "added_p50": middle["http"] - middle["in_process"],
    }


def throughput(
    server: ServerProcess, known: Workload, rounds: int, seconds: float
) -> dict[str, Any]:
    """Sixteen requests at a time, in turn with calls of as many pairs in this process.

    Returns:
        Pairs a second: `in_process`, `http`, and the `ratio` of a round, as spreads; and
        `requests`, the median of those that the server answered in a second.
    """
    samples: dict[str, list[float]] = {"in_process": [], "http": [], "ratio": []}
    for round_ in range(rounds + 1):
        start, pairs = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            asked = known.pairs(known.questions(CONNECTIONS))
            known.reranker.score(asked, progress=False)
            pairs += len(asked)
        in_process = pairs / (time.perf_counter() - start)
        bodies = known.bodies(known.questions(int(in_process / CANDIDATES * seconds * 2) + 100))
        sent = run(Load(server.port, "/v1/rerank", bodies, None, CONNECTIONS, seconds))
        _all_answered(sent)
        over_http = len(sent) * CANDIDATES / max(one.moment + one.seconds for one in sent)
        if round_:  # the first one warms up
            samples["in_process"].append(in_process)
            samples["http"].append(over_http)
            samples["ratio"].append(over_http / in_process)
    return {
        **{name: spread(values) for name, values in samples.items()},
        "requests": statistics.median(samples["http"]) / CANDIDATES,
    }


def tail(server: ServerProcess, known: Workload, rate: float, seconds: float) -> dict[str, Any]:
    """Requests at moments that do not depend on the answers, so many a second on average.

    Returns:
        Milliseconds from when a request was due: `p50`, `p99`; and `p99_over_p50`.
    """
    moments = list(_moments(rate, seconds))
    bodies = known.bodies(known.questions(len(moments)))
    sent = run(Load(server.port, "/v1/rerank", bodies, moments, 256, seconds))
    _all_answered(sent)
    percentiles = statistics.quantiles((one.seconds * 1e3 for one in sent), n=100)
    p50, p99 = percentiles[49], percentiles[98]
    return {"rate": rate, "requests": len(sent), "p50": p50, "p99": p99, "p99_over_p50": p99 / p50}


def overload(server: ServerProcess, known: Workload, peak: float, seconds: float) -> dict[str, Any]:
    """Ten times the requests that the server can answer.

    Args:
        server: where.
        known: what is asked.
        peak: requests answered in a second at best.
        seconds: how long.

    Returns:
        How many were sent and of each status (0: no answer); `late`, answers of any kind after
        their deadline; `goodput`, the requests answered within a second against `peak`; the 99th
        percentile of milliseconds to an answer and to a refusal.
    """
    moments = list(_moments(10 * peak, seconds))
    bodies = known.bodies(known.questions(len(moments)))
    headers = {"X-Request-Timeout": str(DEADLINE)}
    sent = run(Load(server.port, "/v1/rerank", bodies, moments, 1024, seconds, headers))
    answered = [one for one in sent if one.status == 200]
    refused = [one for one in sent if one.status == 429]
    in_time = [one for one in answered if one.moment + one.seconds <= seconds]
    return {
        "requests": len(sent),
        "statuses": dict(Counter(str(one.status) for one in sent)),
        "other": len(sent) - len(answered) - len(refused),
        "late": sum(one.seconds > DEADLINE for one in sent),
        "goodput": len(in_time) / seconds / peak,
        "without_retry_after": sum(not one.retry_after for one in refused),
        "ms_answered": _percentiles(answered),
        "ms_refused": _percentiles(refused),
    }


def endurance(server: ServerProcess, known: Workload, requests: int) -> dict[str, Any]:
    """Many small requests; what the server holds before and after, once it has seen a tenth."""
    (question,) = known.questions(1)
    send = lambda count: run(  # noqa: E731
        Load(
            server.port,
            "/v1/rerank",
            known.bodies([f"{question} {number}" for number in range(count)], 1),
            None,
            CONNECTIONS,
            600,
        )
    )
    _all_answered(send(requests // 10))
    before = server.held()
    _all_answered(send(requests))
    time.sleep(1)  # the server sees that the connections have ended
    after = server.held()
    return {
        "requests": requests,
        "before": asdict(before),
        "after": asdict(after),
        "memory_growth": after.kib / before.kib - 1,
        "threads_left": after.threads - before.threads,
        "files_left": after.files - before.files,
    }


def _moments(rate: float, seconds: float) -> Iterator[float]:
    """Those of a Poisson process."""
    draw, moment = random.Random(_SEED), 0.0
    while (moment := moment + draw.expovariate(rate)) < seconds:
        yield moment


def _percentiles(sent: Sequence[Sent]) -> dict[str, float] | None:
    """Milliseconds to the answers, if there are any."""
    if len(sent) < 2:
        return None
    percentiles = statistics.quantiles((one.seconds * 1e3 for one in sent), n=100)
    return {"p50": percentiles[49], "p99": percentiles[98]}


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: str) -> bytes:
    connection.request(method, path, body.encode(), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise RuntimeError(f"{method} {path}: {response.status} {answer[:500]!r}")
    return answer


def _compare(answer: dict[str, Any], scores: Sequence[float]) -> None:
    given = {result["index"]: result["raw_score"] for result in answer["results"]}
    if [given[number] for number in range(len(scores))] != list(scores):
        raise RuntimeError(f"scores differ: {given} over HTTP, {scores} in this process")


def _all_answered(sent: Sequence[Sent]) -> None:
    statuses = Counter(one.status for one in sent)
    if set(statuses) != {200}:
        raise RuntimeError(f"not every request was answered: {dict(statuses)}")


def _goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The promises of `ragvl serve`."""
    over, held = result["overload"], result["endurance"]
    return [
        goal(
            "one request at a time",
            "milliseconds that HTTP adds, between the medians",
            result["latency"]["added_p50"],
            at_most=3,
        ),
        goal(
            "16 requests at a time",
            "pairs a second against the reranker alone",
            result["throughput"]["ratio"]["median"],
            at_least=0.9,
        ),
        goal("80 % load", "p99 against p50", result["tail"]["p99_over_p50"], at_most=3),
        goal("ten times the load", "answers other than 200 and 429", over["other"], at_most=0),
        goal("ten times the load", "answers after their deadline", over["late"], at_most=0),
        goal("ten times the load", "answered against the peak", over["goodput"], at_least=0.85),
        goal(
            f"{held['requests']:,} requests",
            "growth of memory",
            held["memory_growth"],
            at_most=0.02,
        ),
        goal("the same", "threads more than before", held["threads_left"], at_most=0),
        goal("the same", "file handles more than before", held["files_left"], at_most=0),
    ]


def serve_table(results: Results) -> str:
    """What a server costs and does under load: its goals, and whether they are reached."""
    result = results["serve_cpu"]
    return "\n\n".join(
        [
            goals([result]),
            f"{result['machine']['device']}, the tiny model, {CANDIDATES} candidates a request, "
            f"known by id; 16 at a time: {times(result['throughput']['ratio'])} over "
            f"{result['rounds']} rounds.",
        ]
    )


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Of the comparison of throughput.")] = 5,
    quick: Annotated[bool, typer.Option(help="A tenth of each; writes into build.")] = False,
) -> None:
    """Measure and write benchmarks/results/serve_cpu.json."""
    share = 0.1 if quick else 1.0
    reranker = Reranker.from_pretrained(MODEL, device="cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = Workload(folder, reranker)
        reranker.warm(known.documents, progress=False)
        with serving(
            MODEL, "--cache", str(folder / "cache"), "--device", "cpu", log=folder / "log"
        ) as server:
            known.put(server)
            result: dict[str, Any] = {"candidates": CANDIDATES, "rounds": rounds}
            result["latency"] = latency(server, known, max(2, int(300 * share)))
            print(result["latency"])
            result["throughput"] = throughput(server, known, rounds, 10 * share)
            print(result["throughput"])
            peak = result["throughput"]["requests"]
            result["tail"] = tail(server, known, 0.8 * peak, 60 * share)
            print(result["tail"])
            result["overload"] = overload(server, known, peak, 20 * share)
            print(result["overload"])
            result["endurance"] = endurance(server, known, int(20_000 * share))
            print(result["endurance"])
    result["goals"] = _goals(result)
    print_goals(result["goals"], Console(width=160))
    print(f"wrote {save('serve_cpu', result, torch.device('cpu'), BUILD if quick else None)}")


if __name__ == "__main__":
    typer.run(main)
