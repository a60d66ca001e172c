"""Vectors of documents, without what cannot be read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ragvl.data.document import Document
from ragvl.data.images import DocumentError, ImageError
from ragvl.data.questions import QuestionSet
from ragvl.retriever.encoding import Encoder, text_of

Encoded = np.ndarray | DocumentError | FloatingPointError
"""A document's vector (dim,), or why it has none."""


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


def encode_documents(
    source: QuestionSet, encoder: Encoder, ids: Sequence[str], *, batch_size: int = 32
) -> dict[str, np.ndarray]:
    """Vectors (dim,) by id; a document that cannot be read is a problem of `source`, and left out.

    So is, for an encoder that reads texts, one without any, which is no problem.

    Args:
        source: has the documents.
        encoder: makes the vectors.
        ids: which; their pictures are all in memory at once.
        batch_size: pictures per forward pass.

    Raises:
        DataError: a document cannot be read, and the data set is strict.
    """
    documents = list(source.documents(ids=ids))
    if not encoder.reads_pictures:
        documents = [document for document in documents if text_of(document)]
    try:
        vectors = encoder.encode_documents(documents, batch_size=batch_size, progress=False)
    except ImageError:  # find out whose
        documents = list(source.decodable(documents))
        vectors = encoder.encode_documents(documents, batch_size=batch_size, progress=False)
    return dict(zip([str(document.id) for document in documents], vectors, strict=True))


def _problem(encoder: Encoder, document: Document) -> DocumentError | None:
    try:
        encoder.check_document(document)
    except DocumentError as error:
        return error
    return None
