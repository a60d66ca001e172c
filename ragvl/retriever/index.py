"""Vectors with string ids, searched by inner product through FAISS."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ragvl.arguments import checked_count
from ragvl.forks import fork_safe
from ragvl.messages import reason, shown, validation_reason
from ragvl.retriever.storage import IndexFileError, load_state, save_state

_MAX_DIM = 2**16
_VECTORS, _IDS = "index.faiss", "ids.json"  # its files

IndexKind = Literal["exact", "hnsw", "ivfpq"]
SearchDevice = Literal["auto", "cpu", "cuda"]

# HNSW: links per vector, and how many candidates are held while adding and searching.
_HNSW_LINKS = 32
_HNSW_EF_CONSTRUCTION = 200
_HNSW_EF_SEARCH = 128
# HNSW cannot drop a vector: removed ones are skipped, and it is rebuilt once they are this share.
_HNSW_MAX_REMOVED = 0.25

# IVF-PQ: 8-bit codes, so 256 centroids, and FAISS asks for 39 training vectors for each.
_PQ_CENTROIDS = 256
_TRAINING_PER_CENTROID = 39
MIN_IVFPQ_VECTORS = _PQ_CENTROIDS * _TRAINING_PER_CENTROID
# The share of lists that a search looks into, and the least number of them.
_IVF_PROBED_SHARE = 1 / 16
_IVF_MIN_PROBED = 8
# Sub-vector counts that FAISS's GPU search knows too; the first that divides `dim` is taken.
_PQ_SUBVECTORS = (96, 64, 56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 4, 3, 2, 1)
_PQ_MIN_SUBVECTOR_DIM = 4

_GPU_SCRATCH_BYTES = 256 << 20
_GPU_MAX_K = 2048  # FAISS's limit


class Selection:
    """Some of an index's vectors.

    Args:
        labels: theirs.
    """

    def __init__(self, labels: np.ndarray) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    @cached_property
    def selector(self) -> Any:
        """FAISS's own; built once, since it takes longer than a search."""
        return faiss_module().IDSelectorBatch(self._labels)


