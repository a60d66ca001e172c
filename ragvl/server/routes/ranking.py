"""`POST /v1/ranking`: passages by relevance, as NVIDIA's NIM answers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from ragvl.server.bodies import json_answer, read_body
from ragvl.server.contents import Placed, listed
from ragvl.server.protocol.openapi import OF_BODY, OF_MODEL, errors, json_body
from ragvl.server.protocol.ranking import Ranking, RankingAnswer, RankingBody
from ragvl.server.scoring import check_model, score_pairs
from ragvl.server.services import services_of

router = APIRouter(tags=["scores"])


@router.post(
    "/v1/ranking",
    summary="Rank passages",
    openapi_extra=json_body(RankingBody),
    response_model=RankingAnswer,
    responses=errors(*OF_BODY, *OF_MODEL),
)
async def ranking(request: Request) -> Response:
    """Passages by relevance to a query, the most relevant first, with their raw scores."""
    body = await read_body(request, lambda _: RankingBody)
    check_model(request, body.model)
    query, passages = Placed("query", body.query), listed("passages", body.passages)
    scores = await score_pairs(request, [query], passages)
    rankings = [Ranking(index=i, logit=scores.pairs[i].raw) for i in scores.order()]
    return json_answer(
        RankingAnswer(
            rankings=rankings,
            model=services_of(request).model_name,
            usage=scores.usage,
            timings=scores.timings,
            built=scores.built,
        )
    )
