"""Documents and vectors on disk: FAISS's IVF-PQ over memory-mapped files, for more than memory has.

    folder/ragvl_disk_index.json   what is current: the parts, how many documents each has
    folder/trained.faiss           centroids and codebook, learned from the first documents
    folder/part-<hex>/
        index.faiss                inverted lists, memory-mapped
        vectors.f32                the vectors themselves, read for the best candidates only
        lines.jsonl, ends.i64      documents, a line each, and where each line ends
        hashes.u64, rows.i64       ids' hashes in order, and whose they are
        pictured.bool              whether a document has a picture
    folder/removed-<hex>.i64       labels of what was removed

What is added together is a part, which never changes. A search takes candidates of every part by
their codes, and orders these by their vectors: scores are exact inner products. A new part, or
removal, becomes current by replacing one file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, StringConstraints, ValidationError

from ragvl.arguments import checked_count
from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.files import UnusableFileError, flush, open_regular, write_text
from ragvl.messages import quoted, reason, shown, validation_reason
from ragvl.retriever.encoding import Encoder
from ragvl.retriever.fusion import Order
from ragvl.retriever.index import (
    MIN_IVFPQ_VECTORS,
    check_ids,
    check_new_ids,
    check_removed_ids,
    checked_vectors,
    faiss_module,
    new_faiss_index,
    num_lists,
)
from ragvl.retriever.kinds import taking_turns
from ragvl.retriever.saved_documents import SavedDocument
from ragvl.retriever.storage import IndexFileError
from ragvl.retriever.store import Found, Hits, Where, best

DISK_MANIFEST = "ragvl_disk_index.json"

_TRAINED = "trained.faiss"
_MAX_MANIFEST_BYTES = 2**26
_PROBED_SHARE, _MIN_PROBED = 1 / 16, 8
_CANDIDATES = 10  # for each document wanted, whose vectors are read
_MIN_CANDIDATES = 200
_QUERIES_AT_ONCE = 64


class _Part(BaseModel):
    name: Annotated[str, StringConstraints(pattern=r"^part-[0-9a-f]{16}$")]
    count: Annotated[int, Field(ge=1)]
    bytes: dict[str, Annotated[int, Field(ge=0)]]


class _Manifest(BaseModel):
    format: Annotated[int, Field(ge=1, le=1)] = 1
    dim: Annotated[int, Field(ge=1)]
    encoder_fingerprint: str
    order: Order
    encoder: dict[str, str]
    expected: Annotated[int, Field(ge=1)]
    parts: list[_Part] = []
    removed: Annotated[str, StringConstraints(pattern=r"^removed-[0-9a-f]{16}\.i64$")] | None = None


class DiskStore:
    """Documents and vectors in files that are never loaded: a `VectorStore`.

    Memory holds the centroids, and what the system keeps of files that were read lately, which it
    gives up when others need it. Searches may run in several threads at once, but not while
    something is added or removed; one process writes at a time. Removed documents keep their place
    on disk.

    Made by `create` and `open`.
    """

    def __init__(self, folder: Path, manifest: _Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._parts: list[_OpenPart] = []
        first = 0
        for part in manifest.parts:
            self._parts.append(_OpenPart(folder / part.name, part, manifest.dim, first))
            first += part.count
        removed = np.empty(0, np.int64)
        if manifest.removed is not None:
            removed = np.fromfile(folder / manifest.removed, np.int64)
        self._set_removed(removed)

    def _set_removed(self, removed: np.ndarray) -> None:
        self._removed = np.sort(removed)

    @classmethod
    def create(
        cls, folder: str | Path, encoder: Encoder, *, expected: int = 1_000_000
    ) -> DiskStore:
        """An empty one, in a folder that holds none.

        Args:
            folder: made if it is not there.
            encoder: makes the vectors.
            expected: about how many documents there will be; decides over the number of lists.

        Raises:
            ImportError: FAISS is not installed.
            OSError: the folder cannot be written.
            ValueError: there is one already, or `expected` is below 1.
        """
        folder = Path(folder)
        expected = checked_count("expected", expected)
        faiss_module()
        if (folder / DISK_MANIFEST).exists():
            raise ValueError(f"{shown(folder)} holds an index already: open it")
        folder.mkdir(parents=True, exist_ok=True)
        manifest = _Manifest(
            dim=encoder.dim,
            encoder_fingerprint=encoder.fingerprint,
            order="picture" if encoder.reads_pictures else "caption",
            encoder=dict(encoder.origin),
            expected=expected,
        )
        store = cls(folder, manifest)
        store._write(manifest)
        return store

    @classmethod
    def open(cls, folder: str | Path) -> DiskStore:
        """One that is there; its files' sizes are looked at, nothing is read.

        Raises:
            ImportError: FAISS is not installed.
            FileNotFoundError: there is none in the folder.
            IndexFileError: it is damaged, or of a newer version.
        """
        faiss_module()
        folder = Path(folder)
        path = folder / DISK_MANIFEST
        if not path.exists():
            raise FileNotFoundError(f"{shown(folder)} holds no index (there is no {DISK_MANIFEST})")
        try:
            with open_regular(path, max_bytes=_MAX_MANIFEST_BYTES) as file:
                manifest = _Manifest.model_validate_json(file.read())
        except UnusableFileError as error:
            raise IndexFileError(f"{shown(path)}: {error.strerror}") from error
        except ValidationError as error:
            why = validation_reason(error)
            raise IndexFileError(f"{shown(path)} was not written by this ragvl: {why}") from error
        for part in manifest.parts:
            for name, size in part.bytes.items():
                file_path = folder / part.name / Path(name).name
                if not file_path.is_file() or file_path.stat().st_size != size:
                    raise IndexFileError(
                        f"{shown(file_path)} is missing or cut; build the index again"
                    )
        return cls(folder, manifest)

    def _write(self, manifest: _Manifest) -> None:
        write_text(self._folder / DISK_MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        self._manifest = manifest

    def __len__(self) -> int:
        return sum(part.count for part in self._parts) - len(self._removed)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self._manifest.dim

    @property
    def encoder_fingerprint(self) -> str:
        """Names the encoder that makes the vectors."""
        return self._manifest.encoder_fingerprint

    @property
    def metadata(self) -> dict[str, Any]:
        """What a saved index would say of itself."""
        return self._manifest.model_dump(exclude={"format", "parts", "removed", "expected"})

    @property
    def documents(self) -> dict[str, Document]:
        """All of them by id, in the order in which they were added, read from the disk."""
        return {id: document for _, id, document in self._every()}

    def _every(self) -> Iterator[tuple[int, str, Document]]:
        """Labels with ids and documents."""
        removed = set(self._removed.tolist())
        for part in self._parts:
            for row in range(part.count):
                if part.first + row not in removed:
                    yield part.first + row, *part.document(row)

    def _label(self, id: str) -> int | None:
        """Whose id that is; None if nobody's."""
        for part in self._parts:
            for row in part.rows_named(id):
                if not self._is_removed(part.first + row):
                    return part.first + row
        return None

    def _is_removed(self, label: int) -> bool:
        place = int(np.searchsorted(self._removed, label))
        return place < len(self._removed) and self._removed[place] == label

    def _part_of(self, label: int) -> _OpenPart:
        return next(part for part in reversed(self._parts) if part.first <= label)

    def get(self, ids: Iterable[str]) -> dict[str, Document]:
        """See `VectorStore`."""
        found = {}
        for id in ids:
            if (label := self._label(id)) is not None:
                part = self._part_of(label)
                _, found[id] = part.document(label - part.first)
        return found

    def check_document(self, id: str, document: Document) -> None:
        """See `VectorStore`.

        Raises:
            DocumentError: a picture of it is in memory.
        """
        if any(picture.path is None for picture in document.pictures):
            raise DocumentError(
                f"{document.name} ({quoted(id)}): its picture is in memory, and an index on disk "
                "keeps pictures' paths: write it to a file"
            )

    def check_new(self, documents: Mapping[str, Document]) -> None:
        """See `VectorStore`."""
        check_ids(list(documents))
        for id, document in documents.items():
            self.check_document(id, document)
        check_new_ids(list(documents), {id for id in documents if self._label(id) is not None})
        if not self._parts and 0 < len(documents) < MIN_IVFPQ_VECTORS:
            raise ValueError(
                f"an index on disk learns its codebook from the first documents that are added, "
                f"and needs at least {MIN_IVFPQ_VECTORS:,} of them; got {len(documents):,}"
            )

    def add(self, documents: Mapping[str, Document], vectors: np.ndarray) -> None:
        """See `VectorStore`; what is added together is in memory once, and a part on disk."""
        vectors = checked_vectors(vectors, self.dim, "vectors")
        if len(documents) != len(vectors):
            raise ValueError(f"{len(documents)} documents for {len(vectors)} vectors")
        self.check_new(documents)
        if not len(vectors):
            return
        name = f"part-{secrets.token_hex(8)}"
        try:
            index = self._trained(vectors)
            first = sum(part.count for part in self._parts)
            sizes = _write_part(self._folder / name, index, documents, vectors, first)
            part = _Part(name=name, count=len(vectors), bytes=sizes)
            opened = _OpenPart(self._folder / name, part, self.dim, first)
            parts = [*self._manifest.parts, part]
            self._write(self._manifest.model_copy(update={"parts": parts}))
        except BaseException:
            shutil.rmtree(self._folder / name, ignore_errors=True)
            raise
        self._parts.append(opened)

    def _trained(self, vectors: np.ndarray) -> Any:
        """An empty index with the centroids and the codebook, learned now if there are none."""
        faiss = faiss_module()
        path = self._folder / _TRAINED
        if self._parts:
            return _read(path, self.dim, mapped=False)
        lists = min(num_lists(self._manifest.expected), num_lists(len(vectors)))
        index = new_faiss_index(self.dim, "ivfpq", lists)
        index.train(vectors)
        faiss.write_index(index, str(path))
        flush(path)
        return index

    def remove(self, ids: Sequence[str]) -> None:
        """See `VectorStore`."""
        labels = {} if isinstance(ids, str) else {id: self._label(id) for id in ids}
        check_removed_ids(ids, {id for id, label in labels.items() if label is not None})
        if not labels:
            return
        removed = np.concatenate([self._removed, np.array(list(labels.values()), np.int64)])
        name = f"removed-{secrets.token_hex(8)}.i64"
        removed.tofile(self._folder / name)
        flush(self._folder / name)
        before = self._manifest.removed
        self._write(self._manifest.model_copy(update={"removed": name}))
        self._set_removed(removed)
        if before is not None:
            (self._folder / before).unlink(missing_ok=True)

    def search(
        self, queries: np.ndarray, k: int, where: Where | None = None, *, in_turn: bool = False
    ) -> list[Hits]:
        """See `VectorStore`; with `where` every document is read."""
        queries = checked_vectors(queries, self.dim, "queries")
        k = checked_count("k", k)
        allowed = None
        if where is not None:
            matching = [label for label, _, one in self._every() if where.matches(one)]
            allowed = np.array(matching, np.int64)
        of_kinds = [
            [
                hits
                for start in range(0, len(queries), _QUERIES_AT_ONCE)
                for hits in self._search(
                    queries[start : start + _QUERIES_AT_ONCE], k, allowed, pictured
                )
            ]
            for pictured in ((True, False) if in_turn else (None,))
        ]
        return taking_turns(of_kinds, k) if in_turn else of_kinds[0]

    def _search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None, pictured: bool | None
    ) -> list[Hits]:
        found: list[list[Found]] = [[] for _ in queries]
        for part in self._parts:
            labels = part.candidates(queries, k, self._removed, allowed, pictured)
            for query, row, of_query in zip(queries, labels, found, strict=True):
                of_query += part.scored(query, row[row >= 0] - part.first)
                of_query[:] = sorted(of_query, key=lambda one: (-one.score, one.place))[:k]
        ids = {one.place: self._id(one.place) for of_query in found for one in of_query}
        return [best([Found(ids[o.place], o.score, o.place) for o in row], k) for row in found]

    def _id(self, label: int) -> str:
        part = self._part_of(label)
        return part.id(label - part.first)

    def save(self, place: str | Path, about: Mapping[str, Any]) -> None:  # noqa: ARG002
        """See `VectorStore`; everything is kept already.

        Raises:
            ValueError: that is another folder.
        """
        if Path(place).resolve() != self._folder.resolve():
            raise ValueError(
                f"documents in {shown(self._folder)} cannot be saved in {shown(place)}"
            )

    def close(self) -> None:
        """Nothing is open but files that are closed with the store."""


