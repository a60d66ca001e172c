"""The three stages over a whole data set, each resumable.

A document's picture is read once for its vector and once for its relevance to every question that
found it, however many those are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np

from ragvl.data.images import ImageError
from ragvl.data.questions import Pool, Question, QuestionSet
from ragvl.evaluation.journal import Journal
from ragvl.evaluation.vectors import VectorsFileError, load_vectors, save_vectors
from ragvl.generator import Generator
from ragvl.identity import name_of
from ragvl.mllm import PromptTooLongError
from ragvl.progress import ProgressBar
from ragvl.reranker import Reranker
from ragvl.retriever import DualEncoder, VectorIndex, encode_documents

logger = logging.getLogger(__name__)

_DOCUMENTS_AT_ONCE = 256
_ANSWERS_AT_ONCE = 64


@dataclass(frozen=True)
class Models:
    """The three stages.

    Attributes:
        encoder: retrieves.
        reranker: reranks.
        generator: answers; None to stop before that.
    """

    encoder: DualEncoder
    reranker: Reranker
    generator: Generator | None = None


@dataclass(frozen=True)
class Candidate:
    """A document that was retrieved for a question.

    Attributes:
        id: the document's.
        cosine: of its picture's and the question's vectors.
        relevance: by the reranker; NaN where the picture could not be used.
    """

    id: str
    cosine: float
    relevance: float


@dataclass(frozen=True)
class Ranking:
    """A question's candidates, the most relevant to the retriever first."""

    question: Question
    retrieved: Sequence[Candidate]

    @property
    def reranked(self) -> list[Candidate]:
        """The same, the most relevant to the reranker first."""
        return sorted(self.retrieved, key=lambda c: (math.isnan(c.relevance), -c.relevance))

    def kept(self, top_k: int, threshold: float) -> tuple[str, ...]:
        """Ids of those of the first `top_k` that reach the threshold."""
        return tuple(c.id for c in self.reranked[:top_k] if c.relevance >= threshold)


def embed_documents(
    source: QuestionSet, encoder: DualEncoder, folder: Path, *, progress: bool = True
) -> dict[str, np.ndarray]:
    """Vectors (dim,) of a data set's documents by id; those that cannot be read are left out.

    Blocks of vectors are kept in `folder`, and not computed again while the documents stay as they
    are. A file that is damaged is computed again, with a warning.
    """
    vectors: dict[str, np.ndarray] = {}
    ids = source.document_ids()
    starts = range(0, len(ids), _DOCUMENTS_AT_ONCE)
    for start in ProgressBar(
        starts, desc="embed", unit="block", disable=not progress or len(starts) < 2
    ):
        wanted = ids[start : start + _DOCUMENTS_AT_ONCE]
        keys = [source.document_key(id) for id in wanted]
        dtype = str(encoder.model.dtype)
        name = name_of("vectors", encoder.fingerprint, dtype, wanted, keys)
        path = folder / f"vectors-{name}.safetensors"
        known = _known_vectors(path, encoder.dim, wanted)
        # What could not be read another time is tried again
        if missing := [id for id in wanted if id not in known]:
            found = encode_documents(source, encoder, missing)
            if found:
                known |= found
                save_vectors(path, known, encoder.dim)
        vectors |= {id: known[id] for id in wanted if id in known}
    return vectors