class VectorIndex:
    """Finds the vectors with the largest inner product with a query.

    Searches may run in several threads at once, but not while something is added or removed.

    Args:
        dim: length of the vectors.
        kind: "exact" compares with every vector. "hnsw" walks a graph: fast with millions of
            vectors, a little more memory. "ivfpq" keeps at most 96 bytes of a vector: smallest,
            with approximate scores, so that the order within a cluster blurs; its codebook is
            learned from the first `add`, which needs at least 9,984 vectors.
        encoder_fingerprint: names the encoder that makes the vectors; saved with them.
        device: where to search. "auto" takes a GPU if faiss-gpu and a GPU are there ("exact" and
            "ivfpq" only; "hnsw" always searches on the CPU).

    Raises:
        ImportError: FAISS is not installed.
        ValueError: an argument is not valid, or `device="cuda"` cannot be had.
    """

    def __init__(
        self,
        dim: int,
        *,
        kind: IndexKind = "exact",
        encoder_fingerprint: str = "",
        device: SearchDevice = "auto",
    ) -> None:
        dim = checked_count("dim", dim)
        if kind not in get_args(IndexKind):
            raise ValueError(f"kind={kind!r}: it must be one of {', '.join(get_args(IndexKind))}")
        self.dim = dim
        self.kind = kind
        self.encoder_fingerprint = encoder_fingerprint
        self._on_gpu = _use_gpu(device, kind)
        # A vector's label is its place in `_ids`, for good; None once it is removed.
        self._ids: list[str | None] = []
        self._labels: dict[str, int] = {}
        self._index = new_faiss_index(dim, kind)
        self._hidden: Any = None  # the selector that keeps removed vectors out of "hnsw" searches
        self._gpu_copy: Any = None  # made at the first search after a change
        self._gpu_lock = fork_safe(threading.Lock())

    def __getstate__(self) -> dict[str, Any]:
        """All but what another process makes for itself."""
        return {**vars(self), "_hidden": None, "_gpu_copy": None, "_gpu_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._gpu_lock = fork_safe(threading.Lock())
        if self.kind == "hnsw":
            self._forget_in_hnsw()

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, id: object) -> bool:
        return id in self._labels

    @property
    def ids(self) -> list[str]:
        """The ids, in the order in which they were added."""
        return list(self._labels)

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Adds vectors under new ids; all of them, or on an error none.

        Args:
            ids: one for each vector.
            vectors: (n, dim), floating.

        Raises:
            TypeError: an id is not a string.
            ValueError: an id is there already, or twice in `ids`; the vectors have another shape,
                or are not finite; too few to learn an "ivfpq" codebook from.
        """
        vectors = checked_vectors(vectors, self.dim, "vectors")
        if len(ids) != len(vectors):
            raise ValueError(f"{len(ids)} ids for {len(vectors)} vectors")
        self.check_new(ids)
        if len(ids) == 0:
            return
        if not self._index.is_trained:
            self._index = new_faiss_index(self.dim, self.kind, num_lists(len(vectors)))
            self._index.train(vectors)
        first = len(self._ids)
        labels = np.arange(first, first + len(ids), dtype=np.int64)
        self._index.add_with_ids(vectors, labels)
        self._ids.extend(ids)
        self._labels.update(zip(ids, labels.tolist(), strict=True))
        self._gpu_copy = None

    def check_new(self, ids: Sequence[str]) -> None:
        """Raises what `add` would raise about `ids`, before there are vectors for them."""
        check_new_ids(ids, self._labels)
        if not self._index.is_trained and 0 < len(ids) < MIN_IVFPQ_VECTORS:
            raise ValueError(
                f"kind='ivfpq' learns its codebook from the first vectors that are added, and "
                f"needs at least {MIN_IVFPQ_VECTORS:,} of them; got {len(ids):,}. Add more at "
                "once, or use kind='exact', which is fast for so few"
            )

    def remove(self, ids: Sequence[str]) -> None:
        """Removes vectors; all of them, or on an error none.

        Raises:
            TypeError: `ids` is a single string.
            ValueError: an id is not there.
        """
        check_removed_ids(ids, self._labels)
        labels = [self._labels.pop(id) for id in dict.fromkeys(ids)]
        for label in labels:
            self._ids[label] = None
        if self.kind != "hnsw":
            self._index.remove_ids(np.array(labels, dtype=np.int64))
        else:
            self._forget_in_hnsw()
        self._gpu_copy = None

    def selection(self, ids: Iterable[str]) -> Selection:
        """Some of its vectors, for `search`; of no use after they were added to or removed.

        Raises:
            KeyError: an id is not there.
        """
        return Selection(np.fromiter((self._labels[id] for id in ids), np.int64))

    def search(
        self, queries: np.ndarray, k: int, among: Selection | None = None
    ) -> list[list[tuple[str, float]]]:
        """The `k` best ids for each query with their scores, the best first.

        There are fewer than `k` where the index holds fewer; "hnsw" and "ivfpq" may also miss some.

        Args:
            queries: (n, dim), floating.
            k: how many; past the end is fine.
            among: search these only, which is done on the CPU.

        Raises:
            ValueError: `k` is below 1, or the queries have another shape or are not finite.
        """
        queries = checked_vectors(queries, self.dim, "queries")
        k = checked_count("k", k)
        k = min(k, len(self) if among is None else len(among))
        if k == 0 or len(queries) == 0:
            return [[] for _ in queries]
        if self._on_gpu and k <= _GPU_MAX_K and among is None:
            distances, labels = self._search_gpu(queries, k)
        else:
            parameters = self._search_parameters(k, among)
            distances, labels = self._index.search(queries, k, params=parameters)
        return [
            [
                (self._ids[label], distance)
                for label, distance in zip(*row, strict=True)
                if label >= 0
            ]
            for row in zip(labels.tolist(), distances.tolist(), strict=True)
        ]

    @property
    def metadata(self) -> dict[str, Any]:
        """What `from_state` must know beside the files."""
        return {
            "kind": self.kind,
            "dim": self.dim,
            "encoder_fingerprint": self.encoder_fingerprint,
            "num_vectors": len(self),
        }

    def files(self, prefix: str = "") -> dict[str, Callable[[Path], object]]:
        """What writes each of its files, by name; `prefix` comes before the names."""
        faiss = faiss_module()
        return {
            f"{prefix}{_VECTORS}": lambda path: faiss.write_index(self._index, str(path)),
            f"{prefix}{_IDS}": lambda path: path.write_text(json.dumps(self._ids)),
        }

    def save(self, folder: str | Path) -> None:
        """Saves vectors, ids and the encoder's fingerprint; what was there stays until it is done.

        Args:
            folder: made if it is not there.
        """
        save_state(folder, self.metadata, self.files())

    @classmethod
    def load(cls, folder: str | Path, *, device: SearchDevice = "auto") -> VectorIndex:
        """Loads what `save` wrote.

        Raises:
            FileNotFoundError: there is no saved index in `folder`.
            IndexFileError: it is damaged.
        """
        return cls.from_state(*load_state(folder), device=device)

    @classmethod
    def from_state(
        cls,
        metadata: Mapping[str, Any],
        state: Path,
        *,
        prefix: str = "",
        device: SearchDevice = "auto",
    ) -> VectorIndex:
        """The index in a folder that `load_state` has checked; see `files`.

        Raises:
            IndexFileError: its files are not what `save` writes, or do not belong together.
        """
        try:
            about = _Metadata.model_validate(dict(metadata))
        except ValidationError as error:
            raise IndexFileError(
                f"{shown(state.parent)} holds no index of ragvl's: {validation_reason(error)}"
            ) from error
        index = cls(
            about.dim,
            kind=about.kind,
            encoder_fingerprint=about.encoder_fingerprint,
            device=device,
        )
        index._ids = _read_ids(state / f"{prefix}{_IDS}")
        index._labels = {id: label for label, id in enumerate(index._ids) if id is not None}
        path = state / f"{prefix}{_VECTORS}"
        index._index = _read_faiss(path, like=index._index)
        if (index._index.d, len(index)) != (about.dim, about.num_vectors):
            raise IndexFileError(f"the files in {state} do not belong together; build it again")
        index._check_read(path)
        if index.kind == "hnsw":
            index._forget_in_hnsw()
        return index

    def _check_read(self, path: Path) -> None:
        """Raises if what was read from `path` does not go with the ids, or leads out of itself."""
        faiss = faiss_module()
        whole = True
        if self.kind == "ivfpq":
            lists, coarse = self._index.invlists, faiss.downcast_index(self._index.quantizer)
            sizes = [lists.list_size(number) for number in range(lists.nlist)]
            labels = np.concatenate(
                [np.empty(0, np.int64)]
                + [
                    faiss.rev_swig_ptr(lists.get_ids(number), size).copy()
                    for number, size in enumerate(sizes)
                    if size
                ]
            )
            numbers = faiss.vector_to_array(self._index.pq.centroids)
            whole = not self._index.is_trained or coarse.ntotal == self._index.nlist
        else:
            labels = faiss.vector_to_array(self._index.id_map)
            inner = faiss.downcast_index(self._index.index)
            flat = inner if self.kind == "exact" else faiss.downcast_index(inner.storage)
            numbers = faiss.vector_to_array(flat.codes).view(np.float32)
            whole = len(labels) == flat.ntotal and len(numbers) == flat.ntotal * self.dim
            if self.kind == "hnsw":
                whole = whole and _is_within(inner.hnsw, flat.ntotal)
        held, known = set(labels.tolist()), set(self._labels.values())
        if self.kind == "hnsw":  # which keeps removed vectors
            known |= {label for label in held if 0 <= label < len(self._ids)}
        if not whole or len(held) != len(labels) or held != known:
            raise IndexFileError(f"{shown(path)} does not go with its ids; build the index again")
        if not np.isfinite(numbers).all():
            raise IndexFileError(f"{shown(path)} holds a vector that is not finite")

    def _forget_in_hnsw(self) -> None:
        """Hides the removed vectors from searches, or rebuilds the graph when they are many."""
        faiss = faiss_module()
        labels = faiss.vector_to_array(self._index.id_map)
        removed = np.array([self._ids[label] is None for label in labels.tolist()], dtype=bool)
        self._hidden = None
        if removed.sum() > _HNSW_MAX_REMOVED * len(labels):
            vectors = self._index.index.reconstruct_n(0, len(labels))
            self._index = new_faiss_index(self.dim, "hnsw")
            if not removed.all():
                self._index.add_with_ids(vectors[~removed], labels[~removed])
        elif removed.any():
            self._hidden = faiss.IDSelectorNot(faiss.IDSelectorBatch(labels[removed]))

    def _search_parameters(self, k: int, among: Selection | None) -> Any:
        faiss = faiss_module()
        selector = None if among is None else among.selector
        if self.kind == "hnsw":
            breadth = max(_HNSW_EF_SEARCH, 2 * k)
            if selector is None or self._hidden is None:
                selector = selector or self._hidden
            else:
                selector = faiss.IDSelectorAnd(self._hidden, selector)
            return faiss.SearchParametersHNSW(efSearch=breadth, sel=selector)
        if self.kind == "ivfpq":
            num_lists = self._index.nlist
            size = len(self) if among is None else len(among)
            for_k = math.ceil(2 * k * num_lists / size)  # lists that hold 2k vectors together
            probed = max(_IVF_MIN_PROBED, math.ceil(num_lists * _IVF_PROBED_SHARE), for_k)
            return faiss.SearchParametersIVF(nprobe=min(num_lists, probed), sel=selector)
        return None if selector is None else faiss.SearchParameters(sel=selector)

    def _search_gpu(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        with self._gpu_lock:  # FAISS's GPU indexes take one search at a time
            if self._gpu_copy is None:
                faiss = faiss_module()
                resources = faiss.StandardGpuResources()
                resources.setTempMemory(_GPU_SCRATCH_BYTES)
                gpu = torch.cuda.current_device()
                self._gpu_copy = faiss.index_cpu_to_gpu(resources, gpu, self._index)
            return self._gpu_copy.search(queries, k, params=self._search_parameters(k, None))


class _Metadata(BaseModel):
    model_config = ConfigDict(strict=True)

    kind: IndexKind
    dim: Annotated[int, Field(ge=1, le=_MAX_DIM)]
    encoder_fingerprint: str
    num_vectors: Annotated[int, Field(ge=0)]


def _read_ids(path: Path) -> list[str | None]:
    """The ids by label.

    Raises:
        IndexFileError: the file holds something else, or an id twice.
    """
    try:
        ids = json.loads(path.read_bytes())
        if not isinstance(ids, list):
            raise ValueError(f"it is of type {type(ids).__name__}")
        check_ids([id for id in ids if id is not None])
    except (ValueError, TypeError, RecursionError) as error:
        raise IndexFileError(f"{shown(path)} is no list of ids: {reason(error)}") from error
    return ids


def _is_within(graph: Any, num_vectors: int) -> bool:
    """Whether a graph's links lead to vectors that are there, and its offsets to links."""
    faiss = faiss_module()
    links, offsets, levels = (
        faiss.vector_to_array(part) for part in (graph.neighbors, graph.offsets, graph.levels)
    )
    return bool(
        len(levels) == num_vectors
        and len(offsets) == num_vectors + 1
        and np.all(np.diff(offsets.astype(np.int64), prepend=0) >= 0)
        and offsets[-1] == len(links)
        and np.all((links >= -1) & (links < num_vectors))
        and -1 <= graph.entry_point < num_vectors
    )


