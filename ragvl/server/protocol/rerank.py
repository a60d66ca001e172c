"""`/rerank` of Cohere, Jina and vLLM, in one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from ragvl.server.protocol.common import (
    Answer,
    Body,
    Built,
    Documents,
    Natural,
    QueryLike,
    ScoringBody,
    Timings,
    Unchanged,
    Usage,
)

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class OrderBody(Body):
    """What is to be returned of documents in order."""

    top_n: Natural | None = Field(None, description="How many to return; 0 means all.")
    return_documents: bool | None = Field(
        None, description="Whether results hold their documents' texts. Pictures never come back."
    )
    threshold: Probability | str | None = Field(
        None,
        description='What `kept` means: a probability, "natural" (0.5), or a name that was '
        "estimated for this model; the server's own by default.",
    )


class RerankBody(OrderBody, ScoringBody):
    """A query, and documents to rank for it."""

    model_config = ConfigDict(
        title="RerankBody",
        json_schema_extra={
            "example": {
                "query": "Which town has a red tower?",
                "documents": ["Velmora has a red tower.", "Ashby has a blue mill."],
                "top_n": 1,
            }
        },
    )

    query: QueryLike
    documents: Documents
    raw_scores: bool | None = Field(None, description="true: raw scores as `relevance_score`.")
    provider: Unchanged[dict[str, Any] | None] = None

    @property
    def wants_raw(self) -> bool:
        """Whether `relevance_score` is to be the raw score."""
        return bool(self.raw_scores) or self.use_activation is False


class RankedText(Answer):
    """What is given back of a document."""

    text: str | None = Field(None, description="Its text or caption; of parts, all texts.")


class RerankResult(Answer):
    """A document after reranking."""

    index: int = Field(description="Its place in `documents`.")
    relevance_score: float = Field(description="Relevance, a probability.")
    raw_score: float = Field(description="The raw score, by which results are in order.")
    kept: bool = Field(description="Whether its relevance reaches the threshold.")
    id: str | None = Field(None, description="Its id, where it has one.")
    document: RankedText | None = None


class RerankAnswer(Answer):
    """Documents by relevance, the most relevant first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage
    timings: Timings
    built: Built
