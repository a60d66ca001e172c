"""Runs the whole of RagVL on the drawn world with the shipped tiny models, and measures it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

from transformers.utils import logging as transformers_logging

from ragvl.data.document import Document
from ragvl.data.questions import Pool, Question
from ragvl.data.synthetic import write_world
from ragvl.data.webqa import WebQA
from ragvl.evaluation.answers import is_correct
from ragvl.evaluation.metrics import precision_recall_f1, recall_at_k
from ragvl.generator import Generator
from ragvl.pipeline import RagVL
from ragvl.reranker import Reranker
from ragvl.retriever import DualEncoder, Retriever

WORLD_SEED = 0
NUM_PLACES = 520  # three pictures each
NUM_CANDIDATES = 20
TOP_K = 2
POOLS: tuple[Pool, ...] = ("full", "gold")
RECALL_AT = (1, 2, 5, 10)
NUM_TIMED = 40
MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Candidate:
    """A document in one of the two orders, as the page shows it."""

    document: Document
    score: float
    is_gold: bool
    kept: bool


@dataclass(frozen=True)
class Example:
    """One question's way through the pipeline, over the full pool."""

    question: Question
    retrieved: list[Candidate]
    reranked: list[Candidate]
    answer: str
    answer_without_reranking: str
    correct: bool
    correct_without_reranking: bool


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        figures: pools, latency_ms and counts, ready for JSON.
        examples: every question over the full pool.
        threshold: the relevance from which a document is kept.
    """

    figures: dict[str, Any]
    examples: list[Example]
    threshold: float


@dataclass(frozen=True)
class _Stages:
    encoder: DualEncoder
    reranker: Reranker
    generator: Generator


def run_demo(*, num_questions: int | None = None, progress: bool = True) -> DemoResult:
    """Draws the test world, then retrieves, reranks and answers over both pools.

    Args:
        num_questions: only the first so many questions; all 520 by default.
        progress: show progress bars.

    Raises:
        ValueError: `num_questions` is below 1.
    """
    if num_questions is not None and num_questions < 1:
        raise ValueError(f"num_questions={num_questions}: it must be at least 1")
    started = time.perf_counter()
    transformers_logging.disable_progress_bar()  # loading tiny models takes no time
    with tempfile.TemporaryDirectory() as folder, as_file(files("ragvl") / "assets") as assets:
        write_world(folder, places={"test": NUM_PLACES}, seed=WORLD_SEED)
        dataset = WebQA(folder, split="test")
        documents = {document.id: document for document in dataset.documents()}
        stages = _Stages(
            encoder=DualEncoder.from_pretrained(assets / "tiny-retriever"),
            reranker=Reranker.from_pretrained(assets / "tiny-reranker"),
            generator=Generator.from_pretrained(assets / "tiny-generator"),
        )
    questions = dataset.questions[:num_questions]
    retrievers = {
        pool: Retriever(
            stages.encoder, [documents[i] for i in dataset.document_ids(pool)], progress=progress
        )
        for pool in POOLS
    }
    found = {
        pool: [
            [candidate.id for candidate in candidates]
            for candidates in retriever.retrieve_batch([q.text for q in questions], NUM_CANDIDATES)
        ]
        for pool, retriever in retrievers.items()
    }
    relevance = _score_all(questions, found, documents, stages.reranker, progress)
    pools: dict[str, Any] = {}
    examples: dict[str, list[Example]] = {}
    for pool in POOLS:
        examples[pool] = _answer_all(questions, found[pool], relevance, documents, stages, progress)
        pools[pool] = _measure(examples[pool])
    rag = RagVL(
        retrievers["full"],
        stages.reranker,
        stages.generator,
        num_candidates=NUM_CANDIDATES,
        top_k=TOP_K,
    )
    figures = {
        "pools": pools,
        "latency_ms": _time_stages(rag, [question.text for question in questions]),
        "num_questions": len(questions),
        "num_documents": {pool: len(dataset.document_ids(pool)) for pool in POOLS},
        "num_candidates": NUM_CANDIDATES,
        "top_k": TOP_K,
        "threshold": stages.reranker.threshold,
        "world_seed": WORLD_SEED,
        "seconds": time.perf_counter() - started,
    }
    return DemoResult(figures, examples["full"], stages.reranker.threshold)


def _score_all(
    questions: Sequence[Question],
    found: dict[Pool, list[list[str]]],
    documents: dict[str | None, Document],
    reranker: Reranker,
    progress: bool,
) -> dict[tuple[str, str], float]:
    """Relevance by (question id, document id); what both pools retrieved is scored once."""
    wanted = dict.fromkeys(
        (question.id, question.text, document_id)
        for pool in POOLS
        for question, ids in zip(questions, found[pool], strict=True)
        for document_id in ids
    )
    scores = reranker.score(
        [(text, documents[document_id]) for _, text, document_id in wanted], progress=progress
    )
    return {
        (question_id, document_id): score
        for (question_id, _, document_id), score in zip(wanted, scores.tolist(), strict=True)
    }


def _answer_all(
    questions: Sequence[Question],
    found: Sequence[Sequence[str]],
    relevance: dict[tuple[str, str], float],
    documents: dict[str | None, Document],
    stages: _Stages,
    progress: bool,
) -> list[Example]:
    """Both orders of each question's candidates, and the answer from each."""
    threshold = stages.reranker.threshold
    orders: list[tuple[list[Candidate], list[Candidate]]] = []
    for question, ids in zip(questions, found, strict=True):
        scores = {document_id: relevance[question.id, document_id] for document_id in ids}

        def candidates(
            order: Sequence[str],
            limit: float,
            question: Question = question,
            scores: dict[str, float] = scores,
        ) -> list[Candidate]:
            return [
                Candidate(
                    documents[document_id],
                    scores[document_id],
                    document_id in question.gold,
                    rank < TOP_K and scores[document_id] >= limit,
                )
                for rank, document_id in enumerate(order)
            ]

        by_relevance = sorted(ids, key=scores.__getitem__, reverse=True)
        orders.append((candidates(ids, 0.0), candidates(by_relevance, threshold)))
    texts = [question.text for question in questions]
    answers = [
        stages.generator.answer_batch(
            texts,
            [[c.document for c in order[which] if c.kept] for order in orders],
            max_new_tokens=MAX_NEW_TOKENS,
            progress=progress,
        )
        for which in (0, 1)
    ]
    return [
        Example(
            question=question,
            retrieved=retrieved,
            reranked=reranked,
            answer=answer,
            answer_without_reranking=without,
            correct=is_correct(answer, question.answers),
            correct_without_reranking=is_correct(without, question.answers),
        )
        for question, (retrieved, reranked), without, answer in zip(
            questions, orders, *answers, strict=True
        )
    ]