class _ArrayLimit:
    """How large an array FAISS makes of what a file says; it has one limit for the process."""

    def __init__(self) -> None:
        self._lock = fork_safe(threading.Lock())

    @contextmanager
    def of(self, num_bytes: int) -> Iterator[None]:
        """`num_bytes` while the block runs."""
        faiss = faiss_module()
        with self._lock:
            before = faiss.get_deserialization_vector_byte_limit()
            faiss.set_deserialization_vector_byte_limit(max(1, num_bytes))
            try:
                yield
            finally:
                faiss.set_deserialization_vector_byte_limit(before)


_array_limit = _ArrayLimit()


def _read_faiss(path: Path, *, like: Any) -> Any:
    """The FAISS index in a file, if it is of the type that `like` has.

    Raises:
        IndexFileError: it is of another type, or cannot be read.
    """
    faiss = faiss_module()
    # No array of the file is larger than the file, whatever its head says
    with _array_limit.of(path.stat().st_size):
        try:
            loaded = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
        except (RuntimeError, MemoryError) as error:
            raise IndexFileError(f"{shown(path)} cannot be read: {reason(error)}") from error
    if type(loaded) is not type(like) or loaded.metric_type != like.metric_type:
        raise IndexFileError(f"{shown(path)} is no index of this kind; build it again")
    if hasattr(like, "index"):  # within the map from labels
        inner, expected = (faiss.downcast_index(index.index) for index in (loaded, like))
        if type(inner) is not type(expected):
            raise IndexFileError(f"{shown(path)} is no index of this kind; build it again")
    return loaded


