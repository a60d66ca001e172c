from __future__ import annotations

import asyncio
import base64
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
from client.scripted import HANG_UP, SILENCE, Script, ScriptedServer
from PIL import Image

from ragvl import AsyncClient, Client, Document, Query
from ragvl.client import ApiError
from ragvl.data.images import DocumentError, load_image

Ask = Callable[..., Any]
SMALL = base64.b64decode(  # 3x2
    "iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAIAAAASFvFNAAAAC0lEQVR4nGNgwAQAABQAAX3+Hu4AAAAASUVORK5CYII="
)
RESULTS = [
    {"index": 1, "relevance_score": 0.75, "raw_score": 1.1, "kept": True, "id": "b"},
    {"index": 0, "relevance_score": 0.25, "raw_score": -1.1, "kept": False},
]
RERANKED = {
    "model": "tiny",
    "usage": {
        "prompt_tokens": 12,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 7},
    },
    "timings": {"queue": 0.5, "score": 2.0},
    "results": RESULTS,
    "of a later version": 1,
}
OK = (200, {}, RERANKED)


def refusal(status: int, **headers: str) -> tuple[int, dict[str, str], Any]:
    error = {"message": "no room", "type": "overloaded", "param": "documents[1]", "code": status}
    return status, {"X-Request-Id": "r-1", **headers}, {"error": error, "detail": "no room"}


@pytest.fixture
def script() -> Iterator[Script]:
    with ScriptedServer() as script:
        yield script


def _ask(client: str, script: Script, method: str, *arguments: Any, **options: Any) -> Any:
    settings = {name: options.pop(name) for name in ("timeout", "api_key") if name in options}
    if client == "blocking":
        with Client(script.url, **settings) as asked:
            return getattr(asked, method)(*arguments, **options)

    async def run() -> Any:
        async with AsyncClient(script.url, **settings) as asked:
            return await getattr(asked, method)(*arguments, **options)

    return asyncio.run(run())


@pytest.fixture(params=["blocking", "asynchronous"])
def ask(request: pytest.FixtureRequest, script: Script) -> Ask:
    """`ask(method, ...)` of a client of the scripted server."""
    return lambda *arguments, **options: _ask(request.param, script, *arguments, **options)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.jpg"
    Image.effect_noise((8, 6), 80).convert("RGB").save(path)
    return path


def data_of(uri: str) -> bytes:
    head, _, data = uri.partition(",")
    assert head == "data:application/octet-stream;base64"
    return base64.b64decode(data, validate=True)


def test_reranks(ask: Ask, script: Script) -> None:
    script.answers.append(OK)
    given = [Document(text="one"), {"id": "b"}]
    ranking = ask("rerank", "which?", given, top_k=2, threshold=0.5)
    assert [(r.index, r.score, r.raw, r.kept, r.id) for r in ranking.results] == [
        (1, 0.75, 1.1, True, "b"),
        (0, 0.25, -1.1, False, None),
    ]
    assert [r.document for r in ranking.results] == given[::-1]
    assert (ranking.model, ranking.usage.prompt_tokens, ranking.usage.cached_tokens) == (
        "tiny",
        12,
        7,
    )
    assert ranking.timings == {"queue": 0.5, "score": 2.0}
    (seen,) = script.seen
    assert (seen.method, seen.path, seen.headers["Content-Type"]) == (
        "POST",
        "/v1/rerank",
        "application/json",
    )
    assert seen.json == {
        "query": "which?",
        "documents": [{"text": "one"}, {"id": "b"}],
        "top_n": 2,
        "threshold": 0.5,
    }


def test_scores_pairs_in_order(ask: Ask, script: Script) -> None:
    data = [{"index": i, "score": score} for i, score in enumerate([0.25, 0.75])]
    script.answers.append((200, {}, {**RERANKED, "data": data}))
    pairs = [(Query("p", instruction="judge"), Document(text="one")), ("q", {"id": "b"})]
    with pytest.raises(ValueError, match="same instruction"):
        ask("score", pairs)
    assert ask("score", pairs, instruction="other").scores == (0.25, 0.75)
    assert script.seen[0].json == {
        "queries": ["p", "q"],
        "documents": [{"text": "one"}, {"id": "b"}],
        "instruction": "other",
    }


