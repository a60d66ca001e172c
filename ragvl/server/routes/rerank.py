"""`POST /rerank`: documents by relevance to a query."""

from __future__ import annotations

import string
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from ragvl.server.bodies import json_answer, json_list, read_body
from ragvl.server.contents import Placed, listed
from ragvl.server.protocol.openapi import OF_BODY, OF_MODEL, errors, json_body
from ragvl.server.protocol.rerank import RankedText, RerankAnswer, RerankBody, RerankResult
from ragvl.server.protocol.tei import TeiRank, TeiRerankBody
from ragvl.server.scoring import (
    answer_id,
    check_model,
    score_pairs,
    texts_of,
    threshold_of,
)
from ragvl.server.services import services_of

_OF_A_HEADER = string.punctuation + " "  # beside letters and digits: as it is

router = APIRouter(tags=["scores"])


def _schema(value: Any) -> type[RerankBody | TeiRerankBody]:
    return TeiRerankBody if isinstance(value, dict) and "texts" in value else RerankBody


async def rerank(request: Request) -> Response:
    """Documents by relevance to a query, the most relevant first.

    Takes the bodies of Cohere, Jina and vLLM, and that of Text Embeddings Inference, which has
    `texts` and is answered with a bare list.
    """
    body = await read_body(request, _schema)
    if isinstance(body, TeiRerankBody):
        return await _rerank_texts(request, body)
    return await _rerank(request, body)


for _path in ("/rerank", "/v1/rerank", "/v2/rerank"):
    router.add_api_route(
        _path,
        rerank,
        methods=["POST"],
        summary="Rank documents",
        openapi_extra=json_body(RerankBody, TeiRerankBody),
        response_model=RerankAnswer | list[TeiRank],
        responses=errors(*OF_BODY, *OF_MODEL),
    )


async def _rerank(request: Request, body: RerankBody) -> Response:
    check_model(request, body.model)
    threshold = threshold_of(request, body.threshold)
    query, documents = Placed("query", body.query), listed("documents", body.documents)
    scores = await score_pairs(
        request,
        [query],
        documents,
        instruction=body.instruction,
        token_limit=body.token_limit,
    )
    results = []
    for i in scores.order(body.top_n):
        pair, document = scores.pairs[i], scores.documents[i]
        results.append(
            RerankResult(
                index=i,
                relevance_score=pair.raw if body.wants_raw else pair.score,
                raw_score=pair.raw,
                kept=pair.score >= threshold,
                id=document.id,
                document=RankedText(text=texts_of(document)) if body.return_documents else None,
            )
        )
    return json_answer(
        RerankAnswer(
            id=answer_id("rerank"),
            model=services_of(request).model_name,
            results=results,
            usage=scores.usage,
            timings=scores.timings,
            built=scores.built,
        )
    )


async def _rerank_texts(request: Request, body: TeiRerankBody) -> Response:
    check_model(request, body.model)
    query, texts = Placed("query", body.query), listed("texts", body.texts)
    scores = await score_pairs(request, [query], texts)
    ranks = [
        TeiRank(
            index=i,
            score=scores.pairs[i].raw if body.raw_scores else scores.pairs[i].score,
            text=texts_of(scores.documents[i]) if body.return_text else None,
        )
        for i in scores.order(body.top_n)
    ]
    # A bare list has no place for them
    headers = {
        "X-Model": quote(services_of(request).model_name, safe=_OF_A_HEADER),
        "X-Compute-Tokens": str(scores.usage.total_tokens),
    }
    return json_list(ranks, headers)
