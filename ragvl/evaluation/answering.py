"""Answers each question from several selections of documents, resumably."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from ragvl.blocks import Done, MapBlocks
from ragvl.data.questions import Pool, Question, QuestionSet
from ragvl.evaluation.journal import Journal
from ragvl.evaluation.pace import Pace
from ragvl.evaluation.ranking import Ranking
from ragvl.evaluation.works import ANSWER, Asked
from ragvl.generator import Generator
from ragvl.identity import name_of

# Selections of documents besides those kept at a threshold, which have its name
RETRIEVED, GOLD, NOTHING = "retrieved", "gold", "none"

Selection = tuple[Pool, str]
"""A pool, and the name of what was selected of its documents."""

_ANSWERS_AT_ONCE = 64


def select_evidence(
    rankings: Mapping[Pool, Sequence[Ranking]],
    thresholds: Mapping[str, float],
    top_k: int,
    readable: Container[str],
    swapped: Mapping[str, str],
) -> dict[Selection, list[tuple[str, ...]]]:
    """What each question is answered from: ids of documents, by selection.

    Args:
        rankings: by pool, each question's.
        thresholds: by name.
        top_k: how many documents are kept at most.
        readable: ids of the documents that can be read.
        swapped: see `wrong_pictures`.
    """
    evidence: dict[Selection, list[tuple[str, ...]]] = {}
    for pool, ranked in rankings.items():
        evidence[pool, RETRIEVED] = [tuple(c.id for c in r.retrieved[:top_k]) for r in ranked]
        for name, threshold in thresholds.items():
            evidence[pool, name] = [r.kept(top_k, threshold) for r in ranked]
        evidence[pool, GOLD] = [
            tuple(dict.fromkeys(swapped.get(id, id) for id in r.question.gold)) for r in ranked
        ]
        evidence[pool, NOTHING] = [()] * len(ranked)
    return {
        selection: [tuple(id for id in ids if id in readable) for ids in by_question]
        for selection, by_question in evidence.items()
    }


class Answers:
    """Answers from documents, computed once and kept in a file while both stay.

    Args:
        source: has the documents.
        generator: whose answers they are.
        folder: for the file.
        max_new_tokens: of an answer.
        map_blocks: answers; see `evaluation_works`.
    """

    def __init__(
        self,
        source: QuestionSet,
        generator: Generator,
        folder: Path,
        *,
        max_new_tokens: int,
        map_blocks: MapBlocks,
    ) -> None:
        self._source = source
        self._document_name = cache(source.document_name)  # needed for every question
        self._map_blocks = map_blocks
        name = name_of("answers", generator.fingerprint, max_new_tokens)
        self._journal: Journal[str] = Journal(
            folder / f"answers-{name}.jsonl", is_value=lambda value: isinstance(value, str)
        )

    def __call__(self, question: Question, document_ids: Sequence[str]) -> str:
        """An answer that was computed; nothing where it could not be."""
        return self._journal[self._key(question, document_ids)] or ""

    def compute(
        self, wanted: Iterable[tuple[Question, Sequence[str]]], *, progress: bool = True
    ) -> None:
        """Answers what is missing; what cannot be answered is a problem of the data set.

        Args:
            wanted: questions, each with the ids of the documents to answer it from.
            progress: show a bar.

        Raises:
            DataError: a question cannot be answered, and the data set is strict.
        """
        by_key = {self._key(question, ids): (question, ids) for question, ids in wanted}

        def answered(blocks: Iterable[list[str]]) -> Iterator[Done]:
            asked = (self._asked([by_key[key] for key in keys]) for keys in blocks)
            return self._map_blocks(ANSWER, asked)

        self._journal.fill(
            by_key,
            answered,
            pace=Pace(most=_ANSWERS_AT_ONCE),
            title="answer",
            progress=progress,
        )
        unanswered = {q.id: q for key, (q, _) in by_key.items() if self._journal[key] is None}
        for question in unanswered.values():
            self._source.problems.add(
                "question that cannot be answered",
                f"question {question.id!r} with its documents: its prompt is too long, or a "
                "picture broken",
            )

    def _asked(self, wanted: Sequence[tuple[Question, Sequence[str]]]) -> list[Asked]:
        """What is to be answered."""
        ids = dict.fromkeys(id for _, evidence in wanted for id in evidence)
        documents = {document.id: document for document in self._source.documents(ids=ids)}
        return [
            (
                question.text,
                [documents[id] for id in ids] if documents.keys() >= set(ids) else None,
            )
            for question, ids in wanted
        ]

    def _key(self, question: Question, document_ids: Sequence[str]) -> str:
        return name_of("asked", question.text, *map(self._document_name, document_ids))


def answer_from(
    evidence: Mapping[Selection, Sequence[tuple[str, ...]]],
    questions: Sequence[Question],
    answers: Answers,
    *,
    progress: bool = True,
) -> dict[Selection, list[str]]:
    """Each question's answer, by selection; a question is answered once from the same documents."""
    pairs = {
        selection: list(zip(questions, documents, strict=True))
        for selection, documents in evidence.items()
    }
    # Question by question, since what is selected for one has pictures in common
    by_question = zip(*pairs.values(), strict=True)
    answers.compute([pair for row in by_question for pair in row], progress=progress)
    return {selection: [answers(*pair) for pair in row] for selection, row in pairs.items()}
