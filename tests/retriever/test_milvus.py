"""A retriever in Milvus, against Milvus Lite: what FAISS finds, and what is refused by name."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ragvl import Document, Query
from ragvl.cli import app
from ragvl.data.images import DocumentError
from ragvl.retriever import (
    DualEncoder,
    FaissStore,
    FusedRetriever,
    IndexFileError,
    IndexMismatchError,
    MilvusAddress,
    MilvusError,
    MilvusStore,
    Retriever,
    TextEncoder,
    VectorIndex,
    Where,
    bring_up_to_date,
    check_index,
    open_index,
)
from ragvl.retriever.milvus import TOKEN_VARIABLE

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

_numbers = itertools.count()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A database of Milvus Lite, which runs in this process until the module's last test."""
    from milvus_lite.server_manager import server_manager_instance

    path = tmp_path_factory.mktemp("milvus") / "documents.db"
    yield path
    server_manager_instance.release_server(str(path))


@pytest.fixture
def place(database: Path) -> str:
    """An address that nobody has used."""
    return f"{database}#c{next(_numbers)}"


@pytest.fixture(scope="module")
def documents(
    pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> list[Document]:
    """Pictures with captions and tags, and texts."""
    folder = tmp_path_factory.mktemp("pictures")
    made = []
    for i, pixels in enumerate(pictures[:5]):
        Image.fromarray(pixels).save(folder / f"{i}.png")
        tags = ["old", 'a "b" \\'] if i % 2 else ["old"]
        made.append(Document(folder / f"{i}.png", f"picture 10{i} %", f"p{i}", tags=tags))
    texts = ["Bread, and how it is BAKED.", "100_% \\ tower"]
    made += [Document(text=text, id=f'"t{i}" \\') for i, text in enumerate(texts)]
    made.append(Document(parts=["A deed", folder / "0.png"], id="parts"))
    return made


QUERIES = ("the mill", "a tower", "bread")


def found(retriever: Retriever, query: str, k: int, **how: Where) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in retriever.retrieve(query, k, **how)]


def assert_same(left: list[tuple[str, float]], right: list[tuple[str, float]]) -> None:
    assert [id for id, _ in left] == [id for id, _ in right]
    np.testing.assert_allclose([s for _, s in left], [s for _, s in right], atol=1e-6)


@pytest.fixture
def filled(
    place: str, encoder: DualEncoder, documents: list[Document]
) -> tuple[Retriever, Retriever]:
    """The same documents in Milvus and in FAISS."""
    store = MilvusStore.create(place, encoder)
    return Retriever(encoder, documents, store=store), Retriever(encoder, documents)


def test_what_faiss_finds(filled: tuple[Retriever, Retriever], documents: list[Document]) -> None:
    milvus, faiss = filled
    assert len(milvus) == len(documents) and list(milvus.documents) == list(faiss.documents)
    for k in (1, 3, 5, 8, 50):
        for query in QUERIES:
            assert_same(found(milvus, query, k), found(faiss, query, k))
    picture = Query(image=documents[1].path)
    first = milvus.retrieve(picture, 1)[0]
    assert (first.id, first.document.caption) == ("p1", "picture 101 %")
    assert first.document.tags == documents[1].tags
    assert [len(hits) for hits in milvus.retrieve_batch(QUERIES, 2)] == [2, 2, 2]
    milvus.remove(["p1", documents[5].id])
    faiss.remove(["p1", documents[5].id])
    assert_same(found(milvus, "the mill", 9), found(faiss, "the mill", 9))
    assert milvus.get("p1") is None and len(milvus) == len(documents) - 2
    milvus.add([documents[1]])
    faiss.add([documents[1]])
    assert_same(found(milvus, "the mill", 9), found(faiss, "the mill", 9))


class Given:
    """Stands for the encoder of vectors that are made here."""

    dim, fingerprint, reads_pictures, origin = 4, "given", False, {}


