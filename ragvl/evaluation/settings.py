"""What is evaluated, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ragvl.arguments import checked_count
from ragvl.data.questions import POOLS, Pool, Question, QuestionSet
from ragvl.reranker import Threshold, check_threshold


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated.

    Args:
        pools: what is retrieved from: "full", every document; "gold", those that answer some
            question, as RagVL's release does.
        num_candidates: how many documents the retriever hands over.
        top_k: how many are kept at most; None is 1 for MultimodalQA and captions, else 2.
        thresholds: from what relevance; the first is the one that wrong cases are shown of.
        noise_ratio: the share of gold documents in whose place the retriever hands over wrong ones.
        skip: leave out so many questions, the first ones.
        num_questions: only so many, the first ones after those; None for all.
        num_timed: so many questions are run one by one, and timed.
        max_new_tokens: of an answer.
        seed: of the noise.

    Raises:
        ValueError: a number is out of its range, or there is no pool or no threshold.
    """

    pools: Sequence[Pool] = POOLS
    num_candidates: int = 20
    top_k: int | None = None
    thresholds: Sequence[Threshold] = ("natural",)
    noise_ratio: float = 0.0
    skip: int = 0
    num_questions: int | None = None
    num_timed: int = 20
    max_new_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_candidates", "top_k", "num_questions", "max_new_tokens"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, checked_count(name, value))
        for threshold in self.thresholds:
            check_threshold(threshold)
        # Numpy's numbers are none to JSON
        thresholds = tuple(t if isinstance(t, str) else float(t) for t in self.thresholds)
        object.__setattr__(self, "thresholds", thresholds)
        if not self.pools or not self.thresholds or self.num_timed < 0 or self.skip < 0:
            raise ValueError(
                "expected at least one pool and one threshold, num_timed and skip >= 0"
            )
        if not 0 <= self.noise_ratio <= 1:
            raise ValueError(f"noise_ratio={self.noise_ratio}: expected a share from 0 to 1")

    @property
    def estimated_thresholds(self) -> list[str]:
        """Names of the thresholds that were estimated on a dev split."""
        return [t for t in self.thresholds if isinstance(t, str) and t != "natural"]

    def select(self, questions: Sequence[Question]) -> Sequence[Question]:
        """The questions that are evaluated."""
        return questions[self.skip :][: self.num_questions]

    def top_k_of(self, source: QuestionSet) -> int:
        """`top_k`, or what the paper takes."""
        if self.top_k is not None:
            return self.top_k
        return 1 if source.answer_metric == "multimodalqa" or source.template == "retrieval" else 2


def distinct_pools(source: QuestionSet) -> tuple[Pool, ...]:
    """Both pools; the full one alone where every document is gold, as of captions."""
    same = set(source.document_ids()) == set(source.document_ids("gold"))
    return ("full",) if same else POOLS
