"""Makes documents and queries of what requests hold: looks ids up, reads pictures, fetches URLs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastapi import Request

from ragvl.data.document import Document
from ragvl.data.query import Query
from ragvl.messages import quoted
from ragvl.server.bodies import off_loop
from ragvl.server.errors import NotFound, TooLarge
from ragvl.server.pictures import Encoded, checked_picture, inline_picture, is_url
from ragvl.server.protocol.common import DocumentBody, QueryBody
from ragvl.server.services import services_of
from ragvl.server.settings import ServerSettings

_ID_SHOWN = 80
_MAX_ESCAPES = 2**19  # %XX in data: URIs of a request; each takes a hundred times its bytes to read


class Placed(NamedTuple):
    """A document or a query of a request, and where it stands there."""

    place: str
    body: DocumentBody | QueryBody


@dataclass(frozen=True)
class Contents:
    """What a request asks about.

    Attributes:
        queries: its queries.
        documents: its documents.
        places: of the documents in the request.
    """

    queries: list[Query]
    documents: list[Document]
    places: list[str]

    @property
    def pairs(self) -> list[tuple[Query, Document]]:
        """Each document with its query; one query goes with all."""
        queries = self.queries * (len(self.documents) if len(self.queries) == 1 else 1)
        return list(zip(queries, self.documents, strict=True))


def listed(name: str, bodies: Sequence[DocumentBody | QueryBody]) -> list[Placed]:
    """The items of a request's list `name`."""
    return [Placed(f"{name}[{i}]", body) for i, body in enumerate(bodies)]


async def contents_of(
    request: Request,
    queries: Sequence[Placed],
    documents: Sequence[Placed],
    instruction: str | None = None,
) -> Contents:
    """The queries and documents of a request, which can be handed to the model.

    Pictures' headers are looked at; they are decoded when they are needed.

    Args:
        request: the request.
        queries: what it holds of queries.
        documents: and of documents.
        instruction: of every query.

    Raises:
        NotFound: an id is not known.
        TooLarge: there is more of something than the settings allow.
        Unprocessable: a picture or a text cannot be used. Each names the place.
    """
    settings = services_of(request).settings
    _check_texts([*queries, *documents], settings)
    known = _known_documents(request, documents)
    pictures = await _pictures(request, [*queries, *documents])
    limit = settings.max_pixels
    return Contents(
        [_query(placed, pictures, instruction, limit) for placed in queries],
        [known.get(placed.place) or _document(placed, pictures, limit) for placed in documents],
        [placed.place for placed in documents],
    )


def _check_texts(contents: Sequence[Placed], settings: ServerSettings) -> None:
    most, together = settings.max_text, 0
    for placed in contents:
        for part in placed.body.parts:
            if part.kind != "text":
                continue
            together += len(part.content)
            if len(part.content) > most:
                place = f"{placed.place}.{part.place}"
                raise TooLarge(
                    f"{place}: the text has {len(part.content):,} characters; this server takes "
                    f"{most:,}",
                    param=place,
                )
    # The model's thread cuts them into tokens, which takes seconds, before it sees what is too long
    if together > settings.max_request_text:
        raise TooLarge(
            f"the texts have {together:,} characters together; this server takes "
            f"{settings.max_request_text:,}"
        )


def _known_documents(request: Request, documents: Sequence[Placed]) -> dict[str, Document]:
    """Those that are given by their ids alone, by place."""
    named = {
        placed.place: name
        for placed in documents
        if isinstance(placed.body, DocumentBody) and (name := placed.body.id_alone) is not None
    }
    known: dict[str, Document] = {}
    missing: list[tuple[str, str]] = []
    found = services_of(request).documents.find(named.values())
    for (place, name), document in zip(named.items(), found, strict=True):
        if isinstance(document, NotFound):
            raise NotFound(f"{place}.id: {document.message}", param=f"{place}.id")
        if document is None:
            missing.append((f"{place}.id", name))
        else:
            known[place] = document
    if missing:
        place, name = missing[0]
        others = f", nor {len(missing) - 1:,} others of this request" if len(missing) > 1 else ""
        raise NotFound(
            f"{place}: no document {quoted(name, _ID_SHOWN)} is known here{others}", param=place
        )
    return known


async def _pictures(request: Request, contents: Sequence[Placed]) -> dict[str, Encoded]:
    """All pictures of a request by place, none decoded."""
    settings = services_of(request).settings
    sources = [
        (f"{placed.place}.{part.place}", part.content)
        for placed in contents
        for part in placed.body.parts
        if part.kind == "image"
    ]
    urls = [(place, source) for place, source in sources if is_url(source)]
    inline = [(place, source) for place, source in sources if not is_url(source)]

    def read() -> dict[str, Encoded]:
        if sum(source.count("%") for _, source in inline) > _MAX_ESCAPES:
            raise TooLarge(f"the pictures have more than {_MAX_ESCAPES:,} escapes: send base64")
        return {at: inline_picture(source, at, settings.max_pixels) for at, source in inline}

    pictures = await off_loop(request, sum(len(source) for _, source in inline), read)
    pictures |= await _fetched(request, urls)
    if (pixels := sum(picture.pixels for picture in pictures.values())) > (
        most := settings.max_request_pixels
    ):
        raise TooLarge(f"the pictures have {pixels:,} pixels together; this server takes {most:,}")
    return pictures


async def _fetched(request: Request, urls: Sequence[tuple[str, str]]) -> dict[str, Encoded]:
    """Pictures behind URLs, by place; together they may have the bytes of a body."""
    services = services_of(request)
    settings = services.settings
    fetched = await services.fetcher.fetch_all(
        dict(urls), max_bytes=settings.max_body_bytes, hold=request.state.hold
    )
    num_bytes = sum(map(len, fetched.values()))

    def checked() -> dict[str, Encoded]:
        return {
            place: checked_picture(data, place, settings.max_pixels)
            for place, data in fetched.items()
        }

    return await off_loop(request, num_bytes, checked)


def _document(placed: Placed, pictures: Mapping[str, Encoded], max_pixels: int) -> Document:
    parts = _filled(placed, pictures)
    name = placed.body.id if isinstance(placed.body, DocumentBody) else None
    match parts:
        case [str() as text]:
            return Document(text=text, id=name)
        case [bytes() as image]:
            return Document(image, id=name, max_pixels=max_pixels)
        case [bytes() as image, str() as caption]:
            return Document(image, caption, name, max_pixels=max_pixels)
        case [str() as caption, bytes() as image]:
            turned = Document(image, caption, name, max_pixels=max_pixels)
            return turned.with_caption_first()
    return Document(parts=parts, id=name, max_pixels=max_pixels)


def _query(
    placed: Placed, pictures: Mapping[str, Encoded], instruction: str | None, max_pixels: int
) -> Query:
    parts = _filled(placed, pictures)
    text = next((part for part in parts if isinstance(part, str)), None)
    image = next((part for part in parts if isinstance(part, bytes)), None)
    query = Query(text, image, instruction=instruction, max_pixels=max_pixels)
    return query.with_text_first() if isinstance(parts[0], str) else query


def _filled(placed: Placed, pictures: Mapping[str, Encoded]) -> list[str | bytes]:
    """Texts, and pictures' bytes, in order."""
    return [
        part.content if part.kind == "text" else pictures[f"{placed.place}.{part.place}"].data
        for part in placed.body.parts
    ]
