"""Queries and documents as the server takes them: pictures travel as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

from ragvl.data.document import Document, DocumentLike, Part
from ragvl.data.image_sources import MAX_FILE_BYTES
from ragvl.data.images import ImageError, encoded_size
from ragvl.data.picture import Picture
from ragvl.data.query import Query
from ragvl.files import open_regular
from ragvl.messages import shown

GivenDocument = DocumentLike | Mapping[str, Any]


def listed(documents: Iterable[GivenDocument]) -> list[GivenDocument]:
    """Documents as a list.

    Raises:
        TypeError: they are one, or none.
    """
    if isinstance(documents, str | bytes | Mapping | Document) or not isinstance(
        documents, Iterable
    ):
        raise TypeError(f"documents must be a list, not {type(documents).__name__}")
    return list(documents)


def document_body(given: GivenDocument) -> dict[str, Any]:
    """What the server takes for a document.

    Args:
        given: what the library takes, or `{"id": ...}` for one that the server knows.

    Raises:
        TypeError: it is none of these.
        ImageError: a picture cannot be read.
    """
    if isinstance(given, Mapping) and "id" in given:
        if len(given) > 1 or not isinstance(given["id"], str):
            keys = shown(", ".join(map(str, given)))
            raise TypeError(
                f"a document that the server knows is {{'id': name}}, not one of {keys}"
            )
        return {"id": given["id"]}
    document = Document.of(given)
    body = _content(document)
    return body if document.id is None else {"id": document.id, **body}


def query_body(query: Query) -> str | dict[str, Any]:
    """What the server takes for a query; its instruction is a field of the request."""
    if not query.pictures:
        return query.text or ""
    return {"content": [_part(part) for part in query.parts]}


def _content(document: Document) -> dict[str, Any]:
    if document.text is not None:
        return {"text": document.text}
    if document.image is not None:
        body = {"image": _data_uri(document.pictures[0])}
        return body if document.caption is None else {**body, "text": document.caption}
    return {"content": [_part(part) for part in document.parts]}


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": _data_uri(part)}}


def _data_uri(picture: Picture) -> str:
    data = _encoded(picture)
    width, height = encoded_size(data, name=picture.name)
    if picture.max_pixels is not None and width * height > picture.max_pixels:
        raise ImageError(
            f"{picture.name} cannot be used as a picture: it is {width}x{height}, above the limit "
            f"of {picture.max_pixels:,} pixels"
        )
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


def _encoded(picture: Picture) -> bytes:
    """A file as it is; pixels without loss, so that the server sees the same picture."""
    picture.check_file()
    if isinstance(picture.image, bytes):
        return picture.image
    if picture.path is not None:
        with open_regular(picture.path, max_bytes=MAX_FILE_BYTES) as file:
            return file.read()
    written = BytesIO()
    picture.load().save(written, "PNG", compress_level=1)
    return written.getvalue()