def test_a_file_travels_as_it_is(ask: Ask, script: Script, picture: Path) -> None:
    script.answers += [OK, OK, OK]
    for given in (picture, picture.read_bytes(), Document(picture)):
        ask("rerank", "q", [given, given])
    for seen in script.seen:
        for document in seen.json["documents"]:
            assert document.keys() == {"image"}
            assert data_of(document["image"]) == picture.read_bytes()


@pytest.mark.parametrize(
    "pixels",
    [
        np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3),
        np.linspace(0, 1, 20).reshape(5, 4),
        Image.effect_noise((4, 5), 80),
        Image.fromarray(np.arange(80, dtype=np.uint8).reshape(5, 4, 4), "RGBA"),
    ],
    ids=["array", "grey floats", "grey", "transparent"],
)
def test_pixels_travel_without_loss(script: Script, pixels: Any) -> None:
    script.answers.append(OK)
    with Client(script.url) as client:
        client.rerank("q", [pixels, pixels])
    sent = data_of(script.seen[0].json["documents"][0]["image"])
    assert load_image(sent).tobytes() == load_image(pixels).tobytes()


def test_every_kind_of_document_and_query(script: Script, picture: Path) -> None:
    script.answers.append(OK)
    uri = f"data:application/octet-stream;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    part = {"type": "image_url", "image_url": {"url": uri}}
    documents = [
        Document(picture, "a caption", "x"),
        Document(parts=["before", picture, "after"], id="y"),
    ]
    with Client(script.url) as client:
        query = Query("which?", picture, instruction="judge")
        client.rerank(query, documents)
    assert script.seen[0].json == {
        "query": {"content": [part, {"type": "text", "text": "which?"}]},
        "documents": [
            {"id": "x", "image": uri, "text": "a caption"},
            {
                "id": "y",
                "content": [
                    {"type": "text", "text": "before"},
                    part,
                    {"type": "text", "text": "after"},
                ],
            },
        ],
        "instruction": "judge",
    }


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        (["no/such/file.png"], DocumentError, "no/such/file.png.*no such file"),
        ([b"no picture"], DocumentError, "10 bytes is not a picture"),
        ([Document(b"\x89PNG\r\n\x1a\n", id="x")], DocumentError, "document 'x'"),
        ([Document(SMALL, max_pixels=5)], DocumentError, "3x2, above the limit of 5 pixels"),
        ([Document(np.zeros((2, 3)), max_pixels=5)], DocumentError, "3x2"),
        ([7], TypeError, "not int"),
        ([{"id": 3}], TypeError, "the server knows"),
        ([{"id": "a", "text": "b"}], TypeError, "the server knows"),
        ("a.png", TypeError, "must be a list"),
        ({"id": "a"}, TypeError, "must be a list"),
    ],
)
def test_what_cannot_be_sent_is_named_before(
    ask: Ask, script: Script, documents: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask("rerank", "q", documents)
    assert not script.seen


@pytest.mark.parametrize("status", [429, 503])
def test_asks_again_when_there_is_room(ask: Ask, script: Script, status: int) -> None:
    script.answers += [refusal(status, **{"Retry-After": "0"}), refusal(status), OK]
    assert ask("rerank", "q", [{"id": "a"}, {"id": "b"}]).model == "tiny"
    assert len({seen.body for seen in script.seen}) == 1
    left = [float(seen.headers["X-Request-Timeout"]) for seen in script.seen]
    assert 60 >= left[0] > left[1] > left[2] > 0


def test_does_not_wait_past_the_timeout(ask: Ask, script: Script) -> None:
    script.answers.append(refusal(429, **{"Retry-After": "3600"}))
    with pytest.raises(ApiError) as refused:
        ask("rerank", "q", [{"id": "a"}])
    error = refused.value
    assert (error.status, error.kind, error.message) == (429, "overloaded", "no room")
    assert (error.param, error.request_id, error.retry_after) == ("documents[1]", "r-1", 3600)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))
    assert len(script.seen) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 507])
