"""`POST /v1/search`, which retrieves and reranks, and `POST /v1/answer`, the whole of RagVL."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.mllm import PromptTooLongError
from ragvl.reranker import ScoredPair, place_prior, relevance_order
from ragvl.server.bodies import json_answer, read_body
from ragvl.server.contents import Contents, Placed, contents_of, listed
from ragvl.server.deadlines import call
from ragvl.server.errors import Unprocessable
from ragvl.server.pipeline import Pipeline, UnreadableDocument, generator_of, index_of
from ragvl.server.protocol.openapi import OF_BODY, OF_MODEL, errors, json_body
from ragvl.server.protocol.rerank import RankedText
from ragvl.server.protocol.search import (
    AnswerBody,
    Found,
    GeneratedAnswer,
    SearchAnswer,
    SearchBody,
)
from ragvl.server.refusals import checked_scores
from ragvl.server.scoring import (
    answer_id,
    check_model,
    texts_of,
    threshold_of,
    usage_of,
)
from ragvl.server.services import services_of

router = APIRouter(tags=["search"])

_OF_A_DOCUMENT = (DocumentError, PromptTooLongError)


@router.post(
    "/v1/search",
    summary="Retrieve and rerank",
    openapi_extra=json_body(SearchBody),
    response_model=SearchAnswer,
    responses=errors(*OF_BODY, *OF_MODEL),
)
async def search(request: Request) -> Response:
    """The index's documents that a query retrieves, by relevance, the most relevant first."""
    body = await read_body(request, lambda _: SearchBody)
    started = time.perf_counter()

    async def stages(deadline: float) -> SearchAnswer:
        pipeline = Pipeline(services_of(request), deadline, started)
        asked = await _asked(request, body)
        ranking = await _ranking(pipeline, asked)
        return SearchAnswer(id=answer_id("search"), **_told(ranking, asked, pipeline))

    return json_answer(await call(request, stages))


@router.post(
    "/v1/answer",
    summary="Answer a question",
    openapi_extra=json_body(AnswerBody),
    response_model=GeneratedAnswer,
    responses=errors(*OF_BODY, *OF_MODEL),
)
async def answer(request: Request) -> Response:
    """An answer from the documents that a question retrieves and reranking keeps."""
    body = await read_body(request, lambda _: AnswerBody)
    started = time.perf_counter()
    services = services_of(request)
    generator_of(services)  # or nothing has to be retrieved
    most = services.settings.max_answer_tokens
    if body.max_tokens > most:
        raise Unprocessable(
            f"max_tokens: this server's answers have at most {most:,} tokens", param="max_tokens"
        )

    async def stages(deadline: float) -> GeneratedAnswer:
        pipeline = Pipeline(services, deadline, started)
        asked = await _asked(request, body)
        question = _question(asked)
        ranking = await _ranking(pipeline, asked)
        evidence = [i for i in ranking.order[: body.top_k] if ranking.is_kept(i)]
        text = await pipeline.generate(
            question, [ranking.documents[i] for i in evidence], max_new_tokens=body.max_tokens
        )
        return GeneratedAnswer(
            id=answer_id("answer"),
            answer=text,
            grounded=bool(evidence),
            evidence=evidence,
            **_told(ranking, asked, pipeline),
        )

    return json_answer(await call(request, stages))


@dataclass(frozen=True)
class _Asked:
    """A request that was looked through.

    Attributes:
        body: the request.
        contents: its query, and the documents that it brings.
        threshold: from what relevance a document is kept.
        token_limit: of a prompt.
    """

    body: SearchBody
    contents: Contents
    threshold: float
    token_limit: int | None


@dataclass(frozen=True)
class _Ranking:
    """Candidates and their scores.

    Attributes:
        documents: the candidates, in the retriever's order.
        ids: theirs.
        retrieved_by: what they were retrieved by; None where they were given.
        pairs: their scores by place; of a document of the index that cannot be used there is none.
        order: places, the most relevant first.
        threshold: from what relevance a document is kept.
        retriever_weight: how much the retriever's order counts.
    """

    documents: Sequence[Document]
    ids: Sequence[str | None]
    retrieved_by: Sequence[float] | None
    pairs: dict[int, ScoredPair]
    order: list[int]
    threshold: float
    retriever_weight: float

    def is_kept(self, place: int) -> bool:
        """Whether the document at `place` reaches the threshold."""
        return self.pairs[place].score >= self.threshold