def checked_vectors(vectors: np.ndarray, dim: int, name: str) -> np.ndarray:
    """Vectors (n, dim) in float32.

    Raises:
        TypeError: they are no floating array.
        ValueError: they have another shape, or are not finite.
    """
    if not isinstance(vectors, np.ndarray) or not np.issubdtype(vectors.dtype, np.floating):
        raise TypeError(f"{name} must be a floating numpy array")
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ValueError(f"{name} must be of shape (n, {dim}), not {vectors.shape}")
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        raise ValueError(f"{name} must be finite; row {bad[0]} is not")
    return vectors


def check_ids(ids: Sequence[str]) -> None:
    """Refuses ids that are not strings, or occur twice.

    Raises:
        TypeError: an id is not a string, or `ids` is a single string.
        ValueError: an id occurs twice.
    """
    if isinstance(ids, str):
        raise TypeError("ids must be a sequence of strings, not one string; write [id]")
    for id in ids:
        if not isinstance(id, str):
            raise TypeError(f"an id must be a string; {id!r} is of type {type(id).__name__}")
    if twice := [id for id, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"given more than once: {_some(twice)}; ids must be unique")


def check_new_ids(ids: Sequence[str], there: Container[str]) -> None:
    """Refuses ids that are there already, or that `check_ids` refuses.

    Raises:
        TypeError: see `check_ids`.
        ValueError: an id is there already, or occurs twice.
    """
    check_ids(ids)
    if taken := [id for id in ids if id in there]:
        raise ValueError(f"already there: {_some(taken)}; remove them first, or use other ids")


