"""Samples that teach a reranker Yes and No: a question's own documents, and near misses.

RagVL's knowledge-enhanced training (arXiv 2407.21439, section 3.2): each gold document of a
question gives a Yes; documents that a retriever ranks high and that are not gold give a No. So may
those that the data set itself lists as distractors: near misses that a weak retriever seldom finds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from ragvl.arguments import checked_count
from ragvl.blocks import MapBlocks, here
from ragvl.data.document import Document
from ragvl.data.problems import Problems
from ragvl.data.questions import Pool, QuestionSet
from ragvl.data.reading import place, read_lines
from ragvl.files import whole_file
from ragvl.messages import validation_reason
from ragvl.progress import ProgressBar
from ragvl.retriever import (
    DOCUMENTS_AT_ONCE,
    Encoder,
    Fusion,
    IndexMismatchError,
    MixedIndex,
    Order,
    ReciprocalRank,
    VectorIndex,
    View,
    encode_blocks,
    encoding_works,
    search_fused,
)

_Text = Annotated[str, Field(min_length=1)]


class RankingFileError(ValueError):
    """A ranking file with a line that is no sample, or with none; the message names the line."""


@dataclass(frozen=True)
class RankingSample:
    """One question about one document.

    Attributes:
        question: its text.
        document: the document's id.
        answer: "Yes" or "No".
        caption: the document's caption or texts, for people who read the file; training reads the
            data set.
        rank: where the retriever had it, from 1; None for a gold one beyond the depth.
        question_id: the question's id, by which its picture is found.
    """

    question: _Text
    document: _Text
    answer: Literal["Yes", "No"]
    caption: str | None = None
    rank: int | None = None
    question_id: str | None = None


_SAMPLE = TypeAdapter(RankingSample)


def index_documents(
    source: QuestionSet,
    encoders: Mapping[Order, Encoder],
    *,
    pool: Pool = "full",
    map_blocks: MapBlocks | None = None,
    progress: bool = False,
) -> dict[Order, View]:
    """Vectors of a data set's documents by each encoder; few pictures are in memory at a time.

    One encoder alone gets all documents, of two each what is for it: pictures, or captions and
    texts. A picture that cannot be read is a problem of the data set (`QuestionSet.problems`), and
    is left out.

    Args:
        source: the data set.
        encoders: make the vectors, by order.
        pool: whether negatives can be any document, or only other questions' gold ones.
        map_blocks: does `encoding_works` of the encoders; in this process by default.
        progress: show a progress bar.

    Raises:
        DataError: a picture cannot be read, and the data set is strict.
    """
    map_blocks = map_blocks or here(encoding_works(encoders))
    texts = source.texts()
    views: dict[Order, View] = {}
    for order, encoder in encoders.items():
        index = VectorIndex(encoder.dim, encoder_fingerprint=encoder.fingerprint)
        only_pictures = encoder.reads_pictures and len(encoders) > 1
        ids = [id for id in source.document_ids(pool) if not only_pictures or id not in texts]
        starts = range(0, len(ids), DOCUMENTS_AT_ONCE)
        parts = (ids[start : start + DOCUMENTS_AT_ONCE] for start in starts)
        encoded = encode_blocks(source, encoder, order, parts, map_blocks)
        title = {"total": len(starts), "desc": "index", "unit": "batch"}
        for vectors in ProgressBar(encoded, **title, disable=not progress):
            if vectors:
                index.add(list(vectors), np.stack(list(vectors.values())))
        views[order] = View(encoder, MixedIndex(index, texts))
    return views


def ranking_samples(
    source: QuestionSet,
    views: Mapping[Order, View],
    *,
    fusion: Fusion | None = None,
    negatives_per_positive: float = 1.0,
    depth: int = 20,
    labelled_share: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> Iterator[RankingSample]:
    """Yes and No samples of each question in turn.

    Args:
        source: its questions; those without gold documents, or with one that is not in the index,
            give none.
        views: what negatives are drawn from: see `index_documents`.
        fusion: makes one order of two; reciprocal ranks by default.
        negatives_per_positive: how many No samples for a Yes; of a fraction, a draw decides.
        depth: negatives are drawn from the retriever's first `depth` that are not gold; a small
            depth gives harder ones.
        labelled_share: how many of the negatives are drawn from the question's own instead, as far
            as they are in the index; the draws decide, so it holds on average.
        seed: of the draws.
        batch_size: questions encoded together.
        progress: show a progress bar.

    Raises:
        IndexMismatchError: the index is another encoder's, or of other documents.
        ValueError: a number is out of range.
    """
    if not 0 <= negatives_per_positive < float("inf"):
        raise ValueError(f"negatives_per_positive={negatives_per_positive}: expected 0 or more")
    checked_count("depth", depth)
    if not 0 <= labelled_share <= 1:
        raise ValueError(f"labelled_share={labelled_share}: expected a share from 0 to 1")
    for view in views.values():
        _check_index(source, view)
    indexed = {id for view in views.values() for id in view.index.ids}
    rng = np.random.default_rng(seed)
    with_gold = (q for q in source.questions if q.gold and indexed.issuperset(q.gold))
    answerable = list(source.askable(with_gold))
    starts = range(0, len(answerable), batch_size)
    for start in ProgressBar(starts, desc="rank", unit="batch", disable=not progress):
        batch = answerable[start : start + batch_size]
        most_gold = max(len(question.gold) for question in batch)
        queries = [question.query for question in batch]
        found = search_fused(views, fusion or ReciprocalRank(), queries, depth + most_gold)
        for question, hits in zip(batch, found, strict=True):
            ranks = {id: rank for rank, (id, _) in enumerate(hits, start=1)}
            near_misses = [id for id in ranks if id not in question.gold][:depth]
            wanted = negatives_per_positive * len(question.gold)
            count = int(wanted) + int(rng.random() < wanted % 1)
            labelled = [id for id in question.negatives if id in indexed]
            no = _draw(rng, labelled, int(rng.binomial(count, labelled_share)))
            no += _draw(rng, [id for id in near_misses if id not in no], count - len(no))
            chosen: list[tuple[Literal["Yes", "No"], str]] = [("Yes", id) for id in question.gold]
            chosen += [("No", id) for id in no]
            for answer, id in chosen:
                yield RankingSample(
                    question=question.text,
                    document=id,
                    answer=answer,
                    caption=_words(source.document(id)),
                    rank=ranks.get(id),
                    question_id=question.id,
                )


def _check_index(source: QuestionSet, view: View) -> None:
    """Raises `IndexMismatchError` if an index is another encoder's, or of other documents."""
    index, fingerprint = view.index, view.encoder.fingerprint
    if index.encoder_fingerprint != fingerprint:
        raise IndexMismatchError(
            f"the index was made by encoder {index.encoder_fingerprint}, and this one is "
            f"{fingerprint}: load that one, or make the index again"
        )
    if strangers := set(index.ids) - set(source.document_ids()):
        raise IndexMismatchError(
            f"the index holds {len(strangers)} documents that the data set has not, such as "
            f"{min(strangers)!r}: it was made from another data set or split"
        )