def _known_vectors(path: Path, dim: int, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        return load_vectors(path, dim, wanted)
    except FileNotFoundError:
        return {}
    except VectorsFileError as error:
        logger.warning("%s; its vectors are computed again", error)
        return {}


def retrieve(
    source: QuestionSet,
    pool: Pool,
    questions: Iterable[Question],
    encoder: DualEncoder,
    vectors: Mapping[str, np.ndarray],
    num_candidates: int,
) -> dict[str, list[tuple[str, float]]]:
    """By question id, the documents of the pool that fit it best, with their cosines."""
    wanted = {question.id: question for question in questions}
    found: dict[str, list[tuple[str, float]]] = {}
    for search in source.searches(pool):
        asked = [question for question in search.questions if question.id in wanted]
        ids = [id for id in search.document_ids if id in vectors]
        if not asked or not ids:
            continue
        index = VectorIndex(encoder.dim)
        index.add(ids, np.stack([vectors[id] for id in ids]))
        hits = index.search(encoder.encode_texts([q.text for q in asked]), num_candidates)
        found |= {question.id: row for question, row in zip(asked, hits, strict=True)}
    return found


class Relevances:
    """Relevance of pairs, computed once and kept in a file while question and document stay.

    Args:
        source: has the documents.
        reranker: scores.
        folder: for the file.
    """

    def __init__(self, source: QuestionSet, reranker: Reranker, folder: Path) -> None:
        self._source = source
        self._document_key = cache(source.document_key)  # asked for every pair
        self._reranker = reranker
        self._journal: Journal[str] = Journal(
            folder / f"relevance-{reranker.fingerprint}.jsonl", is_value=_is_relevance
        )

    def __call__(self, question: Question, document_id: str) -> float:
        """The relevance of a pair that was computed; NaN where it could not be."""
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
        by_document = [list(of_one) for _, of_one in groupby(missing, lambda key: wanted[key][1])]

        def score(keys: list[str]) -> list[float]:
            ids = dict.fromkeys(wanted[key][1] for key in keys)
            documents = {document.id: document for document in self._source.documents(ids=ids)}
            asked = [wanted[key] for key in keys]
            usable = [(q.text, documents[id]) for q, id in asked if id in documents]
            found = self._reranker.score(usable, on_error="skip", progress=False).tolist()
            relevance = iter(found)
            return [next(relevance) if id in documents else math.nan for _, id in asked]

        with ProgressBar(
            total=len(missing), desc="rerank", unit="pair", disable=not progress
        ) as bar:
            for start in range(0, len(by_document), _DOCUMENTS_AT_ONCE):
                block = by_document[start : start + _DOCUMENTS_AT_ONCE]
                part = [key for of_one in block for key in of_one]
                self._journal.fill(part, score, block=len(part), title="", progress=False)
                bar.update(len(part))
        for key, (question, id) in wanted.items():
            if math.isnan(self._journal[key]):
                self._source.problems.add(
                    "pair that cannot be scored",
                    f"question {question.id!r} and document {id!r}: its prompt is too long, its "
                    "picture broken, or its relevance NaN",
                )

    def _key(self, question: Question, document_id: str) -> str:
        return name_of("pair", question.text, self._document_key(document_id))


class Answers:
    """Answers from documents, computed once and kept in a file while both stay.

    Args:
        source: has the documents.
        generator: answers.
        folder: for the file.
        max_new_tokens: of an answer.
    """

    def __init__(
        self, source: QuestionSet, generator: Generator, folder: Path, *, max_new_tokens: int
    ) -> None:
        self._source = source
        self._document_key = cache(source.document_key)  # asked for every question
        self._generator = generator
        self._max_new_tokens = max_new_tokens
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

        Raises:
            DataError: a question cannot be answered, and the data set is strict.
        """
        asked = {self._key(question, ids): (question, ids) for question, ids in wanted}

        def answer(keys: list[str]) -> list[str | None]:
            return self._answer([asked[key] for key in keys])

        self._journal.fill(asked, answer, block=_ANSWERS_AT_ONCE, title="answer", progress=progress)
        unanswered = [
            question for key, (question, _) in asked.items() if self._journal[key] is None
        ]
        for question in {question.id: question for question in unanswered}.values():
            self._source.problems.add(
                "question that cannot be answered",
                f"question {question.id!r} with its documents: its prompt is too long, or a "
                "picture broken",
            )

    def _answer(self, asked: Sequence[tuple[Question, Sequence[str]]]) -> list[str | None]:
        ids = dict.fromkeys(id for _, evidence in asked for id in evidence)
        documents = {document.id: document for document in self._source.documents(ids=ids)}
        usable = [pair for pair in asked if documents.keys() >= set(pair[1])]
        if len(usable) < len(asked):  # an answer from fewer documents would be another one
            answers = iter(self._answer(usable))
            return [next(answers) if pair in usable else None for pair in asked]
        if not asked:
            return []
        try:
            return list(
                self._generator.answer_batch(
                    [question.text for question, _ in asked],
                    [[documents[id] for id in ids] for _, ids in asked],
                    max_new_tokens=self._max_new_tokens,
                    progress=False,
                )
            )
        except (PromptTooLongError, ImageError):  # find out which
            if len(asked) == 1:
                return [None]
            return [answer for one in asked for answer in self._answer([one])]

    def _key(self, question: Question, document_ids: Sequence[str]) -> str:
        return name_of("asked", question.text, *map(self._document_key, document_ids))


def _is_relevance(value: object) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


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
    asking: dict[str, set[str]] = {}
    for question in source.questions:
        for id in question.gold:
            asking.setdefault(id, set()).add(question.id)

    def clashes(shift: int) -> int:
        moved = zip(drawn, drawn[shift:] + drawn[:shift], strict=True)
        return sum(bool(asking[one] & asking[other]) for one, other in moved)

    shift = min(range(1, min(len(drawn), 100)), key=clashes)
    return dict(zip(drawn, drawn[shift:] + drawn[:shift], strict=True))