def _measure(examples: Sequence[Example]) -> dict[str, Any]:
    gold = [example.question.gold for example in examples]

    def order_figures(orders: Sequence[Sequence[Candidate]]) -> dict[str, float]:
        ids = [[str(candidate.document.id) for candidate in order] for order in orders]
        kept = [[str(c.document.id) for c in order if c.kept] for order in orders]
        selection = precision_recall_f1(kept, gold)
        figures = {f"recall@{k}": recall_at_k(ids, gold, k) for k in RECALL_AT}
        return {
            **figures,
            f"recall@{NUM_CANDIDATES}": recall_at_k(ids, gold, NUM_CANDIDATES),
            "precision": selection.precision,
            "f1": selection.f1,
        }

    return {
        "retriever": order_figures([example.retrieved for example in examples]),
        "reranked": order_figures([example.reranked for example in examples]),
        "answer_accuracy": {
            "without_reranking": statistics.fmean(e.correct_without_reranking for e in examples),
            "with_reranking": statistics.fmean(e.correct for e in examples),
        },
    }


def _time_stages(rag: RagVL, questions: Sequence[str]) -> dict[str, float]:
    """Median milliseconds of each stage, one question at a time."""
    rag.answer(questions[0], max_new_tokens=MAX_NEW_TOKENS)  # warm-up
    timed = [rag.answer(q, max_new_tokens=MAX_NEW_TOKENS).timings for q in questions[:NUM_TIMED]]
    return {stage: statistics.median(t[stage] for t in timed) for stage in timed[0]}