def test_what_is_added_is_in_an_index_at_once(place: str) -> None:
    """What Milvus Lite has not flushed it copies at each search: a second for 10,000 vectors."""
    store = MilvusStore.create(place, Given())
    database, _, collection = place.rpartition("#")
    for first in (0, 3):
        rows = {str(i): Document(text=f"text {i}") for i in range(first, first + 3)}
        store.add(rows, np.eye(4, dtype=np.float32)[:3])
        assert not list((Path(database) / "collections" / collection / "wal").glob("*data*"))
    assert len(store.search(np.eye(4, dtype=np.float32)[:1], 9)[0]) == 6


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_ties_are_ordered_as_faiss_orders_them(place: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.integers(0, 3, (60, 4)).astype(np.float32)
    vectors[:, 3] = 1
    texts = {f"{i:02}": Document(text=f"text {i}") for i in rng.permutation(60)}
    stores = [MilvusStore.create(place, Given(), kind=kind)]
    stores.append(FaissStore(VectorIndex(4)))
    for store in stores:
        for start in (0, 25):
            some = dict(list(texts.items())[start : start + 25 + start])
            store.add(some, vectors[start : start + len(some)])
    places = {id: place for place, id in enumerate(texts)}
    for k in (1, 2, 5, 17, 59, 100) if kind == "exact" else (60,):
        rows = [store.search(vectors[:5], k) for store in stores]
        for query, ours, theirs in zip(vectors, *rows, strict=False):
            last = ours[-1][1] if k < len(texts) else -1
            assert [score for _, score in ours] == [score for _, score in theirs]
            assert [hit for hit in ours if hit[1] > last] == [
                hit for hit in theirs if hit[1] > last
            ]
            # Of the last ones as good FAISS keeps some, Milvus those that were added first
            kept = sorted(places[id] for id, score in ours if score == last)
            assert kept == np.flatnonzero(vectors @ query == last)[: len(kept)].tolist()


@pytest.mark.parametrize(
    "where",
    [
        Where("BAKED"),
        Where("10"),
        Where("100_%"),
        Where("101 %"),
        Where("_% \\ t"),
        Where(tags=["old", 'a "b" \\']),
        Where("picture", ["old"]),
        Where("nowhere"),
    ],
    ids=str,
)
def test_only_what_has_a_text_or_a_tag_is_searched(
    searched: tuple[Retriever, Retriever], where: Where
) -> None:
    milvus, faiss = searched
    expected = found(faiss, "the mill", 20, where=where)
    assert_same(found(milvus, "the mill", 20, where=where), expected)
    assert {id for id, _ in expected} == {
        id for id, document in faiss.documents.items() if where.matches(document)
    }


@pytest.fixture(scope="module")
def searched(
    database: Path, encoders: dict[str, DualEncoder], documents: list[Document]
) -> tuple[Retriever, Retriever]:
    store = MilvusStore.create(f"{database}#searched", encoders["clip"])
    both = store, None
    first, second = (Retriever(encoders["clip"], documents, store=one) for one in both)
    return first, second


def test_a_collection_is_opened_by_whoever_has_its_encoder(
    searched: tuple[Retriever, Retriever],
    database: Path,
    encoder: DualEncoder,
    encoders: dict[str, DualEncoder],
    text_encoder: TextEncoder,
    checkpoints: dict[str, Path],
) -> None:
    place = f"{database}#searched"
    assert check_index(place)["picture"]["path"] == str(checkpoints["clip"])
    again = open_index(place, device="cpu")
    assert isinstance(again, Retriever)
    assert_same(found(again, "the mill", 5), found(searched[1], "the mill", 5))
    other = next(one for family, one in encoders.items() if family != "clip")
    for wrong in (other, text_encoder):
        with pytest.raises(IndexMismatchError, match="built by encoder"):
            Retriever.load(place, wrong)
        with pytest.raises(IndexMismatchError, match="the store has vectors of length"):
            Retriever(wrong, store=MilvusStore.open(place))
    with pytest.raises(IndexMismatchError, match="of one encoder"):
        FusedRetriever.load(place, encoder, text_encoder)
    with pytest.raises(ValueError, match="a collection of Milvus is of one encoder"):
        FusedRetriever(again, Retriever(text_encoder))
    with pytest.raises(ValueError, match=r"the text encoder .* is of no use"):
        check_index(place, text_encoder="anything")
    with pytest.raises(ValueError, match="leave out documents"):
        Retriever.load(place, encoder, documents=[Document(text="a")])
    with pytest.raises(ValueError, match="cannot be saved in"):
        again.save(database.parent / "folder")


def test_adding_is_all_or_nothing(
    filled: tuple[Retriever, Retriever],
    documents: list[Document],
    encoder: DualEncoder,
    pictures: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    milvus, _ = filled
    new = Document(text="a barn", id="barn")
    with pytest.raises(ValueError, match=r"already there: 'p0'"):
        milvus.add([new, documents[0]])
    with pytest.raises(ValueError, match="not in the index: 'gone'"):
        milvus.remove(["p0", "gone"])
    with pytest.raises(TypeError, match="not one string"):
        milvus.remove("p0")
    store = milvus.store
    refused = {
        "its picture is in memory": Document(pictures[0], id="memory"),
        "id has 5,000 bytes": Document(text="a", id="x" * 5000),
        "text has 70,000 bytes": Document(text="x" * 70_000, id="long"),
        "longest tag has 300 bytes": Document(text="a", id="tag", tags=["x" * 300]),
        "list of tags has 300 entries": Document(text="a", id="s", tags=map_to_strings(300)),
    }
    for message, document in refused.items():
        with pytest.raises(DocumentError, match=message):
            milvus.add([new, document])
    assert milvus.add([new, *refused.values()], on_error="skip") == ["barn"]
    for vectors, message in (
        (np.ones((1, encoder.dim + 1)), "must be of shape"),
        (np.full((1, encoder.dim), np.nan), "must be finite"),
        (np.ones((2, encoder.dim)), "1 documents for 2 vectors"),
    ):
        with pytest.raises(ValueError, match=message):
            store.add({"new": new}, vectors)
    monkeypatch.setattr("ragvl.retriever.milvus._BYTES_AT_ONCE", 1)  # a row at once
    taken = store.documents | {"bad": Document(text="a")}
    client, sent = store._client, []
    insert = client.insert

    def refuses_the_third(collection: str, rows: list[dict]) -> object:
        sent.append(rows)
        if len(sent) == 3:
            rows[0]["vector"] = rows[0]["vector"][:1]  # the database refuses it
        return insert(collection, rows)

    monkeypatch.setattr(client, "insert", refuses_the_third)
    fresh = {f"n{i}": Document(text=f"text {i}") for i in range(4)}
    with pytest.raises(MilvusError, match=r"cannot add documents: .*dim"):
        store.add(fresh, np.ones((4, encoder.dim)))
    assert len(sent) == 3 and len(store) == len(taken) - 1 and store.get(fresh) == {}


def map_to_strings(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def test_bad_searches(
    filled: tuple[Retriever, Retriever], place: str, encoder: DualEncoder
) -> None:
    store = filled[0].store
    with pytest.raises(ValueError, match="k=0"):
        store.search(np.ones((1, encoder.dim)), 0)
    with pytest.raises(ValueError, match="must be of shape"):
        store.search(np.ones((1, encoder.dim - 1)), 1)
    assert store.search(np.empty((0, encoder.dim)), 3) == []
    assert len(store.search(np.ones((1, encoder.dim)), 50_000)[0]) == len(store)
    with pytest.raises(ValueError, match="holds no documents"):
        Retriever(encoder, store=MilvusStore.create(f"{place}_empty", encoder)).retrieve("a")


def test_an_index_is_brought_up_to_date(
    filled: tuple[Retriever, Retriever], documents: list[Document]
) -> None:
    milvus, _ = filled
    first = bring_up_to_date(milvus, documents, {})
    tagged = Document(text="100_% \\ tower", id=documents[6].id, tags=["new"])
    now = [*documents[:6], tagged]
    second = bring_up_to_date(milvus, now, first.versions)
    assert (second.new, second.changed, second.gone) == (0, 1, 1)
    assert milvus.retrieve("a", where=Where(tags=["new"]))[0].id == documents[6].id


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("ftp://host", "no address of Milvus"),
        ("http://", "no address of Milvus"),
        ("http://root:secret@host:19530", TOKEN_VARIABLE),
        ("a.db#9", "cannot be a collection"),
        ("a.db#", "cannot be a collection"),
    ],
)
def test_what_is_no_address(place: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        MilvusAddress.find(place)
    assert "secret" not in str(caught.value)


def test_addresses() -> None:
    assert MilvusAddress.find("photos.index") is None
    assert MilvusAddress.find(Path("photos#1.index")) is None
    assert MilvusAddress.find("photos.db") == MilvusAddress("photos.db", "ragvl")
    assert MilvusAddress.find("p#1.db#a") == MilvusAddress("p#1.db", "a")
    assert MilvusAddress.find("p#1.db") == MilvusAddress("p#1.db", "ragvl")
    server = MilvusAddress.find("https://host:19530/mine#photos")
    assert (server.uri, server.collection) == ("https://host:19530/mine", "photos")
    assert str(server) == "https://host:19530/mine#photos"


def test_what_is_not_there(encoder: DualEncoder, place: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such collection"):
        MilvusStore.open(place)
    with pytest.raises(FileNotFoundError, match="there is no database"):
        MilvusStore.open(tmp_path / "none.db")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        MilvusStore.create(tmp_path / "none" / "a.db", encoder)
    with pytest.raises(ValueError, match="no address of Milvus"):
        MilvusStore.open(tmp_path)
    with pytest.raises(ValueError, match="Milvus Lite has no ivfpq"):
        MilvusStore.create(place, encoder, kind="ivfpq")
    with pytest.raises(ValueError, match="kind='flat'"):
        MilvusStore.create(place, encoder, kind="flat")
    with pytest.raises(MilvusError, match=r"http://127\.0\.0\.1:1#ragvl: cannot connect"):
        MilvusStore.open("http://127.0.0.1:1")
    MilvusStore.create(place, encoder)
    with pytest.raises(ValueError, match="is there already"):
        MilvusStore.create(place, encoder)
    (tmp_path / "file.db").write_text("no database")
    with pytest.raises(MilvusError, match="is a file"):
        MilvusStore.open(tmp_path / "file.db")


def test_a_collection_of_others_is_left_alone(database: Path, encoder: DualEncoder) -> None:
    from pymilvus import MilvusClient

    client = MilvusClient(str(database))
    client.create_collection("theirs", dimension=8)
    place = f"{database}#theirs"
    for opens in (MilvusStore.open, lambda at: MilvusStore.create_draft(at, encoder)):
        with pytest.raises(IndexFileError, match="holds no index of ragvl's"):
            opens(place)
    client.create_collection("newer", dimension=8, properties={"ragvl.index": '{"format": 2}'})
    with pytest.raises(IndexFileError, match="no index that this ragvl reads: format"):
        MilvusStore.open(f"{database}#newer")
    assert client.has_collection("theirs")


@pytest.mark.usefixtures("searched")
def test_a_database_that_is_open_elsewhere(
    database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(database)  # Milvus Lite goes by the name, and so opens it a second time
    with pytest.raises(MilvusError, match=r"link\.db cannot be opened: .* holds the lock"):
        MilvusStore.open(link)
    assert not caplog.records


@pytest.mark.parametrize("package", ["pymilvus", "milvus_lite"])
def test_without_the_package(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is not installed: pip install 'ragvl\[mil"):
        MilvusStore.open(tmp_path / "a.db")


Run = Callable[..., str]


@pytest.fixture
def run() -> Run:
    def run(*arguments: object, code: int = 0) -> str:
        outcome = CliRunner().invoke(app, [str(one) for one in arguments])
        assert outcome.exit_code == code, outcome.output
        return outcome.output

    return run


@pytest.mark.slow
def test_commands(
    run: Run,
    place: str,
    encoder: DualEncoder,
    text_checkpoint: Path,
    documents: list[Document],
    tmp_path: Path,
) -> None:
    checkpoint = encoder.origin["path"]
    lines = tmp_path / "list.jsonl"
    lines.write_text(
        f'{{"id": "p", "image": "{documents[0].path}", "caption": "A Mill", "tags": ["old"]}}\n'
        '{"id": "t", "text": "bread"}\n'
    )
    index = ["index", lines, place, "--encoder", checkpoint, "--device", "cpu"]
    assert f"{place} holds 2 documents" in run(*index)
    search = ["search", place, "a mill", "--device", "cpu"]
    assert "bread" not in run(*search, "--tag", "old", "--containing", "mill")
    assert "no document in" in run(*search, "--tag", "new", code=1)
    lines.write_text('{"id": "u", "text": "stone"}\n')
    assert "holds 1 documents" in run(*index)  # in place of the earlier one
    assert set(open_index(place, device="cpu").documents) == {"u"}
    lines.write_text('{"id": "v", "image": "gone.png"}\n')
    run(*index, code=1)  # which stays where a new one cannot be made
    assert set(open_index(place, device="cpu").documents) == {"u"}
    client = MilvusStore.open(place)._client
    assert not [name for name in client.list_collections() if "_draft_" in name]
    lines.write_text('{"id": "v", "text": "stone"}\n')
    assert "is of one encoder" in run(*index, "--text-encoder", text_checkpoint, code=1)
    assert "has no ivfpq" in run(*index, "--kind", "ivfpq", code=1)
    assert "no such collection" in run("search", f"{place}_none", "a", "--device", "cpu", code=1)
    assert "cannot connect" in run("search", "http://127.0.0.1:1", "a", "--device", "cpu", code=1)
