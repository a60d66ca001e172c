"""`/rerank` of Text Embeddings Inference: known by `texts`, answered with a bare list."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from ragvl.server.protocol.common import Answer, Body, Documents, Natural, QueryLike, Unchanged


class TeiRerankBody(Body):
    """A query, and texts to rank for it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "query": "Which town has a red tower?",
                "texts": ["Velmora has a red tower.", "Ashby has a blue mill."],
            }
        }
    )

    query: QueryLike
    texts: Documents
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = Field(
        None, description="Nothing is cut here: what is too long is refused in any case."
    )
    truncation_direction: Unchanged[Literal["left", "right", "Left", "Right"] | None] = None
    model: str | None = None
    top_n: Natural | None = Field(None, description="How many to return; 0 means all.")


class TeiRank(Answer):
    """A text after reranking."""

    index: int
    score: float = Field(description="Relevance, a probability; the raw score with `raw_scores`.")
    text: str | None = None
