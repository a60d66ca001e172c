"""What an evaluation measured: the schema of `result.json` and of `ragvl demo --json`.

`EvaluationResult` is the whole file. A record is an object of JSON, whose keys are the record's
fields in their order; a mapping by name is one too. `to_json` writes records, `from_json` and
`read_result` read and check them. These differ from the plain rule:

- A field marked `ABSENT` has no key while it is None or empty: a pool without known gold documents
  has no "retrieved", an evaluation that was compared with none has no "compared".
- `AnswerFigures.measures` stand beside "by_category", each under its own name, such as "accuracy".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from ragvl.data.questions import Pool
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.files import open_regular
from ragvl.messages import shown, validation_reason

Record = TypeVar("Record")
Count = Annotated[int, Field(ge=0)]

_MAX_BYTES = 2**30  # of a file


class ResultFileError(ValueError):
    """A file holds no such result; the message names it, and the place."""


ABSENT = {"absent": True}
"""Metadata of a field that has no key in JSON while it is None or an empty mapping."""


# --- the schema ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A share, or a difference of shares, with its 95 % interval.

    Attributes:
        value: the share; None where it would divide by nothing.
        low: the interval's lower end; None for fewer than two groups of questions.
        high: its upper end.
        num_questions: over how many questions; 0 of a difference between evaluations.
    """

    value: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None
    num_questions: Count


