"""Vectors of a data set's documents, kept in files that are checked before they are believed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ragvl.blocks import MapBlocks
from ragvl.data.images import DECODING
from ragvl.data.questions import QuestionSet
from ragvl.files import check_regular, whole_file
from ragvl.identity import checksum, name_of
from ragvl.messages import reason, shown
from ragvl.progress import ProgressBar
from ragvl.retriever import (
    DOCUMENTS_AT_ONCE,
    Encoder,
    MixedIndex,
    Order,
    VectorIndex,
    View,
    encode_blocks,
)

logger = logging.getLogger(__name__)

_ABOUT = "about"  # what the file's head says of it, as JSON
_MAX_ID_BYTES = 2**16  # room for a document's id, in the file's head


class VectorsFileError(ValueError):
    """A file of vectors is damaged, or another one's; the message names it."""


@dataclass(frozen=True)
class DocumentVectors:
    """Vectors of a data set's documents, by each encoder. It contains ids of readable documents.

    Attributes:
        encoders: by order.
        vectors: by order and id.
        readable: ids of the documents that can be read, whether or not an encoder finds them.
        texts: ids of the documents without a picture; there may be others among them.
    """

    encoders: Mapping[Order, Encoder]
    vectors: Mapping[Order, Mapping[str, np.ndarray]]
    readable: frozenset[str]
    texts: frozenset[str]

    def __contains__(self, id: object) -> bool:
        return id in self.readable

    def views(self, ids: Iterable[str]) -> dict[Order, View]:
        """Some of the documents, to be searched."""
        pool = list(ids)
        views: dict[Order, View] = {}
        for order, encoder in self.encoders.items():
            vectors = self.vectors[order]
            index = VectorIndex(encoder.dim)
            if held := [id for id in pool if id in vectors]:
                index.add(held, np.stack([vectors[id] for id in held]))
            views[order] = View(encoder, MixedIndex(index, self.texts))
        return views


def embed_documents(
    source: QuestionSet,
    encoders: Mapping[Order, Encoder],
    folder: Path,
    *,
    map_blocks: MapBlocks,
    progress: bool = True,
) -> DocumentVectors:
    """Vectors of a data set's documents by every encoder.

    One encoder alone gets all documents, of two each what is for it: pictures, or captions and
    texts. A document that cannot be read has no vector. Vectors are kept in `folder` as they are
    computed, a file for a few dozen documents, and not computed again while the documents stay as
    they are. A file that is damaged is computed again, with a warning.

    Args:
        source: has the documents.
        encoders: by order.
        folder: keeps vectors.
        map_blocks: does `encoding_works` of the encoders.
        progress: show progress bars.

    Raises:
        DataError: a document cannot be read, and the data set is strict.
    """
    ids, texts = source.document_ids(), frozenset(source.texts())
    pictured = [id for id in ids if id not in texts]
    vectors: dict[Order, dict[str, np.ndarray]] = {}
    broken: set[str] = set()  # where nothing looks at pictures, reranking will show which are
    for order, encoder in encoders.items():
        wanted = pictured if encoder.reads_pictures and len(encoders) > 1 else ids
        blocks = _Block.of(source, encoder, wanted, folder)
        title = {"total": len(wanted), "desc": "embed", "unit": "document"}
        with ProgressBar(**title, disable=not progress) as bar:
            vectors[order] = _embedded(source, encoder, order, blocks, map_blocks, bar)
        missing = [id for id in wanted if id not in vectors[order]]
        if encoder.reads_pictures:
            broken.update(missing)
        elif missing:
            logger.warning(
                "%s: %d of %d documents have neither caption nor text, and are not found by any",
                shown(source.name),
                len(missing),
                len(wanted),
            )
    return DocumentVectors(encoders, vectors, frozenset(ids) - broken, texts)


@dataclass(frozen=True)
class _Block:
    """Documents that share a file.

    Attributes:
        path: the file.
        ids: the documents.
        known: what it holds.
    """

    path: Path
    ids: Sequence[str]
    known: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls, source: QuestionSet, encoder: Encoder, ids: Sequence[str], folder: Path
    ) -> Iterator[_Block]:
        """The documents in blocks."""
        for start in range(0, len(ids), DOCUMENTS_AT_ONCE):
            wanted = ids[start : start + DOCUMENTS_AT_ONCE]
            keys = [source.document_name(id) for id in wanted]
            name = name_of(
                "document vectors", encoder.fingerprint, encoder.dtype, DECODING, wanted, keys
            )
            path = folder / f"vectors-{name}.safetensors"
            yield cls(path, wanted, _known_vectors(path, encoder.dim, wanted))

    @property
    def missing(self) -> list[str]:
        """Documents without a vector; what could not be read another time is tried again."""
        return [id for id in self.ids if id not in self.known]


def _embedded(
    source: QuestionSet,
    encoder: Encoder,
    order: Order,
    blocks: Iterable[_Block],
    map_blocks: MapBlocks,
    bar: ProgressBar,
) -> dict[str, np.ndarray]:
    """Vectors (dim,) of documents by id; those that cannot be read are left out."""
    vectors: dict[str, np.ndarray] = {}
    asked, kept = tee(blocks)
    encoded = encode_blocks(source, encoder, order, (one.missing for one in asked), map_blocks)
    for block, new in zip(kept, encoded, strict=True):
        found = {**block.known, **new}
        found = {id: found[id] for id in block.ids if id in found}
        if new:
            save_vectors(block.path, found, encoder.dim)
        vectors |= found
        bar.update(len(block.ids))
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
    about = json.dumps({"ids": ids, "sha256": _checksum(ids, rows)})
    with whole_file(path) as draft:  # of several entries the order would be another each time
        save_file({"vectors": rows}, draft, {_ABOUT: about})


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
            about = json.loads((file.metadata() or {})[_ABOUT])
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
