"""What the server is and how it is: models, health, metrics."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from ragvl.reranker.thresholds import NATURAL
from ragvl.server.errors import NotFound, ShuttingDown
from ragvl.server.services import Services, services_of

router = APIRouter(tags=["status"])

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health(BaseModel):
    """The process lives, and so does the model's thread."""

    status: Literal["ok"] = "ok"


class Warming(BaseModel):
    """How many of the index's documents have their prefixes."""

    done: int
    total: int


class Readiness(BaseModel):
    """The server takes work; prefixes may still be made ahead of it."""

    status: Literal["ready"] = "ready"
    warming: Warming | None = None


class Model(BaseModel):
    """A model, as OpenAI's API lists it, and what this server can do with it.

    Attributes:
        threshold: from what relevance a document is kept if a request says nothing of it.
        thresholds: those that a request can name.
        has_index: whether there is something to search in.
        has_generator: whether questions are answered.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ragvl"
    threshold: float
    thresholds: dict[str, float]
    has_index: bool
    has_generator: bool


class Models(BaseModel):
    """The models that requests can name: one."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/v1/models", summary="The models that requests can name")
async def models(request: Request) -> Models:
    """One, the reranker that this server runs."""
    return Models(data=[_model(services_of(request))])


@router.get("/v1/models/{model:path}", summary="A model", responses={404: {}})
async def model(request: Request, model: str) -> Model:
    """The reranker, by its name."""
    services = services_of(request)
    if model not in (services.model_name, *services.model_aliases):
        raise NotFound(f"there is no such model; this server runs {services.model_name}")
    return _model(services)


@router.get("/health", summary="Whether the process lives")
async def health() -> Health:
    """For a liveness probe; needs no key."""
    return Health()


@router.get("/ready", summary="Whether the server takes work", responses={503: {}})
async def ready(request: Request) -> Readiness:
    """For a readiness probe; needs no key. 503 once the server is about to end."""
    services = services_of(request)
    if services.is_draining:
        raise ShuttingDown()
    warming = services.warming
    if warming is None:
        return Readiness()
    return Readiness(warming=Warming(done=warming[0], total=warming[1]))


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    return Response(services_of(request).metrics.text(), media_type=_METRICS_TYPE)


def _model(services: Services) -> Model:
    saved = services.thresholds
    return Model(
        id=services.model_name,
        created=services.started,
        threshold=services.threshold,
        thresholds={"natural": NATURAL, **(saved.values if saved is not None else {})},
        has_index=services.retriever is not None,
        has_generator=services.generator is not None,
    )
