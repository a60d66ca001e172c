"""What holds for every framework: which documents are refused, and how a reranker is named."""

from __future__ import annotations

import importlib
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import write_picture
from integrations.conftest import Asked
from PIL import Image
from server.live import live

from ragvl import Document
from ragvl.data.images import ImageError
from ragvl.integrations.common import Content, Ranking, made_documents
from ragvl.server import fetch
from ragvl.server.run import build_services
from ragvl.server.settings import ServerSettings
from ragvl.server.stages import Stages

MODULES = {
    "langchain": "langchain_core",
    "llama_index": "llama_index",
    "haystack": "haystack",
    "rerankers": "rerankers",
    "lancedb": "lancedb",
    "mteb": "mteb",
}


def picture_bytes() -> bytes:
    file = BytesIO()
    Image.effect_noise((40, 30), 90).save(file, "PNG")
    return file.getvalue()


def test_pictures_in_any_form_are_one_document(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", "red")
    data = path.read_bytes()
    url = f"data:image/png;base64,{b64encode(data).decode()}"
    given = [path, str(path), path.as_uri(), data, url]
    documents = made_documents([Content("a caption", image) for image in given])
    assert len({document.digest() for document in documents}) == 1
    assert {document.caption for document in documents} == {"a caption"}
    (pixels,) = {
        document.digest()
        for document in made_documents(
            [
                Content(None, Image.open(path).convert("RGB")),
                Content("", np.array(Image.open(path))),
            ]
        )
    }
    assert pixels == Document(Image.open(path)).digest()


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_a_document_of_nothing_is_refused(text: str | None) -> None:
    with pytest.raises(ValueError, match=r"documents\[1\] \(b\) has neither a text nor a picture"):
        made_documents([Content("a text", None, "a"), Content(text, None, "b")])


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("https://example.org/a.png", "URLs are not fetched"),
        ("missing.png", "there is no such file"),
        ("data:image/png;base64,???", "not base64"),
        ("", "there is no such file"),
    ],
)
def test_a_picture_that_cannot_be_had_is_refused_by_name(image: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=rf"documents\[1\].*{reason}"):
        made_documents([Content("a text"), Content("a caption", image)])
    with pytest.raises(ImageError, match=rf"its own name.*{reason}"):
        made_documents([Content("a caption", image, "its own name")])


def test_what_is_no_picture_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"documents\[1\]: a picture must be .* not int"):
        made_documents([Content("a text"), Content(None, 7)])


def test_a_picture_that_cannot_be_decoded_is_named(demo: Stages) -> None:
    ranking = Ranking(demo.reranker)
    broken = picture_bytes()[:-40]
    with pytest.raises(ImageError, match=r"documents\[1\]"):
        ranking.rank("Which is red?", [Content("a text"), Content("a caption", broken)])


class TestUrls:
    @pytest.fixture
    def host(self) -> Iterator[str]:
        """A server on the loopback address that has a picture."""
        picture = picture_bytes()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "image/png")
                self.end_headers()
                self.wfile.write(picture)

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
        server.server_close()

    def test_are_fetched_from_hosts_that_are_named(
        self, host: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fetch, "is_public", lambda _: True)  # which no address here is
        urls = [f"http://{host}/a.png", f"HTTP://{host}/b.png"]
        contents = [Content("a text"), *(Content("a caption", url) for url in urls)]
        documents = made_documents(contents, allow_urls=[host])
        assert documents[1].load().size == (40, 30)
        assert documents[1].digest() == documents[2].digest()

    def test_are_refused_of_others_and_of_private_addresses(self, host: str) -> None:
        content = Content("a caption", f"http://{host}/a.png")
        with pytest.raises(ImageError, match=r"documents\[0\].* none of the hosts"):
            made_documents([content], allow_urls=["example.org"])
        with pytest.raises(ImageError, match=r"documents\[0\].* not public"):
            made_documents([content], allow_urls=[host])

    def test_of_what_is_no_host(self, demo: Stages) -> None:
        with pytest.raises(ValueError, match="no host"):
            Ranking(demo.reranker, allow_urls=["https://example.org/"])
        with pytest.raises(TypeError, match="a list of hosts"):
            Ranking(demo.reranker, allow_urls="example.org")


class TestModels:
    def test_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="a Reranker, not int"):
            Ranking(7)  # type: ignore[arg-type]
        with pytest.raises(OSError, match="nothing-here"):
            Ranking(tmp_path / "nothing-here").opened()

    def test_settings_that_come_too_late(self, demo: Stages) -> None:
        with pytest.raises(ValueError, match="device cannot be set"):
            Ranking(demo.reranker, {"device": "cpu"})

    @pytest.mark.parametrize("wrong", [{"top_k": 0}, {"threshold": 1.5}])
    def test_numbers_that_are_none(self, demo: Stages, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=str(next(iter(wrong)))):
            Ranking(demo.reranker, **wrong)

    def test_behind_a_server_rank_the_same(self, asked: Asked, demo: Stages) -> None:
        contents = [Content(one.caption, one.image, one.id) for one in asked.documents]
        services = build_services(Stages(demo.reranker), ServerSettings(port=0), model="tiny")
        with live(services) as server:
            ranking = Ranking(server.url, {"timeout": 120.0}, top_k=3, threshold=0.5)
            ranked = ranking.rank(asked.question, contents)
        kept = [one for one in asked.ranked[:3] if one.score >= 0.5]
        assert 0 < len(kept) < 3
        assert [(one.index, one.score) for one in ranked] == [(o.index, o.score) for o in kept]


@pytest.mark.parametrize(("name", "package"), MODULES.items())
def test_a_framework_that_is_missing_is_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [one for one in sys.modules if one.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, f"ragvl.integrations.{name}", raising=False)
    extra = name.replace("_", "-")
    with pytest.raises(ModuleNotFoundError, match=rf'pip install "ragvl\[{extra}\]"'):
        importlib.import_module(f"ragvl.integrations.{name}")


def test_another_module_that_is_missing_is_not_blamed_on_the_framework() -> None:
    from ragvl.integrations.common import extra

    with pytest.raises(ModuleNotFoundError, match="'of_its_own'"), extra("langchain", "package"):
        import of_its_own  # noqa: F401
