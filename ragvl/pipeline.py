"""Retrieve, rerank, answer: the whole of RagVL behind one call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ragvl.arguments import checked_count, checked_weight
from ragvl.generator import Generator
from ragvl.reranker import RankedDocument, Reranker, Threshold, place_prior
from ragvl.retriever import DocumentRetriever, RetrievedDocument


@dataclass(frozen=True)
class Answer:
    """What was answered, and from what.

    Attributes:
        text: the answer.
        evidence: the documents it was given, the most relevant first.
        grounded: False when no document passed the filter, so that the generator answered from
            the question alone.
        retrieved: the candidates, in the retriever's order.
        ranked: the same, reranked.
        timings: milliseconds of each stage: retrieve, rerank, generate.
    """

    text: str
    evidence: list[RankedDocument]
    grounded: bool
    retrieved: list[RetrievedDocument]
    ranked: list[RankedDocument]
    timings: dict[str, float] = field(default_factory=dict)


class RagVL:
    """The pipeline of RagVL (arXiv 2407.21439, section 3).

    Args:
        retriever: finds candidates.
        reranker: orders them and drops what is not relevant.
        generator: answers from what is left.
        num_candidates: how many documents the retriever hands over (the paper: 20).
        top_k: how many the generator sees at most (the paper: 2 on WebQA, 1 on MultimodalQA).
        threshold: the relevance that a document must reach; the reranker's own if None.
        retriever_weight: how much the retriever's order counts in reranking (`place_prior`); what
            was estimated for this retriever and saved with the reranker if None, or else 0.

    Raises:
        ValueError: a number below 1, a threshold that is not known or no probability, or a weight
            below 0.
    """

    def __init__(
        self,
        retriever: DocumentRetriever,
        reranker: Reranker,
        generator: Generator,
        *,
        num_candidates: int = 20,
        top_k: int = 2,
        threshold: Threshold | None = None,
        retriever_weight: float | None = None,
    ) -> None:
        self.retriever = retriever
        self.reranker = reranker
        self.generator = generator
        self.num_candidates = checked_count("num_candidates", num_candidates)
        self.top_k = checked_count("top_k", top_k)
        self.threshold = reranker.resolve_threshold(threshold)
        if retriever_weight is None:
            retriever_weight = reranker.saved_weight(retriever.name)
        self.retriever_weight = checked_weight(retriever_weight)
        if (saved := reranker.thresholds) is not None:
            names = saved.named(self.threshold)
            saved.warn_of_another_search(len(retriever), names=names, weight=retriever_weight)

    def answer(self, question: str, *, max_new_tokens: int = 32) -> Answer:
        """Answers `question` from the retriever's documents.

        Raises:
            ValueError: the question is empty, or the retriever holds no documents.
        """
        timings: dict[str, float] = {}
        with _timed(timings, "retrieve"):
            retrieved = self.retriever.retrieve(question, self.num_candidates)
        with _timed(timings, "rerank"):
            ranked = self.reranker.rank(
                question,
                [candidate.document for candidate in retrieved],
                prior=place_prior(len(retrieved), self.retriever_weight),
                threshold=self.threshold,
                progress=False,
            )
        evidence = [document for document in ranked[: self.top_k] if document.kept]
        with _timed(timings, "generate"):
            text = self.generator.answer(
                question, [e.document for e in evidence], max_new_tokens=max_new_tokens
            )
        return Answer(text, evidence, bool(evidence), retrieved, ranked, timings)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] = 1e3 * (time.perf_counter() - started)
