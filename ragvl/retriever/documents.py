"""Vectors of a data set's documents, without what cannot be read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ragvl.data.images import ImageError
from ragvl.data.questions import QuestionSet
from ragvl.retriever.encoding import Encoder, text_of


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
