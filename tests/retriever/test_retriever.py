from __future__ import annotations

import io
import json
import shutil
import sys
from types import FrameType

import numpy as np
import pytest
from PIL import Image
from retriever.forging import forge
from tiny_encoders import TEXTS, save_checkpoint

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.retriever import DualEncoder, IndexFileError, IndexMismatchError, Retriever, VectorIndex
from ragvl.retriever.index import MIN_IVFPQ_VECTORS


@pytest.fixture(scope="module")
def files(tmp_path_factory, pictures) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [str(folder / f"{i}.png") for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    return paths


@pytest.fixture
def documents(files) -> list[Document]:
    return [Document(path, caption=f"picture {i}", id=f"d{i}") for i, path in enumerate(files)]


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_cannot_be_used_is_skipped_and_named(encoder, files, tmp_path, caplog):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    usable = [Document(files[0], id="a"), Document(text="a tower", id="b")]
    every = [usable[0], Document(broken, id="c"), Document(parts=[], id="d"), usable[1]]
    retriever = Retriever(encoder)
    with pytest.raises(ImageError, match="'c'"):
        retriever.add(every[:2])
    assert len(retriever) == 0
    assert retriever.add(every, on_error="skip") == ["a", "b"]
    named = [record.getMessage().partition(" (")[0] for record in caplog.records]
    assert named == ["skipped: document 'c'", "skipped: document 'd'"]
    expected = Retriever(encoder, usable).retrieve(TEXTS[0])
    assert [(hit.id, hit.score) for hit in retriever.retrieve(TEXTS[0])] == [
        (hit.id, hit.score) for hit in expected
    ]


class TestRetrieve:
    @pytest.mark.parametrize("kind", ["exact", "hnsw"])
    def test_equals_brute_force(self, kind, encoder, documents):
        retriever = Retriever(encoder, documents, kind=kind)
        scores = encoder.encode_texts(TEXTS) @ encoder.encode_documents(documents).T
        for query, row, hits in zip(
            TEXTS, scores, retriever.retrieve_batch(TEXTS, k=4), strict=True
        ):
            order = np.argsort(-row)[:4]
            assert [hit.id for hit in hits] == [f"d{i}" for i in order]
            assert all(hit.document is documents[i] for hit, i in zip(hits, order, strict=True))
            scored = [hit.score for hit in hits]
            np.testing.assert_allclose(scored, row[order], atol=2e-6)
            alone = retriever.retrieve(query, k=4)
            assert [hit.id for hit in alone] == [hit.id for hit in hits]

    def test_k_past_the_end(self, encoder, documents):
        assert len(Retriever(encoder, documents).retrieve("a")) == 7

    def test_bad_queries(self, encoder, documents):
        retriever = Retriever(encoder, documents)
        with pytest.raises(ValueError, match="empty"):
            retriever.retrieve("  ")
        with pytest.raises(TypeError, match="not int"):
            retriever.retrieve(3)
        with pytest.raises(TypeError, match="not one; write"):
            retriever.retrieve_batch("a cat")
        with pytest.raises(ValueError, match="k=0"):
            retriever.retrieve("a", k=0)
        assert retriever.retrieve_batch([]) == []

    def test_empty_retriever(self, encoder, documents):
        retriever = Retriever(encoder)
        assert len(retriever) == 0
        with pytest.raises(ValueError, match="holds no documents"):
            retriever.retrieve("a")
        retriever.add(documents)
        retriever.remove([document.id for document in documents])
        with pytest.raises(ValueError, match="holds no documents"):
            retriever.retrieve("a")

    def test_a_hundred_thousand_vectors(self, encoder):
        """No work per vector in Python: as many of its instructions as for a thousand."""
        assert self._instructions(encoder, 100_000) == self._instructions(encoder, 1000) > 0

    @staticmethod
    def _instructions(encoder, count: int) -> int:
        """How many of Python's instructions in ragvl's files one search takes among `count`."""
        store = Retriever(encoder).store
        vectors = np.random.default_rng(0).normal(size=(count, encoder.dim)).astype(np.float32)
        document = Document("never opened.png")
        store.add(dict.fromkeys([str(i) for i in range(count)], document), vectors)
        retriever = Retriever(encoder, store=store)
        retriever.retrieve("warm up")
        done = 0

        def trace(frame: FrameType, event: str, _: object) -> object:
            nonlocal done
            if "ragvl" not in frame.f_globals.get("__name__", ""):
                return None
            frame.f_trace_opcodes = True
            done += event == "opcode"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            retriever.retrieve(TEXTS[0])
        finally:
            sys.settrace(before)
        return done


class TestAddAndRemove:
    def test_ids_that_are_made_up_are_stable(self, encoder, files, pictures):
        image = Image.fromarray(pictures[2])
        bare = [files[0], png(pictures[1]), image, pictures[3]]
        ids = Retriever(encoder).add(bare)
        assert ids[0] == files[0]
        assert all(len(id) == 16 for id in ids[1:])
        again = Retriever(encoder).add([*reversed([*bare[:2], image.copy(), pictures[3].copy()])])
        assert again == ids[::-1]

    def test_the_caption_is_part_of_a_made_up_id(self, encoder, pictures):
        captioned = [Document(pictures[0], caption=caption) for caption in (None, "a", "b")]
        assert len(set(Retriever(encoder).add(captioned))) == 3

    def test_any_iterable(self, encoder, documents):
        assert len(Retriever(encoder, iter(documents))) == 7

    @pytest.mark.parametrize("one", ["a.png", b"a", Document("a.png")])
    def test_one_document_alone_is_refused(self, encoder, one):
        with pytest.raises(TypeError, match=r"write \[document\]"):
            Retriever(encoder).add(one)

    def test_duplicates(self, encoder, documents, files):
        retriever = Retriever(encoder, documents[:3])
        with pytest.raises(ValueError, match="already there: 'd2'"):
            retriever.add(documents[2:])
        with pytest.raises(ValueError, match="more than once"):
            retriever.add([files[4], files[4]])
        assert list(retriever.documents) == ["d0", "d1", "d2"]
        assert len(retriever.store.index) == 3

    def test_an_unreadable_picture_adds_nothing(self, encoder, documents, tmp_path):
        retriever = Retriever(encoder, documents[:2])
        bad = Document(tmp_path / "gone.png", id="gone")
        with pytest.raises(ImageError, match=r"'gone' .*gone\.png.*no such file"):
            retriever.add([*documents[2:], bad], batch_size=2)
        assert list(retriever.documents) == retriever.store.index.ids == ["d0", "d1"]
        retriever.add(documents[2:])
        assert len(retriever) == len(retriever.store.index) == 7

    def test_too_few_for_ivfpq_is_said_before_anything_is_read(self, encoder):
        missing = [Document("nowhere.png", id=str(i)) for i in range(MIN_IVFPQ_VECTORS - 1)]
        with pytest.raises(ValueError, match="9,984"):
            Retriever(encoder, missing, kind="ivfpq")

    def test_remove(self, encoder, documents):
        retriever = Retriever(encoder, documents)
        retriever.remove(["d1", "d4"])
        assert {item.id for item in retriever.retrieve("a")} == {"d0", "d2", "d3", "d5", "d6"}
        with pytest.raises(ValueError, match="'d4'"):
            retriever.remove(["d0", "d4"])
        assert len(retriever) == len(retriever.store.index) == 5


class TestSaveAndLoad:
    @pytest.mark.parametrize("kind", ["exact", "hnsw"])
    def test_round_trip(self, kind, encoder, documents, tmp_path, monkeypatch):
        retriever = Retriever(encoder, documents, kind=kind)
        retriever.remove(["d3"])
        retriever.save(tmp_path)
        monkeypatch.chdir(tmp_path)  # paths are absolute
        again = Retriever.load(tmp_path, encoder)
        assert again.store.index.kind == kind
        assert list(again.documents) == list(retriever.documents)
        for id, document in again.documents.items():
            original = retriever.documents[id]
            fields = (document.id, document.caption, document.path)
            assert fields == (id, original.caption, original.path)
        for text in TEXTS:
            results = [(item.id, item.score) for item in again.retrieve(text)]
            assert results == [(item.id, item.score) for item in retriever.retrieve(text)]
        again.add([documents[3]])
        assert len(again.retrieve("a")) == 7

    def test_relative_paths(self, encoder, files, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        shutil.copy(files[0], "a.png")
        retriever = Retriever(encoder, ["a.png"])
        retriever.save("saved")
        monkeypatch.chdir("/")
        again = Retriever.load(tmp_path / "saved", encoder)
        assert list(again.documents) == ["a.png"]
        assert again.documents["a.png"].load().size == Document(files[0]).load().size

    def test_documents_file_can_be_read_by_people(self, encoder, documents, tmp_path):
        Retriever(encoder, documents).save(tmp_path)
        (path,) = tmp_path.rglob("documents.jsonl")
        first = json.loads(path.read_text().splitlines()[0])
        assert first == {"id": "d0", "caption": "picture 0", "image": documents[0].image}

    def test_pictures_in_memory_are_asked_for(self, encoder, documents, pictures, tmp_path):
        in_memory = [Document(pictures[5], id="m"), png(pictures[6])]
        retriever = Retriever(encoder, [*documents[:2], *in_memory])
        retriever.save(tmp_path)
        with pytest.raises(ValueError, match=r"2 documents .*'m'.*documents=\[\.\.\.\]"):
            Retriever.load(tmp_path, encoder)
        with pytest.raises(ValueError, match="1 documents"):
            Retriever.load(tmp_path, encoder, documents=in_memory[:1])
        again = Retriever.load(tmp_path, encoder, documents=in_memory)
        assert list(again.documents) == list(retriever.documents)
        assert again.documents["m"] is in_memory[0]
        results = [item.id for item in again.retrieve("a")]
        assert results == [item.id for item in retriever.retrieve("a")]

    def test_documents_that_are_not_in_the_index(self, encoder, documents, tmp_path):
        Retriever(encoder, documents[:2]).save(tmp_path)
        with pytest.raises(ValueError, match="not in the saved index: 'd2'"):
            Retriever.load(tmp_path, encoder, documents=documents[2:3])

    def test_another_encoder_is_refused(self, encoder, documents, tmp_path):
        Retriever(encoder, documents).save(tmp_path / "index")
        other = DualEncoder.from_pretrained(save_checkpoint(tmp_path / "other", "clip", seed=1))
        with pytest.raises(IndexMismatchError, match="build the index again") as error:
            Retriever.load(tmp_path / "index", other)
        assert encoder.fingerprint in str(error.value)
        assert other.fingerprint in str(error.value)

    def test_the_same_encoder_in_another_dtype_is_welcome(
        self, encoder, checkpoints, documents, tmp_path
    ):
        Retriever(encoder, documents).save(tmp_path)
        half = DualEncoder.from_pretrained(checkpoints["clip"], device="cpu", dtype="bfloat16")
        assert len(Retriever.load(tmp_path, half).retrieve("a")) == 7

    def test_damaged_documents(self, encoder, documents, tmp_path):
        Retriever(encoder, documents).save(tmp_path)
        (path,) = tmp_path.rglob("documents.jsonl")
        path.write_text(path.read_text().replace("picture 0", "picture 1"))
        with pytest.raises(IndexFileError, match=r"documents\.jsonl"):
            Retriever.load(tmp_path, encoder)

    @pytest.mark.parametrize(
        ("lines", "problem"),
        [
            (b"\xff", "line 1: "),
            (b"[]\n", "line 1: it is no object"),
            (b'{"id": "d0", "caption": 3, "image": "a"}\n', "line 1: caption is of type int"),
            (b'{"id": null, "caption": null, "image": "a"}\n', "line 1: id is of type NoneType"),
            (b'{"id": "d0", "caption": null, "image": "a"}\n', "other documents than the index"),
            (b'{"id": "d0", "caption": null, "image": "a"}\n' * 2, "given more than once"),
        ],
    )
    def test_documents_that_are_none(self, lines, problem, encoder, documents, tmp_path):
        """Of a folder whose checksums are right."""
        Retriever(encoder, documents[:2]).save(tmp_path)
        forge(tmp_path, "documents.jsonl", lines)
        with pytest.raises(IndexFileError, match=problem) as error:
            Retriever.load(tmp_path, encoder)
        assert "documents.jsonl" in str(error.value)

    def test_an_index_without_documents(self, encoder, tmp_path):
        VectorIndex(encoder.dim, encoder_fingerprint=encoder.fingerprint).save(tmp_path)
        with pytest.raises(IndexFileError, match=r"VectorIndex\.load"):
            Retriever.load(tmp_path, encoder)

    def test_saving_over_an_older_state(self, encoder, documents, tmp_path):
        retriever = Retriever(encoder, documents[:2])
        retriever.save(tmp_path)
        retriever.add(documents[2:])
        retriever.save(tmp_path)
        assert len(Retriever.load(tmp_path, encoder)) == 7
