"""Vectors of a data set's documents, kept in files that are checked before they are believed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ragvl.data.images import DECODING
from ragvl.data.questions import QuestionSet
from ragvl.evaluation.pace import Pace
from ragvl.files import check_regular, whole_file
from ragvl.identity import checksum, name_of
from ragvl.messages import reason, shown
from ragvl.progress import ProgressBar
from ragvl.retriever import DualEncoder, encode_documents

logger = logging.getLogger(__name__)

_DOCUMENTS_AT_ONCE = 256  # in a file
_MAX_ID_BYTES = 2**16  # room for a document's id, in the file's head


class VectorsFileError(ValueError):
    """A file of vectors is damaged, or another one's; the message names it."""


def embed_documents(
    source: QuestionSet, encoder: DualEncoder, folder: Path, *, progress: bool = True
) -> dict[str, np.ndarray]:
    """Vectors (dim,) of a data set's documents by id; those that cannot be read are left out.

    Vectors are kept in `folder` as they are computed, a file for some hundred documents, and not
    computed again while the documents stay as they are. A file that is damaged is computed again,
    with a warning.
    """
    vectors: dict[str, np.ndarray] = {}
    ids = source.document_ids()
    pace: Pace[str] = Pace(most=_DOCUMENTS_AT_ONCE)
    with ProgressBar(total=len(ids), desc="embed", unit="document", disable=not progress) as bar:
        for start in range(0, len(ids), _DOCUMENTS_AT_ONCE):
            wanted = ids[start : start + _DOCUMENTS_AT_ONCE]
            keys = [source.document_name(id) for id in wanted]
            dtype = str(encoder.model.dtype)
            name = name_of("vectors", encoder.fingerprint, dtype, DECODING, wanted, keys)
            path = folder / f"vectors-{name}.safetensors"
            known = _known_vectors(path, encoder.dim, wanted)
            bar.update(len(known))
            # What could not be read another time is tried again
            for part in pace.blocks(id for id in wanted if id not in known):
                if encoded := encode_documents(source, encoder, part):
                    known |= encoded
                    save_vectors(path, known, encoder.dim)
                bar.update(len(part))
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


def save_vectors(path: Path, vectors: Mapping[str, np.ndarray], dim: int) -> None:
    """Writes vectors (dim,) by id; the file is there whole, or not at all."""
    rows = np.empty((len(vectors), dim), np.float32)
    for row, vector in zip(rows, vectors.values(), strict=True):
        row[:] = vector
    ids = json.dumps(list(vectors))
    with whole_file(path) as draft:
        save_file({"vectors": rows}, draft, {"ids": ids, "sha256": _checksum(ids, rows)})


def load_vectors(path: Path, dim: int, expected: Sequence[str]) -> dict[str, np.ndarray]:
    """What `save_vectors` wrote.

    Args:
        path: the file.
        dim: of a vector.
        expected: ids; the file may lack some, and has no others.

    Raises:
        FileNotFoundError: it is not there.
        VectorsFileError: it is damaged, or holds something else.
        OSError: it cannot be read.
    """
    check_regular(path, max_bytes=len(expected) * (4 * dim + _MAX_ID_BYTES) + 2**16)
    try:
        with safe_open(path, framework="np") as file:  # checks its head against its size
            about = file.metadata() or {}
            rows = file.get_tensor("vectors")
        ids = json.loads(about["ids"])
        if about["sha256"] != _checksum(about["ids"], rows):
            raise ValueError("its checksum does not match")
        if rows.dtype != np.float32 or rows.shape != (len(ids), dim):
            raise ValueError(f"it holds {rows.shape} numbers of {rows.dtype} for {len(ids)} ids")
        if len(set(ids)) < len(ids) or not set(ids) <= set(expected):
            raise ValueError("it has ids of other documents")
        if not np.isfinite(rows).all():
            raise ValueError("a vector is not finite")
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VectorsFileError(f"{shown(path)} is damaged: {reason(error)}") from error
    return dict(zip(ids, rows, strict=True))


def _checksum(ids: str, rows: np.ndarray) -> str:
    return checksum(ids.encode(), b"\0", rows.tobytes())
