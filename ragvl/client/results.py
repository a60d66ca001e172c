"""What the server answers, as Python."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasPath, BaseModel, ConfigDict, Field


class _Result(BaseModel):
    """A part of an answer; fields that it does not know are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Usage(_Result):
    """What a request cost.

    Attributes:
        prompt_tokens: tokens of all its prompts.
        cached_tokens: of these, what was not computed again.
    """

    prompt_tokens: int
    cached_tokens: int = Field(
        0, validation_alias=AliasPath("prompt_tokens_details", "cached_tokens")
    )


class _Answered(_Result):
    """What every answer of a model holds.

    Attributes:
        model: which it was.
        usage: what it cost.
        timings: milliseconds of each stage in the server, such as "queue" and "score".
        built: documents whose prefix was computed for this request.
    """

    model: str
    usage: Usage
    timings: dict[str, float] = Field(default_factory=dict)
    built: int = 0


class Ranked(_Result):
    """A document after reranking.

    Attributes:
        index: its place in the list that was given.
        score: relevance, a probability.
        raw: the raw score, by which documents are ordered.
        kept: whether the score reaches the threshold.
        id: the document's, if it has one.
        document: what stood in the list.
    """

    index: int = Field(ge=0)
    score: float = Field(validation_alias="relevance_score")
    raw: float = Field(validation_alias="raw_score")
    kept: bool
    id: str | None = None
    document: Any = Field(None, repr=False)


class Reranking(_Answered):
    """Documents by relevance, the most relevant first."""

    results: tuple[Ranked, ...]


class Found(Ranked):
    """A document after retrieving and reranking; `index` is its place in the retriever's order.

    Attributes:
        retrieval_score: the cosine by which it was retrieved; None of a document that was given.
        text: its texts, or its picture's caption.
    """

    retrieval_score: float | None = None
    text: str | None = None


class Search(_Answered):
    """Documents by relevance, the most relevant first.

    Attributes:
        threshold: the relevance that a document is kept from.
        retriever_weight: how much the index's order counts beside relevance; 0 where it does not.
        unusable: ids of retrieved documents that have no score, such as of a broken picture.
    """

    threshold: float
    retriever_weight: float = 0.0
    results: tuple[Found, ...]
    unusable: tuple[str, ...] = ()


class Answer(Search):
    """An answer, and the documents that came before it.

    Attributes:
        text: the answer.
        grounded: False when no document was kept, and the question was answered without any.
        evidence: the documents that it was answered from, the most relevant first.
    """

    text: str = Field(validation_alias="answer")
    grounded: bool
    evidence: tuple[Found, ...]


class KeptDocument(_Result):
    """A document that the server keeps.

    Attributes:
        id: its id.
        prefix: whether what is kept of it for queries was "built" now, or "known"; "none" of a
            model of which nothing is kept.
    """

    id: str
    prefix: Literal["built", "known", "none"]


class Kept(_Answered):
    """Documents that the server keeps, in the order in which they were given."""

    documents: tuple[KeptDocument, ...] = Field(validation_alias="data")


class KnownDocument(_Result):
    """A document that the server knows.

    Attributes:
        id: its id.
        source: "stored" where it was put, "index" where the index holds it.
        text: its texts, or its picture's caption; in a list, the beginning.
        num_pictures: how many pictures it has.
        bytes: of its texts and pictures, where it was put.
        created: when it was first put, in seconds since 1970.
        warm: whether a query about it costs its own tokens only; None in a list.
    """

    id: str
    source: Literal["stored", "index"]
    text: str | None = None
    num_pictures: int
    bytes: int | None = None
    created: float | None = None
    warm: bool | None = None


class KnownDocuments(_Result):
    """Documents that the server knows, in the order of their ids.

    Attributes:
        documents: some of them.
        has_more: whether there are others after the last of these.
    """

    documents: tuple[KnownDocument, ...] = Field(validation_alias="data")
    has_more: bool


class Scores(_Answered):
    """Relevance of pairs, in the order in which they were given."""

    scores: tuple[float, ...]
