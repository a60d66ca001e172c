from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prefix_cache.test_disk import NO_MOUNTS, small_disk
from prefix_cache.tools import Child

from ragvl.data.document import Document
from ragvl.identity import bytes_name
from ragvl.server.documents import MAX_ID, DocumentStore, StoreFileError, check_id
from ragvl.server.errors import NotFound, StorageFull

LIMITS: dict[str, Any] = {"max_documents": 1000, "max_bytes": 1 << 30, "unused_seconds": 0}


def png(color: int, side: int = 8) -> bytes:
    file = BytesIO()
    Image.new("RGB", (side, side), (color, 255 - color, 7)).save(file, "PNG")
    return file.getvalue()


FORMS: dict[str, Callable[[str], Document]] = {
    "text": lambda id: Document(text="Velmora has a tower.", id=id),
    "picture": lambda id: Document(png(1), id=id),
    "captioned": lambda id: Document(png(2), "The tower – with an umlaut: ü", id),
    "caption first": lambda id: Document(png(2), "The tower", id).with_caption_first(),
    "empty caption": lambda id: Document(png(3), "", id),
    "parts": lambda id: Document(parts=["before", png(4), "between", png(5), png(4)], id=id),
    "no parts": lambda id: Document(parts=[], id=id),
}


def content(document: Document | None) -> object:
    """All that a prompt is made of."""
    assert document is not None
    parts = [
        part if isinstance(part, str) else ("picture", part.digest()) for part in document.parts
    ]
    return document.id, document.caption, document.text, document.image is None, parts


def pictures(store: DocumentStore) -> set[str]:
    return {path.name for path in (store.folder / "pictures").rglob("*") if path.is_file()}


def drafts(store: DocumentStore) -> list[Path]:
    return [path for path in (store.folder / "drafts").rglob("*") if path.is_file()]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DocumentStore]:
    store = DocumentStore(tmp_path / "store", **LIMITS)
    yield store
    store.close()


@pytest.fixture
def other(store: DocumentStore) -> Iterator[DocumentStore]:
    """Another server's on the same folder."""
    other = DocumentStore(store.folder, **LIMITS)
    yield other
    other.close()