class _OpenPart:
    """A part whose files are mapped or read where they are needed.

    Args:
        folder: the part's.
        part: what the manifest says of it.
        dim: of its vectors.
        first: the label of its first document.
    """

    def __init__(self, folder: Path, part: _Part, dim: int, first: int) -> None:
        self._folder = folder
        self.count = part.count
        self._dim = dim
        self.first = first

    @cached_property
    def _index(self) -> Any:
        return _read(self._folder / "index.faiss", self._dim)

    @cached_property
    def _ends(self) -> np.ndarray:
        return self._mapped("ends.i64", np.int64)

    @cached_property
    def _hashes(self) -> np.ndarray:
        return self._mapped("hashes.u64", np.uint64)

    @cached_property
    def _rows(self) -> np.ndarray:
        return self._mapped("rows.i64", np.int64)

    @cached_property
    def _pictured(self) -> np.ndarray:
        return np.fromfile(self._folder / "pictured.bool", np.bool_)

    def _mapped(self, name: str, dtype: type) -> np.ndarray:
        return np.memmap(self._folder / name, dtype, mode="r", shape=(self.count,))

    def rows_named(self, id: str) -> list[int]:
        """Rows of that id."""
        hashed = _hash(id)
        place = int(np.searchsorted(self._hashes, hashed))
        rows = []
        while place < self.count and self._hashes[place] == hashed:
            row = int(self._rows[place])
            if self.id(row) == id:
                rows.append(row)
            place += 1
        return rows

    def _line(self, row: int) -> bytes:
        start = 0 if row == 0 else int(self._ends[row - 1])
        return _read_bytes(self._folder / "lines.jsonl", start, int(self._ends[row]) - start)

    def _saved(self, row: int) -> SavedDocument:
        try:
            return SavedDocument.of(self._line(row))
        except (ValueError, RecursionError) as error:
            path = self._folder / "lines.jsonl"
            raise IndexFileError(f"{shown(path)}, line {row + 1}: {reason(error)}") from error

    def id(self, row: int) -> str:
        """Of one document."""
        return self._saved(row).id

    def document(self, row: int) -> tuple[str, Document]:
        """One document, with its id."""
        saved = self._saved(row)
        document = saved.document()
        if document is None:
            raise IndexFileError(f"{shown(self._folder)}: {quoted(saved.id)} has no picture")
        return saved.id, document

    def candidates(
        self,
        queries: np.ndarray,
        k: int,
        removed: np.ndarray,
        allowed: np.ndarray | None,
        pictured: bool | None,
    ) -> np.ndarray:
        """Labels (n, m) of what may be among the best, by their codes; -1 where there are fewer."""
        faiss = faiss_module()
        mask = np.ones(self.count, bool) if pictured is None else self._pictured == pictured
        if allowed is not None:
            named = np.zeros(self.count, bool)
            named[self._of_mine(allowed)] = True
            mask = mask & named
        mask[self._of_mine(removed)] = False
        num_allowed = int(mask.sum())
        wanted = min(max(_CANDIDATES * k, _MIN_CANDIDATES), num_allowed)
        if not wanted:
            return np.full((len(queries), 0), -1, np.int64)
        selector = None
        if num_allowed < self.count:
            selector = faiss.IDSelectorBatch(np.flatnonzero(mask) + self.first)
        lists = self._index.nlist
        probed = max(
            _MIN_PROBED,
            round(lists * _PROBED_SHARE),
            int(np.ceil(2 * wanted * lists / num_allowed)),  # which hold twice as many together
        )
        parameters = faiss.SearchParametersIVF(nprobe=min(lists, probed), sel=selector)
        _, labels = self._index.search(queries, wanted, params=parameters)
        return labels

    def _of_mine(self, labels: np.ndarray) -> np.ndarray:
        """Rows of those labels that are this part's."""
        rows = labels - self.first
        return rows[(rows >= 0) & (rows < self.count)]

    def scored(self, query: np.ndarray, rows: np.ndarray) -> list[Found]:
        """Those rows with their exact inner products."""
        rows = np.sort(rows)  # so that the disk is read in order
        vectors = np.empty((len(rows), self._dim), np.float32)
        size = vectors.itemsize * self._dim
        with open(self._folder / "vectors.f32", "rb", buffering=0) as file:
            for row, vector in zip(rows.tolist(), vectors, strict=True):
                read = os.preadv(file.fileno(), [vector.data], row * size)
                if read != size:
                    raise IndexFileError(f"{shown(self._folder)}: vectors.f32 is cut")
        scores = (vectors @ query).tolist()
        return [
            Found("", score, self.first + row)
            for row, score in zip(rows.tolist(), scores, strict=True)
        ]


