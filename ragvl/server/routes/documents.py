"""`/v1/documents`: documents that the server knows by their ids, and their pictures, small."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from io import BytesIO
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response

from ragvl.data.document import Part
from ragvl.data.faces import thumbnail
from ragvl.data.images import DocumentError, ImageError
from ragvl.data.picture import Picture
from ragvl.messages import quoted
from ragvl.server.bodies import json_answer, read_body
from ragvl.server.contents import Placed, contents_of, listed
from ragvl.server.deadlines import call
from ragvl.server.documents import MAX_ID, PICTURE_PATH, KnownDocument, check_id
from ragvl.server.errors import Conflict, NotFound, Unprocessable
from ragvl.server.protocol.documents import (
    DeletedDocumentAnswer,
    DocumentsAnswer,
    KnownDocumentAnswer,
    KnownPart,
    NewDocument,
    OneDocumentAnswer,
    PutDocument,
    PutDocumentsAnswer,
    PutDocumentsBody,
    Warmed,
)
from ragvl.server.protocol.openapi import OF_BODY, OF_MODEL, errors, json_body
from ragvl.server.refusals import plain_message, refusal
from ragvl.server.scoring import check_model, texts_of, usage_of
from ragvl.server.services import services_of

router = APIRouter(tags=["documents"])

_ID_SHOWN = 80
_WORDS_SHOWN = 200  # characters of a text in a list
_MAX_SIDE = 1024  # pixels
_PATH = "/v1/documents"

Id = Annotated[str, Path(min_length=1, max_length=MAX_ID, description="The document's id.")]
T = TypeVar("T")


@router.put(
    _PATH,
    summary="Keep documents",
    openapi_extra=json_body(PutDocumentsBody),
    response_model=PutDocumentsAnswer,
    responses=errors(*OF_BODY, *OF_MODEL, 409, 507),
)
async def put_documents(request: Request) -> Response:
    """Keeps documents under their ids; answered when they are on the disk and warm.

    If one of them cannot be used none is kept.
    """
    body = await read_body(request, lambda _: PutDocumentsBody)
    check_model(request, body.model)
    seen: set[str] = set()
    for number, document in enumerate(body.documents):
        place = f"documents[{number}].id"
        _check_free(request, document.id, place)
        if document.id in seen:
            twice = f"{place}: {quoted(document.id, _ID_SHOWN)} is there twice"
            raise Unprocessable(twice, param=place)
        seen.add(document.id)
    return await _put(request, listed("documents", body.documents))


@router.put(
    f"{_PATH}/{{id:path}}",
    summary="Keep a document",
    openapi_extra=json_body(NewDocument),
    response_model=PutDocumentsAnswer,
    responses=errors(*OF_BODY, *OF_MODEL, 409, 507),
)
async def put_document(request: Request, id: Id) -> Response:
    """Keeps a document under the path's id; answered when it is on the disk and warm."""
    try:
        check_id(id)
    except ValueError as error:
        raise Unprocessable(f"id: {error}", param="id") from None
    _check_free(request, id, "id")
    body = await read_body(request, lambda _: NewDocument)
    if body.id not in (None, id):
        raise Unprocessable("id: it is not the id of the path", param="id")
    named = body.model_copy(update={"id": id})
    return await _put(request, [Placed("document", named)])


@router.get(
    _PATH,
    summary="List documents",
    response_model=DocumentsAnswer,
    responses=errors(422, 503, 504),
)
async def list_documents(
    request: Request,
    after: Annotated[str, Query(max_length=MAX_ID, description="Begin behind this id.")] = "",
    limit: Annotated[int, Query(ge=1, le=1000, description="How many to list.")] = 100,
) -> Response:
    """Documents by id, in order: those that were put here, and those of the index."""
    services = services_of(request)

    def read() -> DocumentsAnswer:
        ids = services.documents.ids(after=after, limit=limit + 1)
        known = (services.documents.info(id) for id in ids[:limit])
        return DocumentsAnswer(
            model=services.model_name,
            data=[_told(one, _WORDS_SHOWN) for one in known if one is not None],
            has_more=len(ids) > limit,
            usage=usage_of([]),
        )

    return json_answer(await _in_thread(request, read))


# Before the next route, whose path would also match
@router.get(
    f"{_PATH}/{{id:path}}{PICTURE_PATH}",
    summary="See a document's picture",
    response_class=Response,
    responses={
        200: {"description": "The picture, made smaller.", "content": {"image/jpeg": {}}},
        **errors(404, 422, 503, 504),
    },
)
async def get_picture(
    request: Request,
    id: Id,
    number: Annotated[int, Query(ge=0, description="Which of its pictures.")] = 0,
    side: Annotated[int, Query(ge=16, le=_MAX_SIDE, description="Pixels, at most.")] = 256,
) -> Response:
    """A picture of a document, small enough to look at, as a JPEG."""

    def read() -> bytes:
        document = _known(request, id).document
        if number >= len(document.pictures):
            raise NotFound(
                f"number: document {quoted(id, _ID_SHOWN)} has {len(document.pictures)} pictures",
                param="number",
            )
        try:
            return _small(document.pictures[number], side)
        except ImageError as error:
            raise Unprocessable(plain_message(error, document)) from None

    thread = services_of(request).small_pictures
    return Response(await _in_thread(request, read, thread), media_type="image/jpeg")