def _words(document: Document) -> str | None:
    if document.image is not None:
        return document.caption
    return "\n".join(part for part in document.parts if isinstance(part, str)) or None


def _draw(rng: np.random.Generator, ids: list[str], count: int) -> list[str]:
    """So many of the ids, or all if there are fewer, in their order."""
    picked = rng.choice(len(ids), min(count, len(ids)), replace=False)
    return [ids[i] for i in sorted(picked)]


def write_ranking(samples: Iterable[RankingSample], path: str | Path) -> Counter[str]:
    """Writes one JSON object a line, and returns how many there are of each answer.

    What stood in `path` stays until the new file is whole.
    """
    counts: Counter[str] = Counter()
    with whole_file(path) as draft, draft.open("w", encoding="utf-8") as file:
        for sample in samples:
            counts[sample.answer] += 1
            file.write(json.dumps(asdict(sample), ensure_ascii=False) + "\n")
    return counts


def read_ranking(path: str | Path) -> list[RankingSample]:
    """The samples that `write_ranking`, or a person, wrote.

    A line needs `question`, `document` and `answer`.

    Raises:
        OSError: there is no such file, or it is a pipe, a device, ...
        DataError: a line is not UTF-8, or of more than 1 MiB.
        RankingFileError: a line is no sample, or there is none.
    """
    samples = []
    for number, line in read_lines(Path(path), Problems(strict=True)):
        try:
            samples.append(_SAMPLE.validate_json(line))
        except ValidationError as error:
            raise RankingFileError(
                f"{place(path, number)}: {validation_reason(error)}; expected an object with "
                '"question", "document" and "answer": "Yes" or "No"'
            ) from error
    if not samples:
        raise RankingFileError(f"{path} holds no samples")
    return samples