def _write_part(
    folder: Path,
    index: Any,
    documents: Mapping[str, Document],
    vectors: np.ndarray,
    first: int,
) -> dict[str, int]:
    """Writes a part's files.

    Returns:
        Their sizes by name.
    """
    faiss = faiss_module()
    folder.mkdir()
    index.add_with_ids(vectors, np.arange(first, first + len(vectors), dtype=np.int64))
    faiss.write_index(index, str(folder / "index.faiss"))
    vectors.tofile(folder / "vectors.f32")
    ends, end = np.empty(len(documents), np.int64), 0
    with (folder / "lines.jsonl").open("wb") as file:
        for i, (id, document) in enumerate(documents.items()):
            end += file.write(SavedDocument.line_of(id, document).encode() + b"\n")
            ends[i] = end
    ends.tofile(folder / "ends.i64")
    hashes = np.array([_hash(id) for id in documents], np.uint64)
    rows = np.argsort(hashes, kind="stable").astype(np.int64)
    hashes[rows].tofile(folder / "hashes.u64")
    rows.tofile(folder / "rows.i64")
    pictured = np.array([bool(document.pictures) for document in documents.values()], np.bool_)
    pictured.tofile(folder / "pictured.bool")
    for path in [*folder.iterdir(), folder]:
        flush(path)
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _read(path: Path, dim: int, *, mapped: bool = True) -> Any:
    """An IVF-PQ index; its inverted lists stay on disk where they are mapped.

    Raises:
        IndexFileError: it cannot be read, or is another one.
    """
    faiss = faiss_module()
    flags = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE | (faiss.IO_FLAG_MMAP if mapped else 0)
    try:
        index = faiss.read_index(str(path), flags)
    except (RuntimeError, MemoryError) as error:
        raise IndexFileError(f"{shown(path)} cannot be read: {reason(error)}") from error
    if not isinstance(index, faiss.IndexIVFPQ) or index.d != dim:
        raise IndexFileError(f"{shown(path)} is no index of this kind; build it again")
    if mapped:  # by default each part starts 32 threads that read ahead, with 8 MiB of stack each
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
    return index


def _read_bytes(path: Path, start: int, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, start)


def _hash(id: str) -> np.uint64:
    digest = hashlib.blake2b(id.encode(), digest_size=8).digest()
    return np.frombuffer(digest, np.uint64)[0]
