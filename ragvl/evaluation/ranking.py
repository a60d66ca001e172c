"""Retrieves and reranks the documents of each question, resumably."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ragvl.blocks import Done, MapBlocks
from ragvl.data.questions import Pool, Question, QuestionSet, one_of_each_kind
from ragvl.evaluation.journal import Journal
from ragvl.evaluation.models import Models
from ragvl.evaluation.pace import Pace
from ragvl.evaluation.vectors import DocumentVectors
from ragvl.evaluation.works import SCORE, Pair
from ragvl.identity import name_of
from ragvl.reranker import Reranker, place_prior, relevance_order
from ragvl.reranker.heads import relevance
from ragvl.retriever import (
    Fusion,
    Hits,
    Order,
    OrderHits,
    WeightedSum,
    estimate_weight,
    fuse,
    search_views,
)

_DOCUMENTS_AT_ONCE = 256  # their pictures are in memory
_QUESTIONS_AT_ONCE = 64  # searched for together, with a thousand hits each


@dataclass(frozen=True)
class Candidate:
    """A document that was retrieved for a question.

    Attributes:
        id: the document's.
        score: what the retriever ordered it by: its and the question's cosine, or what a fusion
            counted.
        relevance: by the reranker; NaN where the document could not be used.
        raw: its raw score, by which candidates are ordered: probabilities near 1 may be equal.
    """

    id: str
    score: float
    relevance: float
    raw: float

    @property
    def is_scored(self) -> bool:
        """Whether it could be used."""
        return not math.isnan(self.relevance)


@dataclass(frozen=True)
class Ranking:
    """A question's candidates, the most relevant to the retriever first.

    Attributes:
        question: the question.
        retrieved: the candidates.
        alone: ids by each order alone, as many, where the retriever's is made of two.
        num_documents: how many were searched; 0 if that is not known.
        retriever_weight: how much the retriever's order counts in reranking; see `place_prior`.
    """

    question: Question
    retrieved: Sequence[Candidate]
    alone: Mapping[Order, Sequence[str]] = field(default_factory=dict)
    num_documents: int = 0
    retriever_weight: float = 0.0

    @property
    def reranked(self) -> list[Candidate]:
        """The same, the most relevant first."""
        raw = [candidate.raw for candidate in self.retrieved]
        prior = place_prior(len(raw), self.retriever_weight)
        return [self.retrieved[place] for place in relevance_order(raw, prior)]

    @property
    def by_reranker_alone(self) -> Ranking:
        """The same, in whose reranking the retriever's order does not count."""
        return replace(self, retriever_weight=0.0)

    def kept(self, top_k: int, threshold: float) -> tuple[str, ...]:
        """Ids of the first `top_k`, but for those below the threshold."""
        return tuple(c.id for c in self.reranked[:top_k] if c.relevance >= threshold)

    def recalls(self, top_k: int) -> list[Candidate]:
        """What reranking put among the first `top_k`, but for pictures that cannot be used."""
        return [c for c in self.reranked if c.is_scored][:top_k]


def searched_documents(rankings: Sequence[Ranking]) -> int:
    """Among how many documents a question is searched, on average; 0 if that is not known."""
    return round(sum(one.num_documents for one in rankings) / len(rankings)) if rankings else 0


def answerable(
    source: QuestionSet, questions: Sequence[Question], vectors: DocumentVectors
) -> list[Question]:
    """The questions that can be read, as their gold documents can all; others are problems.

    As a gold document without a picture, so one with a broken picture leaves nothing to retrieve.

    Raises:
        ValueError: there is none.
        DataError: there is one that is not, and the data set is strict.
    """
    usable = list(source.answerable(questions, vectors))
    if not usable:
        raise ValueError(f"{source.name} has no question whose gold documents can all be read")
    return usable


def check_prompts(source: QuestionSet, questions: Sequence[Question], reranker: Reranker) -> None:
    """Refuses documents and questions that the reranker's prompts have no place for.

    Raises:
        DocumentError: there is such a document; the message names it.
        ValueError: there is such a question; the message names it.
    """
    documents = list(one_of_each_kind(source.other_documents()))
    queries = {question.image is None: question.query for question in questions}
    if False in queries and not documents:
        documents = list(islice(source.documents(), 1))
    for query in queries.values():
        for document in documents:
            reranker.prompt(query, document)


