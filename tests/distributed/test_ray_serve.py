"""The Ray Serve application on a local Ray of two cores: it answers as a server of one process."""

from __future__ import annotations

import base64
import importlib
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import yaml
from starlette.testclient import TestClient
from tiny_encoders import save_text_encoder

from ragvl import Document, Reranker, Retriever
from ragvl.reranker import THRESHOLDS_FILE, SavedThresholds
from ragvl.retriever import DualEncoder, FusedRetriever, TextEncoder, parse_fusion
from ragvl.server.app import create_app
from ragvl.server.run import build_services
from ragvl.server.settings import TINY_RERANKER, ServerSettings
from ragvl.server.stages import ASSETS, load_stages

pytest.importorskip("ray.serve")

TINY_RETRIEVER = ASSETS / "tiny-retriever"
EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve.yaml"
LIMITS: dict[str, Any] = {"device_cache": "64MiB", "max_documents": 40, "max_pairs": 200}
SECONDS = 120  # a bound for what Ray does on a busy machine, not a wait
REFUSALS = {"owner_lost", "deadline_exceeded", "overloaded"}
DIFFERING = ("id", "created", "timings")  # between any two answers


class App:
    """The application as its clients and its operator see it."""

    def __init__(self, serve: Any, url: str) -> None:
        self.client = httpx2.Client(base_url=url, timeout=SECONDS)
        self._owners = serve.get_deployment_handle("Owner", "ragvl")

    def owners(self) -> list[dict[str, Any]]:
        """Figures of the replicas that live."""
        found = self._owners.broadcast("figures").results(timeout_s=SECONDS)
        return [one for one in found if isinstance(one, dict)]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """Figures once so many replicas live."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            try:
                if len(found := self.owners()) == count:
                    return found
            except Exception:  # of one that has just ended
                pass
            time.sleep(0.5)
        raise TimeoutError


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index by two encoders, of documents with texts."""
    folder = tmp_path_factory.mktemp("index")
    retriever = _retriever(folder)
    retriever.add([Document(text=f"Mill {i} is high.", id=f"mill {i}") for i in range(9)])
    retriever.save(folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped reranker, with what was estimated for the index's encoders."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(TINY_RERANKER, folder, dirs_exist_ok=True)
    thresholds = SavedThresholds.of_model(TINY_RERANKER)
    assert thresholds is not None
    retriever = _retriever(folder)
    retriever.fusion = parse_fusion("0.4")
    replace(
        thresholds, encoder=retriever.name, fusion=retriever.fusion.name, retriever_weight=2.0
    ).save(folder / THRESHOLDS_FILE)
    return folder


def _retriever(folder: Path) -> FusedRetriever:
    texts = TextEncoder.from_pretrained(save_text_encoder(folder / "text"), device="cpu")
    pictures = DualEncoder.from_pretrained(TINY_RETRIEVER, device="cpu")
    return FusedRetriever(Retriever(pictures), Retriever(texts))


@pytest.fixture(scope="module")
def app(cluster: Any, model: Path, index: Path) -> Iterator[App]:
    """Two replicas of a core each, served on a free port."""
    from ray import serve

    from ragvl.distributed.app import build

    assert cluster.is_initialized()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        given = {"replicas": "2", "dtype": "float32", "health_seconds": "60", **LIMITS}
        given |= {"model": str(model), "index": str(index)}
        serve.run(build(given), name="ragvl")
        running = App(serve, f"http://127.0.0.1:{port}")
        with running.client:
            yield running
    finally:
        serve.shutdown()


@pytest.fixture(scope="module")
def alone(model: Path, index: Path) -> Iterator[TestClient]:
    """The same server in one process, with as many threads as a replica."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def load() -> Reranker:
        return Reranker.from_pretrained(model, device="cpu", dtype="float32", prefix_cache="64MiB")

    stages = load_stages(load, thresholds=model, index=index, device="cpu")
    services = build_services(stages, ServerSettings(**LIMITS), model=str(model))
    with TestClient(create_app(services)) as client:
        yield client
    torch.set_num_threads(threads)


def plain(answer: Any) -> Any:
    """An answer's status and body, without what differs between any two."""
    return answer.status_code, _alike(answer.json())


def _alike(value: Any, depth: int = 0) -> Any:
    if isinstance(value, list):
        return [_alike(one, depth) for one in value]
    if isinstance(value, dict):
        differing = DIFFERING if depth == 0 else DIFFERING[1:]  # an id inside is a document's
        return {key: _alike(one, depth + 1) for key, one in value.items() if key not in differing}
    return value


@pytest.mark.slow
def test_answers_are_those_of_one_process(
    app: App, alone: TestClient, pictures: list[Path]
) -> None:
    """Scores to the bit, tokens, and refusals in the same words."""
    urls = [
        "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for path in pictures
    ]
    texts = [f"Barn {i} is red." for i in range(12)]
    mixed = [{"image": url, "text": f"Barn {i}"} for i, url in enumerate(urls)]
    broken = "data:image/png;base64," + base64.b64encode(pictures[0].read_bytes()[:60]).decode()
    red = {"query": "Which barn is red?"}
    posted: list[tuple[str, dict[str, Any]]] = [
        ("/rerank", {**red, "documents": texts}),
        ("/rerank", {**red, "documents": texts[::-1] + texts[:3], "top_n": 4}),
        ("/v1/rerank", {**red, "documents": mixed + texts[:2], "return_documents": True}),
        ("/rerank", {**red, "texts": texts[:3], "raw_scores": True}),
        ("/score", {"text_1": "Which is white?", "text_2": texts}),
        ("/score", {"queries": [f"Which is {i}?" for i in range(4)], "documents": texts[:4]}),
        ("/v1/ranking", {"query": {"text": "Which?"}, "passages": [{"text": t} for t in texts]}),
        ("/v1/search", {**red, "documents": mixed}),
        ("/rerank", {**red, "documents": [{"id": "barn"}, {"id": "mill"}, texts[0]]}),
        ("/v1/search", red),
        ("/v1/answer", {**red, "documents": texts}),
        ("/rerank", {**red, "documents": [{"id": "unknown"}]}),
        ("/rerank", {**red, "documents": [texts[0], {"image": broken}]}),
        ("/rerank", {**red, "documents": [texts[0], "long " * 20_000]}),
        ("/rerank", {**red, "documents": []}),
        ("/rerank", {**red, "documents": texts * 4}),
        ("/rerank", {**red, "documents": texts, "model": "another"}),
        ("/rerank", {**red, "documents": texts, "threshold": "unknown"}),
        ("/rerank", {**red, "documents": texts, "temperature": 1}),
    ]
    kept = {
        "documents": [{"id": "barn", "image": urls[0]}, {"id": "mill", "text": "A white mill."}]
    }
    for client in (app.client, alone):
        assert client.put("/v1/documents", json=kept).status_code == 200
    for path, body in posted:
        ours, expected = app.client.post(path, json=body), alone.post(path, json=body)
        assert plain(ours) == plain(expected), path
    for path in ("/v1/documents", "/v1/documents/barn", "/v1/models", "/health", "/ready", "/no"):
        assert plain(app.client.get(path)) == plain(alone.get(path)), path
    picture = "/v1/documents/barn/picture"
    assert app.client.get(picture).content == alone.get(picture).content
    assert app.client.post("/rerank", content=b"{").status_code == 415
    for client in (app.client, alone):
        assert client.delete("/v1/documents/mill").status_code == 200
    for header in ("0", "1e9", "soon"):
        ours = app.client.post("/rerank", json=posted[0][1], headers={"X-Request-Timeout": header})
        assert ours.status_code == 422


@pytest.mark.slow
def test_what_was_estimated_for_the_index_is_taken(app: App, alone: TestClient) -> None:
    found = app.client.post("/v1/search", json={"query": "Which mill is high?"})
    assert found.json()["retriever_weight"] == 2, "estimated for a fusion that is not the index's"
    assert plain(found) == plain(alone.post("/v1/search", json={"query": "Which mill is high?"}))


@pytest.mark.slow
def test_each_document_is_built_by_one_replica(app: App) -> None:
    before = app.owners()
    documents = [f"Tower {i} is high." for i in range(30)]
    for question in ("Which is high?", "Which is low?", "Which is high?"):
        answer = app.client.post("/rerank", json={"query": question, "documents": documents})
        assert answer.status_code == 200
    after = app.owners()
    before_of = {one["process"]: one for one in before}
    for figure in ("built", "documents"):
        more = [one[figure] - before_of[one["process"]][figure] for one in after]
        assert sum(more) == len(documents) and all(more), figure


@pytest.mark.slow
def test_an_owner_that_never_answers_is_named(app: App) -> None:
    documents = [f"Lake {i} is deep." for i in range(20)]
    stopped = app.wait_for(2)[0]["process"]
    os.kill(stopped, signal.SIGSTOP)
    try:
        answer = app.client.post(
            "/rerank",
            json={"query": "Which is deep?", "documents": documents},
            headers={"X-Request-Timeout": "5"},
        )
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert answer.status_code == 504, answer.text
    assert "owner " in answer.json()["error"]["message"]
    assert "did not answer" in answer.json()["error"]["message"]


@pytest.mark.slow
def test_a_killed_replica_costs_no_request_its_score(app: App, alone: TestClient) -> None:
    _kill_under_load(app, alone, kills=2, pause=0.0)


KILLS = int(os.environ.get("RAGVL_TEST_KILLS", "0"))


@pytest.mark.slow
@pytest.mark.skipif(not KILLS, reason="takes minutes: RAGVL_TEST_KILLS=5 kills five replicas")
def test_replicas_killed_every_20_seconds(app: App, alone: TestClient) -> None:
    _kill_under_load(app, alone, kills=KILLS, pause=20.0)


def _kill_under_load(app: App, alone: TestClient, *, kills: int, pause: float) -> None:
    """Kills one replica after the other while three clients ask; each answer is whole, or named."""
    documents = [f"Gate {i} is open." for i in range(12)]
    bodies = [
        {"query": f"Which gate is {i}?", "documents": documents[i % 4 :], "top_n": 3}
        for i in range(8)
    ]
    expected = [plain_scores(alone.post("/rerank", json=body)) for body in bodies]
    over = threading.Event()
    answers: list[tuple[int, Any]] = []

    def ask(first: int) -> None:
        number = first
        while not over.wait(0.4):
            answers.append((number % 8, app.client.post("/rerank", json=bodies[number % 8])))
            number += 1

    with ThreadPoolExecutor(3) as clients:
        asking = [clients.submit(ask, first) for first in range(3)]
        try:
            for number in range(kills):
                time.sleep(pause)
                living = app.wait_for(2)
                _wait_for(answers, 6)
                os.kill(living[number % 2]["process"], signal.SIGKILL)
                _wait_for(answers, 12)
        finally:
            over.set()
        for one in asking:
            one.result(timeout=SECONDS)
    answered = [(number, one) for number, one in answers if one.status_code == 200]
    refused = [one for _, one in answers if one.status_code != 200]
    assert all(plain_scores(one) == expected[number] for number, one in answered)
    assert all(one.json()["error"]["type"] in REFUSALS for one in refused), refused[0].text
    assert len(answered) > len(refused)


def plain_scores(answer: Any) -> list[tuple[int, float]]:
    return [(one["index"], one["raw_score"]) for one in answer.json()["results"]]


def _wait_for(answers: list[Any], more: int) -> None:
    until, enough = time.monotonic() + SECONDS, len(answers) + more
    while len(answers) < enough:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_example_is_of_rays_schema_and_builds() -> None:
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

    from ragvl.distributed.app import AppSettings, build

    (example,) = ServeDeploySchema(**yaml.safe_load(EXAMPLE.read_text())).applications
    assert example.import_path == f"{build.__module__}:{build.__name__}"
    settings = AppSettings(**example.args)
    assert (settings.replicas, settings.cpus) == (2, 1)
    assert isinstance(build(example.args), serve.Application)


def test_paths_are_those_of_the_folder_where_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragvl.distributed.app import AppSettings

    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = AppSettings(model="model", cache="cache", index="http://milvus:19530#photos")
    assert (settings.model, settings.cache) == (str(tmp_path / "model"), tmp_path / "cache")
    assert settings.index == "http://milvus:19530#photos"
    assert AppSettings(model="of/a-hub").model == "of/a-hub"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replicas": "0"}, "replicas"),
        ({"replica": "2"}, "replica"),
        ({"port": "80"}, "Ray Serve listens"),
        ({"fusion": "0.4", "retriever_weight": "1"}, "fusion, retriever_weight: of no use without"),
        ({"index": "an index", "fusion": "2"}, "fusion"),
        ({"device_cache": "64MiB", "held_documents": "much"}, "held_documents"),
    ],
)
def test_arguments_that_are_none_are_refused(given: dict[str, str], said: str) -> None:
    from ragvl.distributed.app import build

    with pytest.raises(ValueError, match=said):
        build(given)


@pytest.mark.slow
def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ragvl.distributed.app", raising=False)
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "ragvl[ray]"')):
        importlib.import_module("ragvl.distributed.app")
