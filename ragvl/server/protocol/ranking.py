"""`/v1/ranking` of NVIDIA's NIM."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from ragvl.server.protocol.common import Answer, Body, Built, Documents, QueryLike, Timings, Usage


class RankingBody(Body):
    """A query, and passages to rank for it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "query": {"text": "Which town has a red tower?"},
                "passages": [{"text": "Velmora has a red tower."}],
            }
        }
    )

    model: str | None = Field(None, description="This server's model; any other is a 404.")
    query: QueryLike
    passages: Documents
    truncate: Literal["NONE", "END"] | None = Field(
        None, description="Nothing is cut here: what is too long is refused in any case."
    )


class Ranking(Answer):
    """A passage after reranking."""

    index: int
    logit: float = Field(description="The raw score.")


class RankingAnswer(Answer):
    """Passages by relevance, the most relevant first."""

    rankings: list[Ranking]
    model: str
    usage: Usage
    timings: Timings
    built: Built