def rank_questions(
    source: QuestionSet,
    questions: Sequence[Question],
    models: Models,
    vectors: DocumentVectors,
    work: Path,
    *,
    pools: Sequence[Pool],
    num_candidates: int,
    map_blocks: MapBlocks,
    swapped: Mapping[str, str] | None = None,
    progress: bool = True,
) -> dict[Pool, list[Ranking]]:
    """Candidates of each question and pool with their relevance; a pair is scored once.

    Args:
        source: the data.
        questions: which of its questions.
        models: the stages.
        vectors: of the documents.
        work: a folder that keeps raw scores.
        pools: what is retrieved from.
        num_candidates: how many documents the retriever hands over.
        map_blocks: scores; see `evaluation_works`.
        swapped: documents in whose place others are handed over; see `wrong_pictures`.
        progress: show progress bars.

    Raises:
        DataError: a pair cannot be scored, and the data set is strict.
    """
    swapped = swapped or {}
    found = {
        pool: {
            id: replace(one, hits=[(swapped.get(id, id), score) for id, score in one.hits])
            for id, one in retrieve(
                source, pool, questions, models.fusion, vectors, num_candidates
            ).items()
        }
        for pool in pools
    }
    scores = PairScores(source, models.reranker, work, map_blocks)
    by_id = {question.id: question for question in questions}
    pairs = [
        (by_id[id], document)
        for of_pool in found.values()
        for id, one in of_pool.items()
        for document, _ in one.hits
    ]
    scores.compute(pairs, progress=progress)

    def ranking(question: Question, one: Retrieved) -> Ranking:
        raw = [scores(question, id) for id, _ in one.hits]
        relevances = relevance(torch.tensor(raw, device="cpu")).tolist()
        candidates = [
            Candidate(id, score, *of_pair)
            for (id, score), *of_pair in zip(one.hits, relevances, raw, strict=True)
        ]
        weight = models.retriever_weight
        return Ranking(question, candidates, one.alone, one.num_documents, weight)

    return {
        pool: [ranking(question, of_pool.get(question.id, Retrieved())) for question in questions]
        for pool, of_pool in found.items()
    }


@dataclass(frozen=True)
class Retrieved:
    """What was retrieved for a question.

    Attributes:
        hits: ids with what they were ordered by.
        alone: see `Ranking`.
        num_documents: see `Ranking`.
    """

    hits: Hits = field(default_factory=list)
    alone: Mapping[Order, Sequence[str]] = field(default_factory=dict)
    num_documents: int = 0


def retrieve(
    source: QuestionSet,
    pool: Pool,
    questions: Iterable[Question],
    fusion: Fusion,
    vectors: DocumentVectors,
    num_candidates: int,
) -> dict[str, Retrieved]:
    """By question id, the documents of the pool that fit it best.

    Where there are two encoders, a fusion makes one order of theirs.
    """
    retrieved = {}
    for question, found, num_documents in _searched(
        source, pool, questions, vectors, num_candidates
    ):
        alone: dict[Order, list[str]] = {}
        if len(vectors.encoders) > 1:
            alone = {
                order: [id for id, _ in one.hits[:num_candidates]] for order, one in found.items()
            }
        hits = fuse(found, fusion, num_candidates)
        retrieved[question.id] = Retrieved(hits, alone, num_documents)
    return retrieved


def estimate_fusion(
    source: QuestionSet, pool: Pool, questions: Iterable[Question], vectors: DocumentVectors
) -> WeightedSum:
    """The weight of the pictures' order by which gold documents are found best.

    Raises:
        ValueError: there is one encoder only, or no question has a gold document.
    """
    if len(vectors.encoders) < 2:
        raise ValueError("there is one order only, so no weight of two: give both encoders")
    rows = [
        (found, question.gold)
        for question, found, _ in _searched(source, pool, questions, vectors, num_candidates=1)
        if question.gold
    ]
    return estimate_weight([found for found, _ in rows], [gold for _, gold in rows])


def _searched(
    source: QuestionSet,
    pool: Pool,
    questions: Iterable[Question],
    vectors: DocumentVectors,
    num_candidates: int,
) -> Iterator[tuple[Question, dict[Order, OrderHits], int]]:
    """Each question with what each order finds for it, and the number of documents searched."""
    wanted = {question.id for question in questions}
    for search in source.searches(pool):
        here = [question for question in search.questions if question.id in wanted]
        ids = [id for id in search.document_ids if id in vectors]
        if not here or not ids:
            continue
        views = vectors.views(ids)
        for start in range(0, len(here), _QUESTIONS_AT_ONCE):
            part = here[start : start + _QUESTIONS_AT_ONCE]
            found = search_views(views, [question.query for question in part], num_candidates)
            for question, of_one in zip(part, found, strict=True):
                yield question, of_one, len(ids)


