"""`/score` of vLLM: pairs of two inputs, one to one or one to all."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ragvl.server.protocol.common import (
    FIRST_ERROR,
    Answer,
    Built,
    DocumentBody,
    DocumentLike,
    Documents,
    QueryBody,
    QueryLike,
    ScoringBody,
    Timings,
    Usage,
    has,
)


def _as_list(given: object) -> object:
    return given if isinstance(given, list) else [given]


_Queries = Annotated[list[QueryLike], Field(min_length=1), FIRST_ERROR]
Queries = Annotated[
    _Queries,
    BeforeValidator(_as_list, json_schema_input_type=QueryLike | _Queries),
]
Seconds = Annotated[
    Documents,
    BeforeValidator(_as_list, json_schema_input_type=DocumentLike | Documents),
]
_WAYS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))


def _alone(way: tuple[str, str]) -> dict[str, Any]:
    """JSON Schema of a body with these two fields and not the others."""
    others = {name for names in _WAYS for name in names}.difference(way)
    return has(*way, **{name: {"type": "null"} for name in sorted(others)})


class ScoreBody(ScoringBody):
    """Queries and documents, under one of four pairs of names.

    One query goes with every document; of several there are as many as documents.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "queries": "Which town has a red tower?",
                "documents": ["Velmora has a red tower.", "Ashby has a blue mill."],
            },
            "oneOf": [_alone(way) for way in _WAYS],
        }
    )

    queries: Queries | None = None
    documents: Seconds | None = None
    items: Seconds | None = None
    text_1: Queries | None = None
    text_2: Seconds | None = None
    data_1: Queries | None = None
    data_2: Seconds | None = None

    @model_validator(mode="after")
    def _check(self) -> ScoreBody:
        given = {name for way in _WAYS for name in way if getattr(self, name) is not None}
        if given not in map(set, _WAYS):
            known = ", or ".join(" and ".join(way) for way in _WAYS)
            raise PydanticCustomError("way", "give {known}", {"known": known})
        (first, queries), (second, documents) = self.first, self.second
        if len(queries) not in (1, len(documents)):
            raise PydanticCustomError(
                "counts",
                "{first} has {queries} and {second} {documents}: give one, or as many",
                {
                    "first": first,
                    "second": second,
                    "queries": len(queries),
                    "documents": len(documents),
                },
            )
        return self

    @property
    def first(self) -> tuple[str, list[QueryBody]]:
        """The field that holds the queries, and them."""
        names = ("queries", "text_1", "data_1")
        return next((n, getattr(self, n)) for n in names if getattr(self, n) is not None)

    @property
    def second(self) -> tuple[str, list[DocumentBody]]:
        """The field that holds the documents, and them."""
        names = ("documents", "items", "text_2", "data_2")
        return next((n, getattr(self, n)) for n in names if getattr(self, n) is not None)


class PairScore(Answer):
    """The score of a pair."""

    index: int
    object: Literal["score"] = "score"
    score: float = Field(description="Relevance, a probability; raw with use_activation=false.")
    raw_score: float


class ScoreAnswer(Answer):
    """Scores in the order of the documents."""

    id: str
    object: Literal["list"] = "list"
    created: int = Field(description="Seconds since 1970.")
    model: str
    data: list[PairScore]
    usage: Usage
    timings: Timings
    built: Built
