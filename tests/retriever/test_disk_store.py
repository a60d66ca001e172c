"""Documents and vectors on disk, against brute force and FAISS in memory."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ragvl import Document
from ragvl.data.images import DocumentError
from ragvl.retriever import (
    DiskStore,
    IndexFileError,
    IndexMismatchError,
    Retriever,
    Where,
    is_saved_index,
    saved_encoders,
)
from ragvl.retriever.disk_store import DISK_MANIFEST
from ragvl.retriever.index import MIN_IVFPQ_VECTORS

DIM = 16
ENCODER = SimpleNamespace(dim=DIM, fingerprint="f" * 32, reads_pictures=True, origin={"path": "e"})
SIZES = (MIN_IVFPQ_VECTORS, 500, 1)


def name(i: int) -> str:
    return f'"{i}" ü'


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Around 100 centres, so that codes tell neighbours."""
    rng = np.random.default_rng(0)
    count = sum(SIZES)
    made = rng.normal(size=(100, DIM))[rng.integers(100, size=count)]
    made = made + 0.3 * rng.normal(size=(count, DIM))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def texts() -> dict[str, Document]:
    """Every third is a picture; the last hundred have a tag."""
    documents = {}
    for i in range(sum(SIZES)):
        tags = ["late"] if i >= sum(SIZES) - 100 else []
        if i % 3:
            documents[name(i)] = Document(text=f"text {i} of many", tags=tags)
        else:
            documents[name(i)] = Document(f"{i}.png", f"picture {i}", tags=tags)
    return documents