def test_a_refusal_is_final(ask: Ask, script: Script, status: int) -> None:
    script.answers.append(refusal(status, **{"Retry-After": "soon"}))
    with pytest.raises(ApiError, match=f"^{status}: no room$") as refused:
        ask("rerank", "q", [{"id": "a"}])
    assert refused.value.status == status
    assert refused.value.retry_after is None


def test_what_another_program_answers(ask: Ask, script: Script) -> None:
    script.answers.append((502, {}, "<html>Bad Gateway"))
    with pytest.raises(ApiError, match=r"^502: <html>Bad Gateway$") as refused:
        ask("health")
    assert refused.value.kind is None


@pytest.mark.parametrize(
    "answer",
    [
        "<html>",
        [],
        {**RERANKED, "results": [{"index": 0}]},
        {**RERANKED, "results": [{**RESULTS[0], "index": 2}]},
        {**RERANKED, "results": [{**RESULTS[0], "index": -1}]},
        {**RERANKED, "results": [{**RESULTS[0], "relevance_score": "high"}]},
    ],
    ids=str,
)
def test_an_answer_that_is_none(ask: Ask, script: Script, answer: Any) -> None:
    script.answers.append((200, {}, answer))
    with pytest.raises(ApiError, match="not the answer of a ragvl server"):
        ask("rerank", "q", [{"id": "a"}, {"id": "b"}])


def test_too_few_scores(ask: Ask, script: Script) -> None:
    script.answers.append((200, {}, {**RERANKED, "data": [{"index": 0, "score": 0.5}]}))
    with pytest.raises(ApiError, match="1 scores of 2 pairs"):
        ask("score", [("q", {"id": "a"}), ("q", {"id": "b"})])


FOUND = [
    {**RESULTS[0], "retrieval_score": 0.5, "document": {"text": "a caption"}},
    {**RESULTS[1], "retrieval_score": 0.75},
]
ANSWERED = {**RERANKED, "results": FOUND, "threshold": 0.4}


def test_searches_the_index(ask: Ask, script: Script) -> None:
    script.answers.append((200, {}, ANSWERED))
    found = ask("search", "which?", num_candidates=7, top_k=2, threshold="natural")
    assert [(r.index, r.retrieval_score, r.text, r.document) for r in found.results] == [
        (1, 0.5, "a caption", None),
        (0, 0.75, None, None),
    ]
    assert found.threshold == 0.4
    assert (script.seen[0].path, script.seen[0].json) == (
        "/v1/search",
        {
            "query": "which?",
            "num_candidates": 7,
            "top_n": 2,
            "threshold": "natural",
            "return_documents": True,
        },
    )


def test_answers_from_documents(ask: Ask, script: Script) -> None:
    given = [Document(text="one"), {"id": "b"}]
    generated = {**ANSWERED, "answer": "red", "grounded": True, "evidence": [1]}
    script.answers.append((200, {}, generated))
    answer = ask("answer", "which?", documents=given, top_k=1, max_new_tokens=8)
    assert (answer.text, answer.grounded) == ("red", True)
    assert answer.evidence == answer.results[:1]
    assert answer.evidence[0].document is given[1]
    assert script.seen[0].path == "/v1/answer"
    assert script.seen[0].json == {
        "query": "which?",
        "documents": [{"text": "one"}, {"id": "b"}],
        "return_documents": True,
        "top_k": 1,
        "max_tokens": 8,
    }
    script.answers.append((200, {}, {**generated, "evidence": [2]}))
    with pytest.raises(ApiError, match="not the answer"):
        ask("answer", "which?")


