"""Vectors of documents, without what cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import tee

import numpy as np

from ragvl.blocks import MapBlocks, Works
from ragvl.data.document import Document
from ragvl.data.images import DocumentError, ImageError
from ragvl.data.questions import QuestionSet
from ragvl.retriever.encoding import Encoder, text_of
from ragvl.retriever.fusion import Order

Encoded = np.ndarray | DocumentError | FloatingPointError
"""A document's vector (dim,), or why it has none."""

DOCUMENTS_AT_ONCE = 32
"""Of a data set in a block, which is a batch: vectors' last bits depend on what is in it, so it
must always be the same. More would be lost at a stop."""


def encode_each(
    encoder: Encoder, documents: Sequence[Document], *, batch_size: int = 32
) -> list[Encoded]:
    """Of each document its vector, or its own error.

    Args:
        encoder: makes the vectors.
        documents: which; their pictures are all in memory at once.
        batch_size: pictures or texts per forward pass.
    """
    try:
        return list(encoder.encode_documents(documents, batch_size=batch_size, progress=False))
    except (DocumentError, FloatingPointError) as error:
        if len(documents) == 1:
            return [error]
    problems = [_problem(encoder, document) for document in documents]
    usable = [one for one, problem in zip(documents, problems, strict=True) if problem is None]
    if len(usable) == len(documents):  # it shows at work alone
        return [encode_each(encoder, [document])[0] for document in documents]
    encoded = iter(encode_each(encoder, usable, batch_size=batch_size))
    return [next(encoded) if problem is None else problem for problem in problems]


def encoding_works(encoders: Mapping[Order, Encoder]) -> Works:
    """By order `encode_each`, which `encode_blocks` has done."""
    return {order: partial(encode_each, encoder) for order, encoder in encoders.items()}


def encode_blocks(
    source: QuestionSet,
    encoder: Encoder,
    order: Order,
    blocks: Iterable[Sequence[str]],
    map_blocks: MapBlocks,
) -> Iterator[dict[str, np.ndarray]]:
    """Of each block of ids the vectors (dim,) by id.

    A document that cannot be read is a problem of `source`, and left out. So is, for an encoder
    that reads texts, one without any, which is no problem.

    Args:
        source: has the documents.
        encoder: makes the vectors.
        order: the encoder's.
        blocks: ids.
        map_blocks: does `encoding_works` of this encoder.

    Raises:
        DataError: a document cannot be read, and the data set is strict.
    """
    asked, kept = tee(_encodable(source, encoder, ids) for ids in blocks)
    for done, documents in zip(map_blocks(order, asked), kept, strict=True):
        yield _vectors(source, documents, done.result)


def _encodable(source: QuestionSet, encoder: Encoder, ids: Iterable[str]) -> list[Document]:
    """The documents of these ids that an encoder reads."""
    documents = source.documents(ids=ids)
    return [one for one in documents if encoder.reads_pictures or text_of(one)]


def _vectors(
    source: QuestionSet, documents: Sequence[Document], encoded: Sequence[Encoded]
) -> dict[str, np.ndarray]:
    """Vectors by id; a document without is a problem of `source`."""
    vectors = {}
    for document, one in zip(documents, encoded, strict=True):
        if isinstance(one, ImageError):
            source.problems.add("broken picture", str(one))
        elif isinstance(one, Exception):
            raise one
        else:
            vectors[str(document.id)] = one
    return vectors


def _problem(encoder: Encoder, document: Document) -> DocumentError | None:
    try:
        encoder.check_document(document)
    except DocumentError as error:
        return error
    return None