@pytest.fixture(scope="module")
def built(
    vectors: np.ndarray, texts: dict[str, Document], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("disk") / "index"
    store, start = DiskStore.create(folder, ENCODER), 0
    for size in SIZES:
        some = list(texts)[start : start + size]
        store.add({id: texts[id] for id in some}, vectors[start : start + size])
        start += size
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """One's own copy."""
    return Path(shutil.copytree(built, tmp_path / "index"))


def expected(vectors: np.ndarray, query: np.ndarray, k: int, among: np.ndarray) -> list[str]:
    order = among[np.argsort(-(vectors[among] @ query), kind="stable")]
    return [name(int(i)) for i in order[:k]]


@pytest.mark.slow
def test_what_brute_force_finds(built: Path, vectors: np.ndarray) -> None:
    store = DiskStore.open(built)
    assert len(store) == len(vectors)
    every, queries = np.arange(len(vectors)), vectors[::700]
    rows = store.search(queries, 10)
    hits = [
        len({*expected(vectors, q, 10, every)} & {id for id, _ in row})
        for q, row in zip(queries, rows, strict=True)
    ]
    assert np.mean(hits) / 10 >= 0.99  # measured: 1.0, of codes of 4 bytes and 200 candidates
    for query, row in zip(queries, rows, strict=True):
        numbers = [int(id.split('"')[1]) for id, _ in row]
        np.testing.assert_allclose([s for _, s in row], vectors[numbers] @ query, atol=1e-6)
        assert row == sorted(row, key=lambda hit: -hit[1])
    everything = store.search(queries[:1], 50_000)[0]
    assert {id for id, _ in everything} == {name(i) for i in every}
    scores = [score for _, score in everything]
    np.testing.assert_allclose(scores, np.sort(vectors @ queries[0])[::-1], atol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_parts_have_no_threads_of_their_own(built: Path, vectors: np.ndarray) -> None:
    """Each may start 32 that read ahead, whose stacks stay reserved: gigabytes for many parts."""

    def reserved_kib() -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmData:\s+(\d+)", status)[1])  # type: ignore[index]

    DiskStore.open(built).search(vectors[:1], 5)  # starts what all searches share
    store = DiskStore.open(built)
    before = reserved_kib()
    store.search(vectors[:1], 5)
    assert reserved_kib() - before < 32 << 10


@pytest.mark.slow
def test_kinds_and_conditions(built: Path, vectors: np.ndarray, texts: dict[str, Document]) -> None:
    store, query = DiskStore.open(built), vectors[5:6]
    late = np.arange(len(vectors) - 100, len(vectors))
    (found,) = store.search(query, 200, Where(tags=["late"]))
    assert [id for id, _ in found] == expected(vectors, query[0], 200, late)
    (found,) = store.search(query, 200, Where("PICTURE", ["late"]))
    assert [id for id, _ in found] == expected(vectors, query[0], 200, late[late % 3 == 0])
    (found,) = store.search(query, 6, Where(tags=["late"]), in_turn=True)
    assert [bool(texts[id].pictures) for id, _ in found] == [True, False] * 3
    assert store.search(query, 5, Where("nowhere")) == [[]]


def test_what_is_removed_is_not_found_again(folder: Path, vectors: np.ndarray) -> None:
    store = DiskStore.open(folder)
    gone = [name(5), name(MIN_IVFPQ_VECTORS + 3)]
    with pytest.raises(ValueError, match="not in the index: 'x'"):
        store.remove([*gone, "x"])
    with pytest.raises(TypeError, match="not one string"):
        store.remove(name(5))
    store.remove(gone[:1])
    store.remove(gone[1:])
    for one in (store, DiskStore.open(folder)):
        assert len(one) == len(vectors) - 2 and one.get(gone) == {}
        assert name(5) not in dict(one.search(vectors[5:6], 20)[0])
    assert len(list(folder.glob("removed-*"))) == 1
    store.add({gone[0]: Document(text="again")}, vectors[7:8])
    again = DiskStore.open(folder)
    assert again.get(gone)[gone[0]].text == "again"
    assert gone[0] in dict(again.search(vectors[7:8], 2)[0])


def test_documents(built: Path, texts: dict[str, Document]) -> None:
    store = DiskStore.open(built)
    some = [name(i) for i in (0, MIN_IVFPQ_VECTORS, sum(SIZES) - 1)]
    found = store.get([*some, "none"])
    assert list(found) == some
    assert [found[id].caption or found[id].text for id in some] == [
        texts[id].caption or texts[id].text for id in some
    ]
    assert list(store.documents) == list(texts)


def test_what_cannot_be_added(folder: Path, tmp_path: Path) -> None:
    store, new = DiskStore.open(folder), {"new": Document(text="a")}
    for documents, vectors, message in (
        (new | {name(3): Document(text="b")}, np.ones((2, DIM)), "already there"),
        (new, np.ones((2, DIM)), "1 documents for 2 vectors"),
        (new, np.ones((1, DIM + 1)), "must be of shape"),
        (new, np.full((1, DIM), np.inf), "must be finite"),
        ({"p": Document(np.zeros((4, 4, 3), np.uint8))}, np.ones((1, DIM)), "is in memory"),
    ):
        with pytest.raises((ValueError, DocumentError), match=message):
            store.add(documents, vectors)
    assert len(DiskStore.open(folder)) == sum(SIZES)
    store.add({}, np.empty((0, DIM)))
    fresh = DiskStore.create(tmp_path / "fresh", ENCODER)
    with pytest.raises(ValueError, match="needs at least 9,984 of them; got 1"):
        fresh.add(new, np.ones((1, DIM)))
    assert fresh.search(np.ones((1, DIM)), 3) == [[]] and len(fresh) == 0
    with pytest.raises(ValueError, match="holds an index already"):
        DiskStore.create(folder, ENCODER)
    with pytest.raises(ValueError, match="expected=0"):
        DiskStore.create(tmp_path / "none", ENCODER, expected=0)


def test_a_part_that_was_not_finished_is_not_there(
    folder: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskStore.open(folder)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(store, "_write", full)
    with pytest.raises(OSError, match="no space left"):
        store.add({"new": Document(text="a")}, vectors[:1])
    assert len(list(folder.glob("part-*"))) == len(SIZES)
    assert DiskStore.open(folder).get(["new"]) == {}


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest", "lines", "index"])
def test_damage_is_named(folder: Path, damage: str) -> None:
    # The largest part is the first, which holds what is asked for
    part = max(folder.glob("part-*"), key=lambda one: (one / "vectors.f32").stat().st_size)
    if damage == "cut":
        os.truncate(part / "vectors.f32", 100)
    elif damage == "missing":
        (part / "rows.i64").unlink()
    elif damage == "manifest":
        (folder / DISK_MANIFEST).write_text('{"dim": 3}')
    elif damage == "lines":
        size = (part / "lines.jsonl").stat().st_size
        (part / "lines.jsonl").write_bytes(b"x" * size)
    else:
        size = (part / "index.faiss").stat().st_size
        (part / "index.faiss").write_bytes(b"x" * size)
    with pytest.raises(IndexFileError, match=r"missing or cut|not written by|line 1|cannot be re"):
        store = DiskStore.open(folder)
        store.search(np.ones((1, DIM)), 3)
        store.get([name(0)])
    with pytest.raises(FileNotFoundError, match="holds no index"):
        DiskStore.open(folder.parent)


def test_a_retriever_finds_it(built: Path, encoder: object) -> None:
    assert is_saved_index(built) and saved_encoders(built) == {"picture": {"path": "e"}}
    with pytest.raises(IndexMismatchError, match="was built by encoder f"):
        Retriever.load(built, encoder)
    with pytest.raises(IndexMismatchError, match="vectors of length 16"):
        Retriever(encoder, store=DiskStore.open(built))
    with pytest.raises(ValueError, match="cannot be saved in"):
        DiskStore.open(built).save(built.parent, {})
