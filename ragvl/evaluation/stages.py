"""The three stages over a whole data set, each resumable.

A document's picture is read once for its vector and once for its relevance to every question that
found it, however many those are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.data.questions import Pool, Question, QuestionSet
from ragvl.evaluation.journal import Journal, depending_on
from ragvl.generator import Generator
from ragvl.reranker import Reranker
from ragvl.retriever import DualEncoder, VectorIndex

_DOCUMENTS_AT_ONCE = 256
_ANSWERS_AT_ONCE = 64

Evidence = tuple[str, tuple[str, ...]]
"""A question's id, and the ids of the documents it is answered from."""


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

    Blocks of vectors are kept in `folder`, and not computed again.
    """
    vectors: dict[str, np.ndarray] = {}
    ids = source.document_ids()
    starts = range(0, len(ids), _DOCUMENTS_AT_ONCE)
    for start in tqdm(starts, desc="embed", unit="block", disable=not progress or len(starts) < 2):
        wanted = ids[start : start + _DOCUMENTS_AT_ONCE]
        name = depending_on(encoder.fingerprint, source.name, *wanted)
        path = folder / f"vectors-{name}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as saved:
                vectors |= zip(saved["ids"].tolist(), saved["vectors"], strict=True)
            continue
        documents = list(source.documents(ids=wanted))
        try:
            found = encoder.encode_images(documents, progress=False)
        except ImageError:  # find out whose
            documents = [d for d in documents if _is_picture(d, source)]
            found = encoder.encode_images(documents, progress=False)
        names = [str(document.id) for document in documents]
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft.npz")
        np.savez(draft, ids=np.array(names, np.str_), vectors=found)
        draft.replace(path)
        vectors |= zip(names, found, strict=True)
    return vectors


def retrieve(
    source: QuestionSet,
    pool: Pool,
    questions: Iterable[Question],
    encoder: DualEncoder,
    vectors: Mapping[str, np.ndarray],
    num_candidates: int,
) -> dict[str, list[tuple[str, float]]]:
    """By question id, the documents of the pool that fit it best, with their cosines."""
    wanted = {question.id for question in questions}
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


def score(
    source: QuestionSet,
    pairs: Iterable[tuple[Question, str]],
    reranker: Reranker,
    journal: Journal[tuple[str, str]],
    *,
    progress: bool = True,
) -> None:
    """Puts the relevance of (question, document id) into the journal, by their ids.

    Pairs are taken document by document, so that each prefix is built once.
    """
    order = {id: place for place, id in enumerate(source.document_ids())}
    texts: dict[str, str] = {}
    wanted: dict[tuple[str, str], None] = {}
    for question, document_id in pairs:
        texts[question.id] = question.text
        wanted[question.id, document_id] = None
    missing = sorted((key for key in wanted if key not in journal), key=lambda key: order[key[1]])
    by_document = [list(group) for _, group in groupby(missing, key=lambda key: key[1])]

    def compute(keys: list[tuple[str, str]]) -> list[float]:
        ids = dict.fromkeys(id for _, id in keys)
        documents = {document.id: document for document in source.documents(ids=ids)}
        usable = [(texts[asked], documents[id]) for asked, id in keys if id in documents]
        relevance = iter(reranker.score(usable, on_error="skip", progress=False).tolist())
        return [next(relevance) if id in documents else math.nan for _, id in keys]

    with tqdm(total=len(missing), desc="rerank", unit="pair", disable=not progress) as bar:
        for start in range(0, len(by_document), _DOCUMENTS_AT_ONCE):
            part = [
                key for group in by_document[start : start + _DOCUMENTS_AT_ONCE] for key in group
            ]
            journal.fill(part, compute, block=len(part), title="", progress=False)
            bar.update(len(part))


def answer(
    source: QuestionSet,
    wanted: Iterable[Evidence],
    generator: Generator,
    journal: Journal[Evidence],
    *,
    max_new_tokens: int,
    progress: bool = True,
) -> None:
    """Puts the generator's answers into the journal; what is asked twice is answered once."""
    texts = {question.id: question.text for question in source.questions}

    def compute(keys: list[Evidence]) -> list[str]:
        ids = dict.fromkeys(id for _, evidence in keys for id in evidence)
        documents = {document.id: document for document in source.documents(ids=ids)}
        return generator.answer_batch(
            [texts[asked] for asked, _ in keys],
            [[documents[id] for id in evidence if id in documents] for _, evidence in keys],
            max_new_tokens=max_new_tokens,
            progress=False,
        )

    journal.fill(wanted, compute, block=_ANSWERS_AT_ONCE, title="answer", progress=progress)


def wrong_pictures(source: QuestionSet, share: float, seed: int) -> dict[str, str]:
    """For that share of the gold documents, another gold document in its place.

    As RagVL's release injects noise: the documents are drawn, and trade places among themselves.

    Raises:
        ValueError: `share` is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"noise_ratio={share}: expected a share from 0 to 1")
    rng = np.random.default_rng(seed)
    gold = source.document_ids("gold")
    drawn = [gold[i] for i in rng.permutation(len(gold))[: round(share * len(gold))]]
    return dict(zip(drawn, drawn[1:] + drawn[:1], strict=True)) if len(drawn) > 1 else {}


def _is_picture(document: Document, source: QuestionSet) -> bool:
    try:
        document.load()
    except ImageError as error:
        source.problems.add("broken picture", str(error))
        return False
    return True