Figures = dict[str, Figure]


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of nearly the same relevance.

    Attributes:
        relevance: their mean relevance.
        gold: the share of them whose document is gold.
        low: the lower end of that share's 95 % interval; None as of a `Figure`.
        high: its upper end.
        count: how many pairs.
    """

    relevance: FiniteFloat
    gold: FiniteFloat
    low: FiniteFloat | None
    high: FiniteFloat | None
    count: Count


@dataclass(frozen=True)
class Reliability:
    """Whether relevance is the share of gold documents among pairs of that relevance.

    Attributes:
        bins: of equal width, those that hold any pair.
        error: the expected calibration error: the mean distance of relevance and share, each bin by
            its number of pairs.
    """

    bins: list[ReliabilityBin]
    error: Figure


@dataclass(frozen=True)
class RecallScores:
    """Relevance of the documents that reranking put among a question's first `top_k`.

    Attributes:
        correct: of gold documents.
        erroneous: of the others.
    """

    correct: list[float]
    erroneous: list[float]


@dataclass(frozen=True)
class AnswerFigures:
    """How right answers are; empty where no question's answer is known.

    Attributes:
        measures: by name, the main one first.
        by_category: the main measure of each category of questions.
    """

    measures: Figures
    by_category: Figures = field(default_factory=dict, metadata=ABSENT)

    @model_validator(mode="before")
    @classmethod
    def _gather_measures(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        measures = dict(value)
        by_category = measures.pop("by_category", {})
        return {"measures": measures, "by_category": by_category}


@dataclass(frozen=True, kw_only=True)
class PoolResult:
    """What was measured of retrieving from one pool.

    Attributes:
        num_documents: in the pool.
        searched_documents: among how many of them a question was searched, on average; None if that
            is not known.
        retrieved: figures of the retriever's order: "recall@1", ..., "mrr", "ndcg@10". This and the
            figures down to `recalls` are about questions whose gold documents are known, and absent
            where there are none.
        alone: the same of each encoder's order, "picture" and "caption", where the retriever's is
            made of both; else absent.
        chance: the same of a random order, as it is on average.
        ceiling: the same of the retriever's candidates in the best possible order: what reranking
            can reach at most.
        reranked: the same of the reranker's order, in which the retriever's may count.
        reranker_alone: the same of the reranker's order without it, where it does; else absent.
        gain: how far `reranked` lies above `retrieved`, question by question.
        kept: by threshold, and "retrieved" for the retriever's first: "precision", "recall", "f1".
        reliability: of the relevance of all candidates.
        recalls: relevance of the documents that were ranked first.
        answers: by what they are from: "retrieved", a threshold, "gold", "none"; empty without a
            generator.
        estimated_otherwise: in what the estimation of thresholds and of the retriever's weight
            differs; no precision is promised where it differs in anything.
    """

    num_documents: Count
    searched_documents: Count | None = field(default=None, metadata=ABSENT)
    retrieved: Figures = field(default_factory=dict, metadata=ABSENT)
    alone: dict[str, Figures] = field(default_factory=dict, metadata=ABSENT)
    chance: Figures = field(default_factory=dict, metadata=ABSENT)
    ceiling: Figures = field(default_factory=dict, metadata=ABSENT)
    reranked: Figures = field(default_factory=dict, metadata=ABSENT)
    reranker_alone: Figures = field(default_factory=dict, metadata=ABSENT)
    gain: Figures = field(default_factory=dict, metadata=ABSENT)
    kept: dict[str, Figures] = field(default_factory=dict, metadata=ABSENT)
    reliability: Reliability | None = field(default=None, metadata=ABSENT)
    recalls: RecallScores | None = field(default=None, metadata=ABSENT)
    answers: dict[str, AnswerFigures]
    estimated_otherwise: list[str]


@dataclass(frozen=True)
class EstimatedOn:
    """What thresholds and the retriever's weight were estimated on.

    Attributes:
        data: the data set.
        pool: what was retrieved from.
        num_candidates: how many documents were reranked.
        top_k: how many were kept at most.
        num_questions: how many questions.
        refused: why a threshold could not be estimated, by name.
        num_documents: among how many a question was searched; None if that is not known.
    """

    data: str
    pool: str
    num_candidates: int
    top_k: int
    num_questions: Count
    refused: dict[str, str]
    num_documents: Count | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True)
class ModelFingerprints:
    """Names of the models' weights.

    Attributes:
        encoder: of the retriever's pictures; None without one.
        reranker: of the reranker.
        generator: of the generator; None without one.
        text_encoder: of the retriever's captions and texts; absent without one.
        fusion: what makes one order of both; absent of one encoder.
        retriever_weight: how much the retriever's order counts in reranking; absent where it does
            not.
    """

    encoder: str | None
    reranker: str
    generator: str | None
    text_encoder: str | None = field(default=None, metadata=ABSENT)
    fusion: str | None = field(default=None, metadata=ABSENT)
    retriever_weight: float | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True)
class ComparedFigure:
    """A figure `here`, the same of another evaluation (`there`), and the `change` to here."""

    here: Figure
    there: Figure
    change: Figure


@dataclass(frozen=True)
class Comparison:
    """How far figures lie above another evaluation's, of other data or other models.

    Attributes:
        data: the other one's data set.
        num_questions: its number of questions.
        pools: by pool and by name, the figures that both have.
    """

    data: str
    num_questions: Count
    pools: dict[str, dict[str, ComparedFigure]]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """What an evaluation measured.

    Attributes:
        data: the data set's name.
        num_questions: how many questions were evaluated.
        categories: how many of them are of each category.
        settings: what was evaluated; `top_k` is never None.
        thresholds: from what relevance, by name.
        estimated_on: what they were estimated on; None where none was.
        pools: by pool.
        latency_ms: by stage, milliseconds of each timed question.
        median_ms: their medians.
        seconds: how long the whole took, but for `latency_ms`.
        problems: how many of each kind the data had.
        lemmatizer: what brought WebQA's answers to their base form; None for other data.
        models: which ones.
        date: the day, in UTC.
        machine: the processor, the GPUs, and what kernels use of them.
        versions: of the packages that matter.
        paths: where data and models came from, by stage; absent from the demo.
        compared: how far the figures lie from another evaluation's; absent without one.
    """

    data: str
    num_questions: Count
    categories: dict[str, int]
    settings: EvaluationSettings
    thresholds: dict[str, float]
    estimated_on: EstimatedOn | None
    pools: dict[Pool, PoolResult]
    latency_ms: dict[str, list[float]]
    median_ms: Figures
    seconds: float
    problems: dict[str, int]
    lemmatizer: str | None
    models: ModelFingerprints
    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    paths: dict[str, str] = field(default_factory=dict, metadata=ABSENT)
    compared: Comparison | None = field(default=None, metadata=ABSENT)

    @property
    def first_pool(self) -> Pool:
        """The pool that is shown where only one is."""
        return self.settings.pools[0]

    @property
    def first_threshold(self) -> str:
        """The threshold that is shown where only one is."""
        return next(iter(self.thresholds))


# --- JSON ---------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Records, mappings and lists of them as what `json.dumps` takes."""
    if isinstance(value, AnswerFigures):
        by_category = {"by_category": to_json(value.by_category)} if value.by_category else {}
        return {**to_json(value.measures), **by_category}
    if is_dataclass(value):
        named = {one.name: getattr(value, one.name) for one in fields(value)}
        omitted = {
            one.name
            for one in fields(value)
            if one.metadata.get("absent") and named[one.name] in (None, {})
        }
        return {name: to_json(of_name) for name, of_name in named.items() if name not in omitted}
    if isinstance(value, Mapping):
        return {key: to_json(of_key) for key, of_key in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[Record], value: Any) -> Record:
    """A record from what `json.loads` gave.

    Raises:
        ValueError: it is no such record; the message names the place.
    """
    return TypeAdapter(kind).validate_python(value)


def read_result(kind: type[Record], path: str | Path, what: str) -> Record:
    """A record from a file of JSON.

    Args:
        kind: the record's class.
        path: the file.
        what: what the file should be, in the words of a message.

    Raises:
        ResultFileError: the file holds something else.
        OSError: it cannot be read.
    """
    with open_regular(path, max_bytes=_MAX_BYTES) as file:
        content = file.read()
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        why = validation_reason(error)
        raise ResultFileError(f"{shown(path)} is not {what}: {why}") from error


def read_evaluation(path: str | Path) -> EvaluationResult:
    """The `result.json` of `ragvl evaluate`; raises as `read_result` does."""
    return read_result(EvaluationResult, path, "a result.json of `ragvl evaluate`")