class PairScores:
    """Raw scores of pairs, computed once and kept in a file while question and document stay.

    A document's picture is read once for all the questions that it was retrieved for.

    Args:
        source: has the documents.
        reranker: whose scores they are.
        folder: for the file.
        map_blocks: scores; see `evaluation_works`.
    """

    def __init__(
        self, source: QuestionSet, reranker: Reranker, folder: Path, map_blocks: MapBlocks
    ) -> None:
        self._source = source
        self._document_name = cache(source.document_name)  # needed for every pair
        self._map_blocks = map_blocks
        self._journal: Journal[str] = Journal(
            folder / f"scores-{reranker.fingerprint}.jsonl", is_value=_is_score
        )

    def __call__(self, question: Question, document_id: str) -> float:
        """The raw score of a pair that was computed; NaN where it could not be."""
        return self._journal[self._key(question, document_id)]

    def compute(self, pairs: Iterable[tuple[Question, str]], *, progress: bool = True) -> None:
        """Scores what is missing; what cannot be scored is a problem of the data set.

        Pairs are taken document by document, so that each prefix is built once.

        Raises:
            DataError: a pair cannot be scored, and the data set is strict.
        """
        wanted = {self._key(question, id): (question, id) for question, id in pairs}
        order = {id: place for place, id in enumerate(self._source.document_ids())}
        missing = [key for key in wanted if key not in self._journal]
        missing.sort(key=lambda key: order[wanted[key][1]])

        def scored(blocks: Iterable[list[str]]) -> Iterator[Done]:
            pairs = (self._pairs([wanted[key] for key in keys]) for keys in blocks)
            return self._map_blocks(SCORE, pairs)

        self._journal.fill(
            missing,
            scored,
            pace=Pace(lambda key: wanted[key][1], most=_DOCUMENTS_AT_ONCE),
            title="rerank",
            unit="pair",
            progress=progress,
        )
        for key, (question, id) in wanted.items():
            if math.isnan(self._journal[key]):
                self._source.problems.add(
                    "pair that cannot be scored",
                    f"question {question.id!r} and document {id!r}: its prompt is too long, a "
                    "picture of it broken, or its relevance NaN",
                )

    def _pairs(self, wanted: Sequence[tuple[Question, str]]) -> list[Pair]:
        """What is to be scored."""
        ids = dict.fromkeys(id for _, id in wanted)
        documents = {document.id: document for document in self._source.documents(ids=ids)}
        return [(question.query, documents.get(id)) for question, id in wanted]

    def _key(self, question: Question, document_id: str) -> str:
        return name_of("pair", *question.content, self._document_name(document_id))


def _is_score(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def wrong_pictures(source: QuestionSet, share: float, seed: int) -> dict[str, str]:
    """For that share of the gold documents, another gold document in its place.

    As RagVL's release injects noise: documents are drawn and trade places in the retriever's list,
    before they are reranked. No question gets another of its own gold documents where that can be
    avoided.

    Raises:
        ValueError: `share` is not between 0 and 1, or there are no two documents to trade places.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"noise_ratio={share}: expected a share from 0 to 1")
    if not share:
        return {}
    gold = source.document_ids("gold")
    if len(gold) < 2:
        raise ValueError(f"noise_ratio={share}: {source.name} has no two gold documents to swap")
    rng = np.random.default_rng(seed)
    drawn = [gold[i] for i in rng.permutation(len(gold))[: max(2, round(share * len(gold)))]]
    questions_of: dict[str, set[str]] = {}
    for question in source.questions:
        for id in question.gold:
            questions_of.setdefault(id, set()).add(question.id)

    def clashes(shift: int) -> int:
        moved = zip(drawn, drawn[shift:] + drawn[:shift], strict=True)
        return sum(bool(questions_of[one] & questions_of[other]) for one, other in moved)

    shift = min(range(1, min(len(drawn), 100)), key=clashes)
    return dict(zip(drawn, drawn[shift:] + drawn[:shift], strict=True))
