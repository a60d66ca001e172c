"""`/v1/search` and `/v1/answer`: RagVL's stages over an index, or over documents that are given."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ragvl.server.protocol.common import (
    Answer,
    Built,
    Documents,
    ModelBody,
    Positive,
    QueryLike,
    Timings,
    Usage,
)
from ragvl.server.protocol.rerank import OrderBody, RerankResult

_QUESTION = "Which town has a red tower?"


class SearchBody(OrderBody, ModelBody):
    """A query, and how much is to be found for it."""

    model_config = ConfigDict(json_schema_extra={"example": {"query": _QUESTION, "top_n": 5}})

    query: QueryLike
    documents: Documents | None = Field(
        None, description="In the index's place: all of them are reranked, in this order."
    )
    num_candidates: Positive = Field(
        20, description="How many documents are retrieved from the index, and reranked."
    )

    @model_validator(mode="after")
    def _check(self) -> SearchBody:
        if self.documents is not None and "num_candidates" in self.model_fields_set:
            raise PydanticCustomError(
                "both", "num_candidates is of the index: documents that are given are all reranked"
            )
        return self


class AnswerBody(SearchBody):
    """A question, and from how much it is answered."""

    model_config = ConfigDict(json_schema_extra={"example": {"query": _QUESTION}})

    top_k: Positive = Field(
        2, description="From how many documents at most; only what is kept counts."
    )
    max_tokens: Positive = Field(32, description="How many tokens the answer has at most.")


class Found(RerankResult):
    """A document after retrieving and reranking."""

    index: int = Field(description="Its place in the retriever's order, or in `documents`.")
    retrieval_score: float | None = Field(
        None,
        description="What it was retrieved by: its cosine, or of an index of pictures and captions "
        "what their fusion counted. Of a given document there is none.",
    )


class SearchAnswer(Answer):
    """Documents by relevance, and where that counts by the index's order; the first comes first."""

    id: str
    model: str
    threshold: float = Field(description="From what relevance a document is kept.")
    retriever_weight: float | None = Field(
        None,
        description="How much the index's order counts: a `raw_score` is lowered by so many times "
        "the logarithm of the document's place in it. Absent where it does not count.",
    )
    results: list[Found]
    unusable: list[str] | None = Field(
        None, description="Ids of retrieved documents without a score: the index's broken ones."
    )
    usage: Usage
    timings: Timings
    built: Built


class GeneratedAnswer(SearchAnswer):
    """An answer, and all that came before it."""

    answer: str
    grounded: bool = Field(
        description="false: no document was kept, and the question was answered without any."
    )
    evidence: list[int] = Field(
        description="What it was answered from: each one's `index`, the most relevant first."
    )