class TestKeeping:
    @pytest.mark.parametrize("form", FORMS)
    def test_content_stays_also_after_a_restart(self, store, form):
        given = FORMS[form]("an id/of ü")
        store.put([given])
        assert content(store.get("an id/of ü")) == content(given)
        store.close()
        again = DocumentStore(store.folder, **LIMITS)
        document = again.get("an id/of ü")
        again.close()
        assert content(document) == content(given)
        assert all(picture.path is not None for picture in document.pictures)

    def test_a_picture_is_held_by_its_limit(self, tmp_path):
        store = DocumentStore(tmp_path, max_pixels=100, **LIMITS)
        store.put([Document(png(1), id="one"), Document(parts=[png(1)], id="two")])
        limits = [p.max_pixels for id in ("one", "two") for p in store.get(id).pictures]
        store.close()
        assert limits == [100, 100]

    def test_is_one_object_until_its_content_changes(self, store):
        store.put([Document(png(1), "a", "id")])
        first = store.get("id")
        store.put([Document(text="another", id="other")])
        assert store.get("id") is first
        store.put([Document(png(1), "a", "id")])
        assert store.get("id") is first
        store.put([Document(png(1), "b", "id")])
        second = store.get("id")
        assert second is not first
        assert second.caption == "b"
        assert store.get("id") is second

    def test_what_another_process_does_is_seen(self, store, other):
        assert other.get("id") is None
        store.put([Document(text="old", id="id")])
        assert other.get("id").text == "old"
        store.put([Document(text="new", id="id")])
        assert other.get("id").text == "new"
        assert store.delete("id")
        assert other.get("id") is None
        assert other.ids(limit=9) == []

    def test_unknown(self, store):
        assert store.get("none") is None
        assert store.info("none") is None
        assert store.delete("none") is False

    def test_pictures_go_with_their_last_document(self, store):
        store.put([Document(png(1), id="a"), Document(parts=[png(1), png(2)], id="b")])
        assert pictures(store) == {bytes_name(png(1)), bytes_name(png(2))}
        assert store.delete("b")
        assert pictures(store) == {bytes_name(png(1))}
        store.put([Document(png(3), id="a")])
        assert pictures(store) == {bytes_name(png(3))}
        assert store.delete("a")
        assert pictures(store) == set()
        assert (len(store), store.num_bytes) == (0, 0)

    def test_a_request_that_holds_a_document_as_it_was_can_still_read_it(self, tmp_path):
        store = DocumentStore(tmp_path, **{**LIMITS, "unused_seconds": 600})
        store.put([Document(png(1), id="a"), Document(png(2), id="b")])
        held = [store.get("a"), store.get("b")]
        store.put([Document(png(3), id="a")])
        assert store.delete("b")
        assert [document.digest() for document in held] == [bytes_name(png(n)) for n in (1, 2)]
        store.close()
        assert pictures(store) == {bytes_name(png(3))}

    def test_what_is_known(self, store):
        store.put([Document(png(1), "a caption", "id")])
        first = store.info("id")
        assert first.source == "stored"
        assert first.num_bytes > len(png(1))
        store.put([Document(text="text", id="id")])
        second = store.info("id")
        assert second.created == first.created
        assert second.num_bytes == store.num_bytes < len(png(1))

    def test_pictures_must_be_bytes(self, store, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(png(1))
        with pytest.raises(TypeError, match="as bytes"):
            store.put([Document(text="fine", id="text"), Document(path, id="id")])
        assert store.ids(limit=9) == []

    def test_a_folder_of_its_own_goes_at_the_end(self):
        store = DocumentStore(None, **LIMITS)
        store.put([Document(png(1), id="id")])
        assert store.folder.is_dir()
        store.close()
        assert not store.folder.exists()


class TestIndex:
    @pytest.fixture
    def index(self) -> dict[str, Document]:
        return {id: Document(text=f"indexed {id}", id=id) for id in ("b", "d", "ä")}

    @pytest.fixture
    def store(self, tmp_path, index) -> Iterator[DocumentStore]:
        store = DocumentStore(tmp_path, index=index, **LIMITS)
        yield store
        store.close()

    def test_is_looked_up_after_the_store(self, store, index):
        store.put([Document(text="stored", id="b")])
        assert store.get("b").text == "stored"
        assert store.get("d") is index["d"]
        assert store.info("d").source == "index"
        assert store.info("b").source == "stored"
        assert not store.delete("d")
        assert store.is_of_index("d") and not store.is_of_index("a")

    def test_lists_both_in_order_and_in_pages(self, store):
        store.put([Document(text="stored", id=id) for id in ("c", "a", "b", "ü")])
        expected = sorted({"a", "b", "c", "ü", "d", "ä"})
        assert store.ids(limit=100) == expected
        pages, after = [], ""
        while page := store.ids(after=after, limit=2):
            assert len(page) <= 2
            pages += page
            after = page[-1]
        assert pages == expected


class TestRoom:
    def test_of_documents(self, tmp_path):
        store = DocumentStore(tmp_path, **{**LIMITS, "max_documents": 2})
        store.put([Document(png(1), id="a"), Document(text="b", id="b")])
        with pytest.raises(StorageFull, match="at most 2 documents"):
            store.put([Document(text="other", id="a"), Document(png(2), id="c")])
        assert content(store.get("a")) == content(Document(png(1), id="a"))
        assert store.ids(limit=9) == ["a", "b"]
        assert pictures(store) == {bytes_name(png(1))}
        store.put([Document(text="instead", id="a")])
        store.delete("b")
        store.put([Document(png(2), id="c")])
        store.close()

    def test_of_bytes(self, tmp_path):
        store = DocumentStore(tmp_path, **{**LIMITS, "max_bytes": 1000})
        store.put([Document(text="a" * 800, id="a")])
        with pytest.raises(StorageFull, match="at most 1,000 bytes"):
            store.put([Document(text="b" * 300, id="b")])
        store.put([Document(text="a" * 100, id="a"), Document(text="b" * 300, id="b")])
        assert store.ids(limit=9) == ["a", "b"]
        store.close()


def random_bytes(count: int, seed: int) -> bytes:
    return png(seed) + bytes([seed]) * count  # PIL reads a PNG up to its end


class TestFailingDisk:
    """What cannot be had in this process is had in a child, which the failure ends with."""

    def test_full(self, tmp_path):
        def work() -> bool:
            if not small_disk(tmp_path / "small", "1m"):
                return False
            store = DocumentStore(tmp_path / "small" / "documents", **LIMITS)
            store.put([Document(random_bytes(200_000, 1), id="first")])
            before, held = store.get("first"), pictures(store)
            batch = [Document(random_bytes(200_000, n), id=str(n)) for n in range(2, 8)]
            with pytest.raises(StorageFull, match="the disk is full") as full:
                store.put([*batch, Document(text="other", id="first")])
            assert str(tmp_path) not in str(full.value)
            assert store.get("first") is before
            assert store.ids(limit=9) == ["first"]
            assert (pictures(store), drafts(store)) == (held, [])
            store.put(batch[:1])
            assert content(store.get("2")) == content(batch[0])
            assert store.delete("first")
            return True

        if not Child(work).result():
            pytest.skip(NO_MOUNTS)

    @pytest.mark.parametrize("limit", [150_000, 40_000])
    def test_a_limit_in_the_middle_of_a_file(self, tmp_path, limit):
        """Fails like a full disk, on every system: of a picture's file, or of the database."""

        def work() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            store = DocumentStore(tmp_path / "documents", **LIMITS)
            store.put([Document(text="first", id="first")])
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            with pytest.raises(StorageFull):
                store.put(
                    [Document(random_bytes(10_000, 1), id="id"), Document(text="t" * 10**6, id="t")]
                )
            with pytest.raises(StorageFull):
                store.put([Document(random_bytes(200_000, 1), id="id")])
            assert store.ids(limit=9) == ["first"]
            assert (pictures(store), drafts(store)) == (set(), [])
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            store.put([Document(random_bytes(200_000, 1), id="id")])
            assert store.ids(limit=9) == ["first", "id"]

        Child(work).result()

    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 9)])
    def test_a_lost_picture_is_named_and_can_be_put_again(self, store, other, damage):
        store.put([Document(png(1), id="id"), Document(text="text", id="text")])
        (path,) = (p for p in (store.folder / "pictures").rglob("*") if p.is_file())
        damage(path)
        with pytest.raises(NotFound, match="'id' has lost a picture") as lost:
            other.get("id")
        assert str(store.folder) not in lost.value.message
        assert other.get("text").text == "text"
        store.put([Document(png(1), id="id")])
        assert content(other.get("id")) == content(Document(png(1), id="id"))

    def test_a_damaged_database_is_named(self, tmp_path):
        (tmp_path / "documents.sqlite").write_bytes(b"no database, though long enough" * 99)
        with pytest.raises(StoreFileError, match=r"documents\.sqlite"):
            DocumentStore(tmp_path, **LIMITS)

    def test_a_newer_one_is_left_alone(self, store):
        store.put([Document(png(1), id="id")])
        store.close()
        with sqlite3.connect(store.folder / "documents.sqlite") as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
        with pytest.raises(StoreFileError, match="format 99"):
            DocumentStore(store.folder, **LIMITS)
        assert pictures(store) == {bytes_name(png(1))}

    def test_a_folder_that_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match="file"):
            DocumentStore(tmp_path / "file", **LIMITS)


