"""What the integrations share: how a reranker is named, and documents made of a framework's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ragvl.arguments import checked_count
from ragvl.data.document import Document, DocumentLike
from ragvl.data.images import ImageError
from ragvl.data.query import QueryLike
from ragvl.extras import extra
from ragvl.files import url_scheme
from ragvl.messages import shown
from ragvl.reranker import Reranker, Threshold, check_threshold

if TYPE_CHECKING:
    from ragvl.client import Client

_WEB = ("http", "https")


class Content(NamedTuple):
    """What a framework's document holds.

    Attributes:
        text: its text, the caption of its picture if it has one; None or "" of a picture alone.
        image: its picture, as `ragvl.Document` takes it, or an http(s) URL; None of a text.
        id: what the framework calls it, for messages.
    """

    text: str | None
    image: Any = None
    id: str | None = None


class Ranked(Protocol):
    """A document after reranking: `RankedDocument`, or what a server answered."""

    @property
    def index(self) -> int:
        """Its place in the list that was given."""

    @property
    def score(self) -> float:
        """Relevance."""

    @property
    def kept(self) -> bool:
        """Whether the score reaches the threshold."""


class ServedReranker:
    """A reranker behind `ragvl serve`, asked as a `Reranker` is.

    Args:
        address: the server's.
        settings: others of `ragvl.Client`.

    Raises:
        ValueError, TypeError: see there.
        ModuleNotFoundError: what it asks with is not installed.
    """

    def __init__(self, address: str, settings: Mapping[str, Any]) -> None:
        self._address, self._settings = address, settings
        self._client().close()  # which sees what is wrong with them

    def _client(self) -> Client:
        """One a call: frameworks have no moment at which connections would be closed."""
        with extra("serve", "httpx2"):
            from ragvl.client import Client
        return Client(self._address, **self._settings)

    def rank(
        self,
        query: QueryLike,
        documents: Sequence[DocumentLike],
        top_k: int | None = None,
        *,
        threshold: Threshold | None = None,
        progress: bool = True,  # noqa: ARG002  the server's log shows it
    ) -> Sequence[Ranked]:
        """See `Reranker.rank`."""
        with self._client() as client:
            return client.rerank(query, documents, top_k=top_k, threshold=threshold).results


AnyReranker = Reranker | ServedReranker


def _checked_model(model: Any, settings: Mapping[str, Any]) -> str | Path | Reranker:
    """What can be seen to be wrong with how a model is named, before it is loaded."""
    if isinstance(model, Reranker) and settings:
        named = shown(", ".join(sorted(settings)))
        raise ValueError(f"of a loaded Reranker, {named} cannot be set: load it so")
    if not isinstance(model, str | Path | Reranker):
        kind = type(model).__name__
        raise TypeError(f"model must be a hub id, a folder, an address or a Reranker, not {kind}")
    return model


class Ranking:
    """How a framework's component ranks: by which reranker, how many, and which are left out.

    Args:
        model: a hub id or a folder; the address of a `ragvl serve`; or a `Reranker`.
        settings: others of `Reranker.from_pretrained`, or of the server's `ragvl.Client`.
        top_k: how many come back at most; all by default.
        threshold: what does not reach it is left out; by default nothing is.
        allow_urls: where pictures behind URLs are fetched from; see `made_documents`.

    Raises:
        ValueError: a number or a host is none, or a `Reranker` that is loaded has settings.
        TypeError: `model` is something else.
    """

    def __init__(
        self,
        model: str | Path | Reranker,
        settings: Mapping[str, Any] | None = None,
        *,
        top_k: int | None = None,
        threshold: Threshold | None = None,
        allow_urls: Sequence[str] = (),
    ) -> None:
        check_hosts(allow_urls)
        self._top_k, self._threshold = _checked(top_k, threshold)
        self._allow_urls = allow_urls
        self._settings = dict(settings or {})
        self._model = _checked_model(model, self._settings)

    def opened(self) -> Ranking:
        """Itself, with its model loaded, which otherwise happens when it is first used.

        Raises:
            OSError: there is no such model.
            ValueError, TypeError: a setting is not known, or the model cannot be used; see
                `Reranker.from_pretrained`.
        """
        _ = self.reranker
        return self

    @cached_property
    def reranker(self) -> AnyReranker:
        """What it ranks by; raises what `opened` does."""
        model = self._model
        if isinstance(model, Reranker):
            return model
        if isinstance(model, str) and url_scheme(model) in _WEB:
            return ServedReranker(model, self._settings)
        return Reranker.from_pretrained(model, **self._settings)

    def rank(
        self,
        query: str,
        contents: Iterable[Content],
        *,
        top_k: int | None = None,
        threshold: Threshold | None = None,
    ) -> list[Ranked]:
        """The most relevant first; none of none.

        Args:
            query: the question.
            contents: of the framework's documents.
            top_k: in the place of its own.
            threshold: in the place of its own.

        Raises:
            ValueError, TypeError: see `made_documents` and `Reranker.rank`.
        """
        count, limit = _checked(
            self._top_k if top_k is None else top_k,
            self._threshold if threshold is None else threshold,
        )
        documents = made_documents(contents, allow_urls=self._allow_urls)
        if not documents:
            return []
        found = self.reranker.rank(query, documents, count, threshold=limit, progress=False)
        return [one for one in found if limit is None or one.kept]


def _checked(top_k: int | None, threshold: Threshold | None) -> tuple[int | None, Threshold | None]:
    if threshold is not None:
        check_threshold(threshold)
    return None if top_k is None else checked_count("top_k", top_k), threshold


def check_hosts(hosts: Sequence[str]) -> None:
    """Refuses what is no list of hosts, or cannot be asked here.

    Raises:
        TypeError: it is one text.
        ValueError: an entry is no host.
        ModuleNotFoundError: what a server fetches with is not installed.
    """
    if isinstance(hosts, str):
        raise TypeError("allow_urls must be a list of hosts, not one text")
    if hosts:
        with _fetching():
            from ragvl.server.fetch import allowed_origin

            for host in hosts:
                allowed_origin(host)


def made_documents(
    contents: Iterable[Content], *, allow_urls: Sequence[str] = (), name: str = "documents"
) -> list[Document]:
    """Ragvl's documents, after a look at whether their pictures are there.

    Args:
        contents: what they hold.
        allow_urls: hosts that pictures behind http(s) URLs are fetched from, `example.org` or
            `example.org:8080`, as by `ragvl serve --allow-urls`; at public addresses only.
        name: the list's, for messages.

    Raises:
        ValueError: a document has neither a text nor a picture; the message says which.
        TypeError: what stands for its picture is none.
        DocumentError: its picture cannot be had, such as a file that is missing or a URL of another
            host.
    """
    listed = [(f"{name}[{place}]", content) for place, content in enumerate(contents)]
    urls = {
        where: content.image
        for where, content in listed
        if isinstance(content.image, str) and url_scheme(content.image) in _WEB
    }
    fetched = _fetched(urls, allow_urls) if urls and allow_urls else {}
    documents = [_made(where, content, fetched.get(where)) for where, content in listed]
    for document in documents:
        document.check_files()
    return documents


def _made(where: str, content: Content, fetched: bytes | None) -> Document:
    text = content.text if content.text and content.text.strip() else None
    image = content.image if fetched is None else fetched
    if text is None and image is None:
        named = f" ({content.id})" if content.id else ""
        raise ValueError(f"{where}{named} has neither a text nor a picture")
    name = content.id or where
    try:
        if image is None:
            return Document(text=text, id=name)
        return Document(image, caption=text, id=name)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


@contextmanager
def _fetching() -> Iterator[None]:
    """Imports of the server's part that fetches."""
    with extra("serve", "fastapi"), extra("serve", "httpx2"):
        yield


def _fetched(urls: Mapping[str, str], hosts: Sequence[str]) -> dict[str, bytes]:
    """The bytes behind URLs, by place.

    Raises:
        ImageError: one cannot be had, or may not be fetched; the message says which.
        ModuleNotFoundError: what a server fetches with is not installed.
    """
    with _fetching():
        from ragvl.server.errors import ServerError
        from ragvl.server.fetch import PictureFetcher
        from ragvl.server.settings import ServerSettings

    limits = ServerSettings.model_validate({})

    async def fetch() -> dict[str, bytes]:
        fetcher = PictureFetcher(
            hosts,
            max_bytes=limits.url_bytes,
            seconds=limits.url_seconds,
            max_redirects=limits.url_redirects,
        )
        total = limits.url_bytes * len(urls)
        return await fetcher.fetch_all(urls, max_bytes=total, hold=lambda _: None)

    # In a thread of its own: the caller's may have an event loop running, as a notebook's has
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(asyncio.run, fetch()).result()
        except ServerError as error:
            raise ImageError(error.message) from error
