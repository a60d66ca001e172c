"""`POST /score`: the relevance of each pair, in order."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from ragvl.server.bodies import json_answer, read_body
from ragvl.server.contents import listed
from ragvl.server.protocol.openapi import OF_BODY, OF_MODEL, errors, json_body
from ragvl.server.protocol.score import PairScore, ScoreAnswer, ScoreBody
from ragvl.server.scoring import answer_id, check_model, score_pairs
from ragvl.server.services import services_of

router = APIRouter(tags=["scores"])


async def score(request: Request) -> Response:
    """Scores of pairs: one query with every document, or as many queries as documents."""
    body = await read_body(request, lambda _: ScoreBody)
    check_model(request, body.model)
    queries, documents = listed(*body.first), listed(*body.second)
    scores = await score_pairs(
        request,
        queries,
        documents,
        instruction=body.instruction,
        token_limit=body.token_limit,
    )
    is_raw = body.use_activation is False
    data = [
        PairScore(index=i, score=pair.raw if is_raw else pair.score, raw_score=pair.raw)
        for i, pair in enumerate(scores.pairs)
    ]
    return json_answer(
        ScoreAnswer(
            id=answer_id("score"),
            created=int(time.time()),
            model=services_of(request).model_name,
            data=data,
            usage=scores.usage,
            timings=scores.timings,
            built=scores.built,
        )
    )


for _path in ("/score", "/v1/score"):
    router.add_api_route(
        _path,
        score,
        methods=["POST"],
        summary="Score pairs",
        openapi_extra=json_body(ScoreBody),
        response_model=ScoreAnswer,
        responses=errors(*OF_BODY, *OF_MODEL),
    )