def test_puts_documents(ask: Ask, script: Script) -> None:
    data = [{"id": "a", "prefix": "built"}, {"id": "b", "prefix": "known"}]
    script.answers.append((200, {}, {**RERANKED, "data": data, "built": 1}))
    kept = ask("put_documents", [Document(text="one", id="a"), Document(text="two", id="b")])
    assert [(d.id, d.prefix) for d in kept.documents] == [("a", "built"), ("b", "known")]
    assert kept.built == 1
    (seen,) = script.seen
    assert (seen.method, seen.path) == ("PUT", "/v1/documents")
    assert seen.json == {"documents": [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}]}


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        (
            [Document(text="one", id="a"), Document(text="two")],
            ValueError,
            r"documents\[1\] has no",
        ),
        (["a.png"], TypeError, r"documents\[0\] must be a Document"),
        (Document(text="one", id="a"), TypeError, "must be a list"),
    ],
)
def test_documents_to_keep_have_ids(
    ask: Ask, script: Script, documents: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask("put_documents", documents)
    assert not script.seen


def test_lists_documents(ask: Ask, script: Script) -> None:
    known = {"id": "ü", "source": "index", "num_pictures": 1, "text": "a caption"}
    script.answers.append((200, {}, {"model": "tiny", "data": [known], "has_more": True}))
    listed = ask("list_documents", after="a b&c", limit=1)
    assert listed.has_more
    (document,) = listed.documents
    assert (document.id, document.source, document.num_pictures, document.text) == (
        "ü",
        "index",
        1,
        "a caption",
    )
    url = urlsplit(script.seen[0].path)
    assert (url.path, parse_qs(url.query)) == (
        "/v1/documents",
        {"after": ["a b&c"], "limit": ["1"]},
    )


@pytest.mark.parametrize("id", ["a", "a b/ü?#%2F", "/x", "x//", "...", "a/../b"])
def test_an_id_in_a_path(script: Script, id: str) -> None:
    script.answers += [(200, {}, {"id": id, "deleted": True}), refusal(404), refusal(409)]
    with Client(script.url) as client:
        assert client.delete_document(id)
        assert not client.delete_document(id)
        with pytest.raises(ApiError, match="409"):
            client.delete_document(id)
    for seen in script.seen:
        assert seen.method == "DELETE"
        assert seen.path.startswith("/v1/documents/")
        assert unquote(seen.path.removeprefix("/v1/documents/")) == id


@pytest.mark.parametrize("id", ["", ".", ".."])
def test_no_id(ask: Ask, script: Script, id: str) -> None:
    for method in ("get_document", "delete_document"):
        with pytest.raises(ValueError, match="no document's id"):
            ask(method, id)
    assert not script.seen


def test_no_answer_in_time(ask: Ask, script: Script) -> None:
    script.answers.append(SILENCE)
    with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
        ask("health", timeout=0.1)


def test_a_server_that_gives_up(ask: Ask, script: Script) -> None:
    script.answers.append(refusal(504))
    with pytest.raises(TimeoutError, match="no room"):
        ask("health")


def test_a_broken_connection_is_tried_once_more(ask: Ask, script: Script) -> None:
    script.answers += [HANG_UP, OK]
    assert ask("rerank", "q", [{"id": "a"}, {"id": "b"}]).model == "tiny"
    script.answers += [HANG_UP, HANG_UP, OK]
    with pytest.raises(ConnectionError, match=f"the connection to {script.url} broke"):
        ask("health")
    assert len(script.seen) == 4


def test_no_server() -> None:
    with ScriptedServer() as script:
        pass
    with Client(script.url) as client, pytest.raises(ConnectionError, match="cannot reach"):
        client.health()


def test_the_api_key_is_sent_and_not_shown(
    ask: Ask, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGVL_API_KEY", "of-the-environment")
    script.answers += [(200, {}, {})] * 2 + [refusal(401)]
    ask("health")
    ask("health", api_key="secret")
    with pytest.raises(ApiError) as refused:
        ask("health", api_key="secret")
    assert [seen.headers["Authorization"] for seen in script.seen] == [
        "Bearer of-the-environment",
        "Bearer secret",
        "Bearer secret",
    ]
    assert "secret" not in repr(Client(script.url, api_key="secret")) + str(refused.value)


def test_another_timeout(script: Script) -> None:
    script.answers += [(200, {}, {})] * 2
    with Client(script.url) as client:
        client.within(5).health()
        client.health()
    short, long = (float(seen.headers["X-Request-Timeout"]) for seen in script.seen)
    assert 4 < short <= 5 and 50 < long <= 60


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "file:///etc", "http://", "http://a?b", "http://a:b"]
)
def test_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Client(url)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_no_timeout(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Client(timeout=timeout)


def test_both_clients_have_the_same_methods() -> None:
    names = {name for name in vars(Client) if not name.startswith("_")}
    assert names - {"close"} == {n for n in vars(AsyncClient) if n[0] != "_"} - {"aclose"}