# Puts batches of two documents under the same two ids, of which each pair of contents belongs
# together, and says how many were answered
_WRITER = """
    import sys
    from pathlib import Path
    from ragvl.data.document import Document
    from ragvl.server.documents import DocumentStore
    folder, picture = Path(sys.argv[1]), bytes.fromhex(sys.argv[2])
    store = DocumentStore(folder, max_documents=10, max_bytes=1 << 30, unused_seconds=0)
    for n in range(100_000):
        content = picture + str(n).encode() * 5000
        store.put([Document(content, str(n), "a"), Document(parts=[content, str(n)], id="b")])
        print(n, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_whole_batches(tmp_path):
    for after in (1, 12):
        command = [sys.executable, "-c", textwrap.dedent(_WRITER), str(tmp_path), png(1).hex()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            answered = [next(writer.stdout).strip() for _ in range(after)][-1]
            writer.send_signal(signal.SIGKILL)
            later = writer.stdout.read().split()
            answered = later[-1] if later else answered
        store = DocumentStore(tmp_path, **LIMITS)
        a, b = store.get("a"), store.get("b")
        store.close()
        assert int(a.caption) >= int(answered)
        assert b.parts[1] == a.caption
        assert a.digest() == bytes_name(png(1) + a.caption.encode() * 5000)
        assert b.parts[0].digest() == a.digest()
        assert pictures(store) == {a.digest()}


def test_servers_that_start_together_on_a_new_folder(tmp_path):
    def work(number: int) -> list[str]:
        store = DocumentStore(tmp_path, **LIMITS)
        for n in range(5):
            store.put([Document(png(n), id=f"{number}-{n}"), Document(png(n), id="shared")])
        store.delete("shared")
        return store.ids(limit=100)

    children = [Child(lambda number=number: work(number)) for number in range(3)]
    for number, child in enumerate(children):
        assert {f"{number}-{n}" for n in range(5)} <= set(child.result())
    store = DocumentStore(tmp_path, **LIMITS)
    expected = {f"{number}-{n}" for number in range(3) for n in range(5)}
    assert set(store.ids(limit=100)) - {"shared"} == expected
    assert all(content(store.get(id)) for id in expected)
    store.close()


def test_threads(store):
    """Documents of the same few pictures are put, deleted and read at once."""
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        for n in range(15):
            store.put([Document(png(n % 3), str(n), f"{number}")])
            assert store.get(f"{number}").caption == str(n)
            store.get(f"{number}").digest()
            if n % 4 == 0:
                assert store.delete(f"{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert store.ids(limit=9) == ["0", "1", "2", "3"]
    assert pictures(store) == {bytes_name(png(14 % 3))}


IDS = st.sampled_from(["a", "b", "c"])
CONTENT = st.one_of(st.integers(0, 3), st.sampled_from(["one", "two"]))
STEPS = st.lists(
    st.tuples(st.booleans(), st.one_of(IDS, st.dictionaries(IDS, CONTENT))), max_size=12
)


@given(STEPS)
@settings(max_examples=15)
def test_is_a_dictionary_to_all_who_share_it(tmp_path_factory, steps):
    """Whatever is done through one of two stores, both then hold what a dictionary would."""
    folder = tmp_path_factory.mktemp("store")
    stores = [DocumentStore(folder, **LIMITS) for _ in range(2)]
    expected: dict[str, int | str] = {}
    for first, step in steps:
        if isinstance(step, str):
            assert stores[first].delete(step) == (expected.pop(step, None) is not None)
        else:
            stores[first].put([made(id, value) for id, value in step.items()])
            expected.update(step)
        for store in stores:
            assert store.ids(limit=9) == sorted(expected)
            for id, value in expected.items():
                assert content(store.get(id)) == content(made(id, value))
    used = {bytes_name(png(value)) for value in expected.values() if isinstance(value, int)}
    assert pictures(stores[0]) == used
    assert len(stores[0]) == len(expected)
    assert stores[0].num_bytes == sum(stores[1].info(id).num_bytes for id in expected)
    for store in stores:
        store.close()


def made(id: str, value: int | str) -> Document:
    return Document(text=value, id=id) if isinstance(value, str) else Document(png(value), id=id)


@pytest.mark.parametrize(
    "id", ["a", "folder/a picture.png", "x" * MAX_ID, "ü – 塔", "..a", "?&=#%2F"]
)
def test_good_ids(id):
    assert check_id(id) == id


@pytest.mark.parametrize(
    "id", ["", "x" * (MAX_ID + 1), "a\nb", "a\0", "\ud800", "a/picture", "..", "a/./b", "\u202eabc"]
)
def test_bad_ids(id):
    with pytest.raises(ValueError, match=r"an id|half a character"):
        check_id(id)