def check_removed_ids(ids: Sequence[str], there: Container[str]) -> None:
    """Refuses ids to remove that are not there.

    Raises:
        TypeError: `ids` is a single string.
        ValueError: an id is not there.
    """
    if isinstance(ids, str):
        raise TypeError("ids must be a sequence of strings, not one string; write [id]")
    if unknown := [id for id in ids if id not in there]:
        raise ValueError(f"not in the index: {_some(unknown)}")


def _some(ids: Sequence[str]) -> str:
    """The first few of `ids`, for a message."""
    rest = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return ", ".join(repr(id) for id in ids[:3]) + rest


def faiss_module() -> Any:
    """FAISS, imported when it is first needed.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "the retriever needs FAISS: pip install 'ragvl[cpu]', or 'ragvl[gpu]' for a GPU"
        ) from error
    return faiss


def _use_gpu(device: SearchDevice, kind: IndexKind) -> bool:
    if device not in get_args(SearchDevice):
        raise ValueError(
            f"device={device!r}: it must be one of {', '.join(get_args(SearchDevice))}"
        )
    faiss = faiss_module()
    present = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if device == "cuda" and kind == "hnsw":
        raise ValueError("kind='hnsw' searches on the CPU only; use 'exact' or 'ivfpq' on a GPU")
    if device == "cuda" and not present:
        raise ValueError(
            "device='cuda', but this FAISS sees no GPU; it takes pip install 'ragvl[gpu]' "
            "(instead of faiss-cpu) and a CUDA device"
        )
    return present and device != "cpu" and kind != "hnsw"


def num_lists(num_vectors: int) -> int:
    """How many lists "ivfpq" spreads its vectors over; each has enough to place its centroid."""
    return min(round(4 * math.sqrt(num_vectors)), num_vectors // _TRAINING_PER_CENTROID)


def new_faiss_index(dim: int, kind: IndexKind, num_lists: int = 1) -> Any:
    """An empty FAISS index; "ivfpq" is still to be trained."""
    faiss = faiss_module()
    if kind == "exact":
        return faiss.IndexIDMap(faiss.IndexFlatIP(dim))
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = _HNSW_EF_CONSTRUCTION
        return faiss.IndexIDMap(graph)
    bits = int(math.log2(_PQ_CENTROIDS))
    coarse = faiss.IndexFlatIP(dim)
    metric = faiss.METRIC_INNER_PRODUCT
    return faiss.IndexIVFPQ(coarse, dim, num_lists, num_subvectors(dim), bits, metric)


def num_subvectors(dim: int) -> int:
    """How many bytes "ivfpq" keeps of a vector."""
    return next(
        (m for m in _PQ_SUBVECTORS if dim % m == 0 and dim // m >= _PQ_MIN_SUBVECTOR_DIM), 1
    )
