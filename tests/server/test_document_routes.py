from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from server.test_fetch import Host, running
from starlette.testclient import TestClient

from ragvl import Reranker
from ragvl.data.document import Document
from ragvl.data.images import in_flight
from ragvl.mllm import MLLM
from ragvl.reranker import PromptTemplate
from ragvl.server.app import create_app
from ragvl.server.bodies import AT_ONCE
from ragvl.server.documents import DocumentStore

QUERY = "Which tower is red?"


def png(color: int, size: tuple[int, int] = (24, 16)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, (color, 255 - color, 7)).save(file, "PNG")
    return file.getvalue()


def uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


# What is put, and the document that it is
CONTENTS: dict[str, tuple[dict[str, Any], Document]] = {
    "text": ({"text": "Velmora has a tower."}, Document(text="Velmora has a tower.")),
    "picture": ({"image": uri(png(1))}, Document(png(1))),
    "captioned": (
        {"image": uri(png(2)), "text": "A red tower"},
        Document(png(2), "A red tower"),
    ),
    "caption first": (
        {
            "content": [
                {"type": "text", "text": "A tower"},
                {"type": "image_url", "image_url": {"url": uri(png(3))}},
            ]
        },
        Document(png(3), "A tower").with_caption_first(),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def shared(make_services, folder) -> Iterator[TestClient]:
    """A server that keeps documents in a folder."""
    with TestClient(create_app(make_services(cache=folder)), raise_server_exceptions=False) as one:
        yield one


@pytest.fixture
def client(shared) -> TestClient:
    """The same, without documents."""
    for id in [item["id"] for item in shared.get("/v1/documents").json()["data"]]:
        assert shared.delete(path(id)).status_code == 200
    return shared


def path(id: str, more: str = "") -> str:
    return f"/v1/documents/{quote(id, safe='')}{more}"


def put(client: TestClient, id: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.put(path(id), json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(client: TestClient) -> list[str]:
    return [item["id"] for item in client.get("/v1/documents").json()["data"]]


def ranked(client: TestClient, documents: list[dict[str, Any]]) -> dict[str, Any]:
    answer = client.post("/rerank", json={"query": QUERY, "documents": documents})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: Any, status: int, place: str | None, reason: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == place
    assert reason in error["message"]
    assert "ragvl-documents" not in answer.text and "/pictures/" not in answer.text


class TestPut:
    @pytest.mark.parametrize("kind", CONTENTS)
    def test_a_query_about_an_id_costs_its_own_tokens(self, client, tiny_reranker, kind):
        body, document = CONTENTS[kind]
        answer = put(client, "an id", body)
        assert answer["data"] in ([{"id": "an id", "prefix": p}] for p in ("built", "known"))
        assert answer["model"] == "tiny-reranker"
        assert answer["usage"]["total_tokens"] == 0
        found = ranked(client, [{"id": "an id"}])
        assert found["built"] == 0
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        expected = tiny_reranker.score([(QUERY, document)], raw=True).tolist()
        assert [one["raw_score"] for one in found["results"]] == expected

    def test_many(self, client, tiny_reranker):
        batch = [{"id": id, **body} for id, (body, _) in CONTENTS.items()]
        answer = client.put("/v1/documents", json={"documents": batch}).json()
        assert [item["id"] for item in answer["data"]] == list(CONTENTS)
        assert answer["built"] == [item["prefix"] for item in answer["data"]].count("built")
        results = ranked(client, [{"id": id} for id in CONTENTS])["results"]
        raw = {one["index"]: one["raw_score"] for one in results}
        documents = [document for _, document in CONTENTS.values()]
        expected = tiny_reranker.score([(QUERY, document) for document in documents], raw=True)
        assert [raw[i] for i in range(len(documents))] == expected.tolist()

    def test_takes_the_place_of_another(self, client, tiny_reranker):
        put(client, "id", {"text": "It is an old mill."})
        put(client, "id", {"text": "It is a red tower."})
        (result,) = ranked(client, [{"id": "id"}])["results"]
        document = Document(text="It is a red tower.")
        assert result["raw_score"] == tiny_reranker.score([(QUERY, document)], raw=True).item()
        assert ids(client) == ["id"]

    def test_is_known_to_other_servers_and_after_a_restart(self, client, make_services, folder):
        put(client, "id", CONTENTS["captioned"][0])
        expected = ranked(client, [{"id": "id"}])["results"]
        with TestClient(create_app(make_services(cache=folder))) as other:
            assert ranked(other, [{"id": "id"}])["results"] == expected
            put(other, "new", {"text": "put there"})
        assert client.get(path("new")).json()["text"] == "put there"

    @pytest.mark.parametrize("id", ["a/b.png", "ü – 塔", "a b?c&d=e#f", "100%", "a//b", "x" * 500])
    def test_ids(self, client, id):
        put(client, id, {"text": "text"})
        assert client.get(path(id)).json()["id"] == id
        assert ids(client) == [id]
        assert ranked(client, [{"id": id}])["results"][0]["id"] == id
        assert client.delete(path(id)).json()["deleted"] is True
        assert client.get(path(id)).status_code == 404


@pytest.mark.parametrize("id", ["%2F", "a%2Fb/c d", "塔?#"])
def test_ids_over_the_wire(server, id):
    """Of the live server: starlette's client for tests decodes a path twice."""
    with server.client() as client:
        put(client, id, {"text": "text"})
        assert client.get(path(id)).json()["id"] == id
        assert client.delete(path(id)).status_code == 200


def test_of_a_model_that_keeps_nothing_documents_are_known_all_the_same(tiny_model, make_services):
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
    # As if its forward called another method for pictures
    del mllm.model.base_model.get_image_features
    template = PromptTemplate("query-first", "{query} Does this show it? {document} Yes or No.")
    reranker = Reranker(mllm, template=template)
    with TestClient(create_app(make_services(reranker))) as client:
        assert put(client, "id", CONTENTS["captioned"][0])["data"][0]["prefix"] == "none"
        (result,) = ranked(client, [{"id": "id"}])["results"]
        expected = reranker.score([(QUERY, CONTENTS["captioned"][1])], raw=True)
        assert result["raw_score"] == expected.item()


class TestRefusals:
    @pytest.mark.parametrize(
        ("document", "status", "place", "reason"),
        [
            ({"text": "no id"}, 422, "documents[1].id", "required"),
            ({"id": "", "text": "text"}, 422, "documents[1].id", "at least 1"),
            ({"id": "a\nb", "text": "text"}, 422, "documents[1].id", "control characters"),
            ({"id": "a/..", "text": "text"}, 422, "documents[1].id", "between slashes"),
            ({"id": "a/picture", "text": "text"}, 422, "documents[1].id", "must not end"),
            ({"id": "x" * 501, "text": "text"}, 422, "documents[1].id", "at most 500"),
            ({"id": "good", "text": "text"}, 422, "documents[1].id", "is there twice"),
            ({"id": "id"}, 422, "documents[1]", "a document to keep has"),
            ({"id": "id", "text": " "}, 422, "documents[1]", "empty"),
            ({"id": "id", "image": "x.png"}, 422, "documents[1].image", "never read"),
            ({"id": "id", "image": "file:///a.png"}, 422, "documents[1].image", "data: URI"),
            ({"id": "id", "image": uri(png(1)[:60])}, 422, "documents[1]", "cannot be used"),
            ({"id": "id", "image": uri(b"no picture")}, 422, "documents[1].image", "picture"),
            ({"id": "id", "image": "http://a.test/b"}, 422, "documents[1].image", "no URLs"),
            ({"id": "id", "text": "word " * 50_000}, 413, "documents[1]", "tokens"),
            ({"id": "id", "texts": "x"}, 422, "documents[1].texts", "not known here"),
        ],
    )
    def test_one_of_several_keeps_all_out(self, client, document, status, place, reason):
        put(client, "known", {"text": "was there"})
        batch = [{"id": "good", "text": "good"}, document]
        refused(client.put("/v1/documents", json={"documents": batch}), status, place, reason)
        assert ids(client) == ["known"]

    @pytest.mark.parametrize(
        ("id", "body", "place"),
        [
            ("id", {"id": "other", "text": "text"}, "id"),
            ("a\tb", {"text": "text"}, "id"),
            ("a/./b", {"text": "text"}, "id"),
            ("id", {}, None),
            ("id", {"id": "id"}, None),
            ("id", [], None),
            ("id", {"image": "x.png"}, "document.image"),
        ],
    )
    def test_of_one(self, client, id, body, place):
        refused(client.put(path(id), json=body), 422, place, "")
        assert ids(client) == []

    def test_another_model(self, client):
        body = {"model": "other", "documents": [{"id": "a", "text": "text"}]}
        refused(client.put("/v1/documents", json=body), 404, "model", "no model 'other'")

    def test_no_room(self, make_services):
        with TestClient(create_app(make_services(max_stored_documents=1))) as client:
            put(client, "first", {"text": "first"})
            refused(client.put(path("second"), json={"text": "second"}), 507, None, "at most 1")
            assert ids(client) == ["first"]

    def test_unknown(self, client):
        for answer in (
            client.get(path("none")),
            client.delete(path("none")),
            client.get(path("none", "/picture")),
        ):
            refused(answer, 404, "id", "no document 'none'")
        rerank = {"query": QUERY, "documents": ["text", {"id": "none"}]}
        refused(client.post("/rerank", json=rerank), 404, "documents[1].id", "'none'")

    def test_a_lost_picture(self, make_services, tmp_path):
        with TestClient(create_app(make_services(cache=tmp_path))) as client:
            put(client, "id", CONTENTS["picture"][0])
            put(client, "text", {"text": "text"})
            expected = ranked(client, [{"id": "id"}])["results"]
        for file in (tmp_path / "documents" / "pictures").rglob("?" * 64):
            file.unlink()
        with TestClient(create_app(make_services(cache=tmp_path))) as client:
            assert client.get(path("id")).json()["warm"] is False
            refused(client.get(path("id", "/picture")), 422, None, "no such file")
            body = {"query": QUERY, "documents": [{"id": "id"}]}
            refused(client.post("/rerank", json=body), 404, "documents[0].id", "once more")
            put(client, "id", CONTENTS["picture"][0])
            assert ranked(client, [{"id": "id"}])["results"] == expected
            assert ids(client) == ["id", "text"]


class TestGet:
    def test_pictures_do_not_come_back(self, client):
        body, _ = CONTENTS["caption first"]
        put(client, "id", body)
        answer = client.get(path("id"))
        known = answer.json()
        assert known["parts"] == [{"type": "text", "text": "A tower"}, {"type": "image"}]
        assert (known["text"], known["num_pictures"], known["warm"]) == ("A tower", 1, True)
        assert known["source"] == "stored"
        assert known["bytes"] >= len(png(3))
        assert base64.b64encode(png(3)).decode()[:40] not in answer.text

    def test_pages(self, client):
        names = sorted(f"{number:02}" for number in range(7))
        batch = [{"id": name, "text": f"text {name}"} for name in names]
        assert client.put("/v1/documents", json={"documents": batch}).status_code == 200
        found: list[str] = []
        for expected_more in (True, True, False):
            after = found[-1] if found else ""
            answer = client.get("/v1/documents", params={"limit": 3, "after": after}).json()
            found += [item["id"] for item in answer["data"]]
            assert answer["has_more"] is expected_more
        assert found == names

    def test_a_list_holds_a_few_words_of_each(self, client):
        put(client, "id", {"text": "word " * 100})
        (item,) = client.get("/v1/documents").json()["data"]
        assert item["text"] == ("word " * 100)[:200] + "…"
        assert client.get(path("id")).json()["text"] == "word " * 100

    @pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", f"after={'x' * 501}"])
    def test_bad_pages(self, client, query):
        refused(client.get(f"/v1/documents?{query}"), 422, query.partition("=")[0], "")


def test_metrics_say_how_much_is_kept(client):
    put(client, "a", {"text": "text"})
    put(client, "b", CONTENTS["picture"][0])
    lines = client.get("/metrics").text.splitlines()
    assert "ragvl_documents 2.0" in lines
    stored = sum(client.get(path(id)).json()["bytes"] for id in ("a", "b"))
    assert f"ragvl_documents_bytes {float(stored)}" in lines


class TestPictures:
    def test_is_small_and_upright(self, client):
        file = BytesIO()
        tall = Image.new("RGB", (400, 100), "red")
        exif = tall.getexif()
        exif[ExifTags.Base.Orientation] = 6  # turned by a right angle
        exif[ExifTags.Base.Artist] = "somebody"
        tall.save(file, "JPEG", exif=exif)
        put(client, "id", {"image": uri(file.getvalue())})
        answer = client.get(path("id", "/picture"), params={"side": 64})
        assert answer.headers["content-type"] == "image/jpeg"
        picture = Image.open(BytesIO(answer.content))
        assert picture.size == (16, 64)
        assert not picture.getexif()

    @pytest.mark.parametrize("length", [10, 70_000])  # a JPEG's comment has at most 65,533 bytes
    def test_nothing_of_the_file_but_its_pixels(self, client, length):
        file, about = BytesIO(), PngInfo()
        about.add_text("comment", "x" * length)
        Image.new("RGB", (32, 32), "red").save(file, "PNG", pnginfo=about)
        put(client, "id", {"image": uri(file.getvalue())})
        answer = client.get(path("id", "/picture"))
        assert answer.status_code == 200
        assert "comment" not in Image.open(BytesIO(answer.content)).info

    def test_no_body_waits_for_it(self, make_services):
        with TestClient(create_app(make_services(threads=1))) as client:
            put(client, "id", CONTENTS["picture"][0])
            body = {"query": QUERY, "documents": ["A tower"]}
            text = json.dumps(body).ljust(AT_ONCE + 1)  # is read in a thread
            headers = {"Content-Type": "application/json"}
            with ThreadPoolExecutor(2) as threads:
                with in_flight.hold(in_flight.total):
                    picture = threads.submit(client.get, path("id", "/picture"))
                    for _ in range(1000):
                        if "ragvl_requests_in_flight 2.0" in client.get("/metrics").text:
                            break
                    asked = threads.submit(client.post, "/rerank", content=text, headers=headers)
                    assert asked.result(timeout=20).status_code == 200
                    assert not picture.done()
                assert picture.result(timeout=20).status_code == 200

    def test_one_of_several(self, client):
        content = [{"image": uri(png(number))} for number in (10, 200)]
        put(client, "id", {"content": content})
        for number, color in ((0, 10), (1, 200)):
            answer = client.get(path("id", "/picture"), params={"number": number})
            red, green, _ = Image.open(BytesIO(answer.content)).getpixel((3, 3))
            assert abs(red - color) < 9 and abs(green - (255 - color)) < 9
        refused(client.get(path("id", "/picture?number=2")), 404, "number", "2 pictures")

    def test_of_a_text(self, client):
        put(client, "a/b", {"text": "text"})
        refused(client.get(path("a/b", "/picture")), 404, "number", "0 pictures")

    @pytest.mark.parametrize("query", ["side=1", "side=100000", "number=-1", "side=x"])
    def test_bad_sizes(self, client, query):
        put(client, "id", CONTENTS["picture"][0])
        refused(client.get(path("id", f"/picture?{query}")), 422, query.partition("=")[0], "")


class TestIndex:
    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, make_services, tmp_path_factory) -> Iterator[TestClient]:
        folder = tmp_path_factory.mktemp("index")
        (folder / "a.png").write_bytes(png(5))
        (folder / "broken.png").write_bytes(png(5)[:50])
        index = {
            "a.png": Document(folder / "a.png", "A tower", "a.png"),
            "broken.png": Document(folder / "broken.png", id="broken.png"),
        }
        store = DocumentStore(None, index=index, max_documents=9, max_bytes=10**6)
        with TestClient(create_app(make_services(documents=store))) as client:
            yield client

    def test_is_known_by_id(self, client, tiny_reranker):
        put(client, "b", {"text": "stored"})
        items = client.get("/v1/documents").json()["data"]
        expected = [("a.png", "index"), ("b", "stored"), ("broken.png", "index")]
        assert [(item["id"], item["source"]) for item in items] == expected
        (result,) = ranked(client, [{"id": "a.png"}])["results"]
        document = Document(png(5), "A tower")
        assert result["raw_score"] == tiny_reranker.score([(QUERY, document)], raw=True).item()
        assert client.get(path("a.png", "/picture")).status_code == 200

    def test_stays_as_it_is(self, client):
        refused(client.put(path("a.png"), json={"text": "x"}), 409, "id", "of the index")
        batch = {"documents": [{"id": "c", "text": "c"}, {"id": "a.png", "text": "x"}]}
        refused(client.put("/v1/documents", json=batch), 409, "documents[1].id", "of the index")
        refused(client.delete(path("a.png")), 409, "id", "of the index")

    def test_a_broken_picture_is_named_without_its_path(self, client):
        refused(client.get(path("broken.png", "/picture")), 422, None, "cannot be used")
        body = {"query": QUERY, "documents": [{"id": "broken.png"}]}
        answer = client.post("/rerank", json=body)
        refused(answer, 422, "documents[0]", "cannot be used")
        assert "index" not in answer.text
        assert client.get(path("broken.png")).json()["warm"] is False


class TestUrls:
    @pytest.fixture(scope="class")
    @classmethod
    def host(cls) -> Iterator[Host]:
        host = Host()
        host.picture = png(9)
        with running(host) as host:
            yield host

    def test_a_picture_is_fetched_once_and_kept(self, host, make_services, tiny_reranker):
        here = f"127.0.0.1:{host.port}"
        services = make_services(allow_urls=[here], allow_private_urls=True)
        with TestClient(create_app(services)) as client:
            put(client, "id", {"image_url": f"http://{here}/a.png", "text": "A tower"})
            asked = len(host.asked)
            (result,) = ranked(client, [{"id": "id"}])["results"]
            expected = tiny_reranker.score([(QUERY, Document(png(9), "A tower"))], raw=True)
            assert result["raw_score"] == expected.item()
            assert len(host.asked) == asked == 1
            lost = {"image_url": f"http://{here}/status/404"}
            refused(client.put(path("x"), json=lost), 422, "document.image_url", "answered 404")
            other = {"image_url": "http://127.0.0.1:1/a.png"}
            refused(
                client.put(path("x"), json=other), 422, "document.image_url", "none of the hosts"
            )
            assert ids(client) == ["id"]

    def test_private_addresses_need_to_be_allowed(self, host, make_services):
        here = f"127.0.0.1:{host.port}"
        host.asked.clear()
        with TestClient(create_app(make_services(allow_urls=[here]))) as client:
            body = {"image_url": f"http://{here}/a.png"}
            refused(client.put(path("x"), json=body), 422, "document.image_url", "not public")
        assert host.asked == []


@pytest.mark.slow
def test_a_document_that_is_put_again_while_it_is_asked_for(server, tiny_reranker):
    """Every score is that of one content or the other, in full."""
    bodies = [{"image": uri(png(n)), "text": f"A tower of {n} metres"} for n in (20, 90)]
    documents = [Document(png(n), f"A tower of {n} metres") for n in (20, 90)]
    pairs = [(QUERY, document) for document in documents]
    expected = set(tiny_reranker.score(pairs, raw=True).tolist())

    def write(number: int) -> None:
        with server.client() as client:
            for n in range(8):
                put(client, "changing", bodies[(n + number) % 2])

    def read(_: int) -> set[float]:
        with server.client() as client:
            answers = [ranked(client, [{"id": "changing"}] * 3) for _ in range(15)]
        return {one["raw_score"] for answer in answers for one in answer["results"]}

    with server.client() as client:
        put(client, "changing", bodies[0])
        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(write, number) for number in range(2)]
            found = set().union(*pool.map(read, range(2)))
            for writer in writers:
                writer.result()
        assert found <= expected and len(expected) == 2
        assert client.delete(path("changing")).status_code == 200