async def _asked(request: Request, body: SearchBody) -> _Asked:
    """Checks all that can be checked before anything is computed."""
    services = services_of(request)
    check_model(request, body.model)
    threshold = threshold_of(request, body.threshold)
    if body.documents is None:
        index_of(services)
        most = services.settings.max_documents
        if body.num_candidates > most:
            raise Unprocessable(
                f"num_candidates: this server reranks {most:,} documents of a request",
                param="num_candidates",
            )
    documents = listed("documents", body.documents or [])
    query = Placed("query", body.query)
    contents = await contents_of(request, [query], documents, body.instruction)
    limit = services.settings.max_tokens
    return _Asked(body, contents, threshold, limit)


def _question(asked: _Asked) -> str:
    """What the generator is asked, which reads no pictures but those of documents."""
    (query,) = asked.contents.queries
    if query.text is None or query.pictures:
        raise Unprocessable("query: a question to be answered is a text", param="query")
    return query.text


async def _ranking(pipeline: Pipeline, asked: _Asked) -> _Ranking:
    """Retrieves candidates, where the request brings none, and scores them."""
    contents = asked.contents
    (query,) = contents.queries
    documents, places, retrieved_by = contents.documents, contents.places, None
    ids = [document.id for document in documents]
    if asked.body.documents is None:
        found = await pipeline.retrieve(query, asked.body.num_candidates)
        documents, ids = [hit.document for hit in found], [hit.id for hit in found]
        places = [f"retrieved[{i}]" for i in range(len(found))]
        retrieved_by = [hit.score for hit in found]
    results = await pipeline.score([(query, document) for document in documents])
    chosen = list(range(len(results))) if retrieved_by is None else _usable(results)
    scores = checked_scores(
        [results[i] for i in chosen],
        [(query, documents[i]) for i in chosen],
        [places[i] for i in chosen],
        asked.token_limit,
    )
    weight = 0.0 if retrieved_by is None else pipeline.retriever_weight
    prior = place_prior(len(documents), weight)
    raw = [one.raw for one in scores]
    order = [chosen[i] for i in relevance_order(raw, [prior[i] for i in chosen])]
    pairs = dict(zip(chosen, scores, strict=True))
    return _Ranking(documents, ids, retrieved_by, pairs, order, asked.threshold, weight)


def _usable(results: Sequence[ScoredPair | Exception]) -> list[int]:
    """Places of documents of the index without its broken ones, which a client cannot mend.

    Raises:
        UnreadableDocument: all are broken.
    """
    usable = [i for i, one in enumerate(results) if not isinstance(one, _OF_A_DOCUMENT)]
    # Where each prompt is too long, it is for the query
    too_long = [i for i, one in enumerate(results) if isinstance(one, PromptTooLongError)]
    if not (usable or too_long):
        raise UnreadableDocument("none of the documents that were retrieved can be read")
    return usable or too_long


def _told(ranking: _Ranking, asked: _Asked, pipeline: Pipeline) -> dict[str, Any]:
    """What the answers of both routes hold."""
    shown = ranking.order[: asked.body.top_n or None]
    unusable = [id for place, id in enumerate(ranking.ids) if place not in ranking.pairs]
    return {
        "model": pipeline.model_name,
        "threshold": ranking.threshold,
        "retriever_weight": ranking.retriever_weight or None,
        "results": [_found(ranking, place, asked.body) for place in shown],
        "unusable": unusable or None,
        "usage": usage_of(list(ranking.pairs.values())),
        "timings": pipeline.timings,
        "built": pipeline.built,
    }


def _found(ranking: _Ranking, place: int, body: SearchBody) -> Found:
    document, pair = ranking.documents[place], ranking.pairs[place]
    return Found(
        index=place,
        id=ranking.ids[place],
        retrieval_score=None if ranking.retrieved_by is None else ranking.retrieved_by[place],
        relevance_score=pair.score,
        raw_score=pair.raw,
        kept=ranking.is_kept(place),
        document=RankedText(text=texts_of(document)) if body.return_documents else None,
    )