@router.get(
    f"{_PATH}/{{id:path}}",
    summary="See what is known of a document",
    response_model=OneDocumentAnswer,
    responses=errors(404, 422, 503, 504),
)
async def get_document(request: Request, id: Id) -> Response:
    """What the server knows of a document; its pictures do not come back."""
    services = services_of(request)

    async def work(_: float) -> OneDocumentAnswer:
        known = await asyncio.get_running_loop().run_in_executor(services.pool, _known, request, id)
        try:
            is_warm = await services.engine.is_warm(known.document)
        except DocumentError:  # which a query about it will name
            is_warm = False
        return OneDocumentAnswer(
            **dict(_told(known)),
            model=services.model_name,
            parts=[_told_part(part) for part in known.document.parts],
            warm=is_warm,
            usage=usage_of([]),
        )

    return json_answer(await call(request, work))


@router.delete(
    f"{_PATH}/{{id:path}}",
    summary="Forget a document",
    response_model=DeletedDocumentAnswer,
    responses=errors(404, 409, 422, 429, 503, 504, 507),
)
async def delete_document(request: Request, id: Id) -> Response:
    """Forgets a document that was put here."""
    services = services_of(request)
    store = services.documents
    if not await _in_thread(request, lambda: store.delete(id), store.thread):
        _check_free(request, id, "id")
        raise _unknown(id)
    return json_answer(DeletedDocumentAnswer(id=id, model=services.model_name, usage=usage_of([])))


async def _put(request: Request, placed: list[Placed]) -> Response:
    services = services_of(request)

    async def work(deadline: float) -> PutDocumentsAnswer:
        contents = await contents_of(request, [], placed)
        documents = contents.documents
        outcomes: Sequence[Warmed | Exception]
        try:  # what cannot be used shows here, before it is kept
            outcomes = await services.engine.warm(documents, deadline=deadline)
        except ValueError:  # of this model nothing is cached, as its log says
            outcomes = ["none"] * len(documents)
        data = []
        for outcome, document, place in zip(outcomes, documents, contents.places, strict=True):
            if isinstance(outcome, Exception):
                raise refusal(outcome, place, document) from outcome
            data.append(PutDocument(id=str(document.id), prefix=outcome))
        store = services.documents
        await asyncio.get_running_loop().run_in_executor(store.thread, store.put, documents)
        return PutDocumentsAnswer(
            model=services.model_name,
            data=data,
            built=outcomes.count("built"),
            usage=usage_of([]),
        )

    return json_answer(await call(request, work))


async def _in_thread(request: Request, work: Callable[[], T], thread: Executor | None = None) -> T:
    """What `work` returns, which waits for a disk or decodes a picture; by default in the pool."""
    threads = thread or services_of(request).pool

    async def done(_: float) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    return await call(request, done)


def _check_free(request: Request, id: str, place: str) -> None:
    if services_of(request).documents.is_of_index(id):
        raise Conflict(
            f"{place}: {quoted(id, _ID_SHOWN)} is a document of the index, which stays", param=place
        )


def _known(request: Request, id: str) -> KnownDocument:
    known = services_of(request).documents.info(id)
    if known is None:
        raise _unknown(id)
    return known


def _unknown(id: str) -> NotFound:
    return NotFound(f"no document {quoted(id, _ID_SHOWN)} is known here", param="id")


def _told(known: KnownDocument, limit: int | None = None) -> KnownDocumentAnswer:
    """What goes back of a document, its text cut to `limit` characters."""
    text = texts_of(known.document)
    return KnownDocumentAnswer(
        id=known.id,
        source=known.source,
        text=text if text is None or limit is None or len(text) <= limit else f"{text[:limit]}…",
        num_pictures=len(known.document.pictures),
        bytes=known.num_bytes,
        created=known.created,
    )


def _told_part(part: Part) -> KnownPart:
    return KnownPart(type="text", text=part) if isinstance(part, str) else KnownPart(type="image")


def _small(picture: Picture, side: int) -> bytes:
    """The picture as a JPEG of at most `side` pixels a side.

    Raises:
        ImageError: it cannot be read.
    """
    written = BytesIO()
    thumbnail(picture, side).save(written, "JPEG", quality=85)
    return written.getvalue()
