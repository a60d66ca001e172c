"""Documents searched by pictures and by captions, kept and opened again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from retriever.forging import forge
from tiny_encoders import save_checkpoint, save_text_encoder

from ragvl import Document, Query
from ragvl.data.images import DocumentError
from ragvl.retriever import (
    DualEncoder,
    FusedRetriever,
    IndexFileError,
    IndexMismatchError,
    ReciprocalRank,
    Retriever,
    TextEncoder,
    WeightedSum,
    check_index,
    fuse,
    open_index,
)
from ragvl.retriever.fusion import OrderHits

CAPTIONS = ["a red apple", "two blue circles", "the old house by the river", "a lazy dog"]


@pytest.fixture
def documents(tmp_path, pictures) -> list[Document]:
    """Four captioned pictures, a picture alone, and a text alone."""
    paths = []
    for i, picture in enumerate(pictures[:5]):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    captioned = [
        Document(p, c, f"d{i}") for i, (p, c) in enumerate(zip(paths[:4], CAPTIONS, strict=True))
    ]
    return [*captioned, Document(paths[4], id="bare"), Document(text="a tower", id="text")]


def made(encoder, text_encoder, documents, fusion=None) -> FusedRetriever:
    pair = Retriever(encoder), Retriever(text_encoder)
    return FusedRetriever(*pair, fusion, documents, progress=False)


def test_the_fused_order_is_that_of_the_two(encoder, text_encoder, documents):
    fused = made(encoder, text_encoder, documents)
    assert len(fused) == 6 and list(fused.documents) == [one.id for one in documents]
    alone = {
        "picture": Retriever(encoder, documents[:5]),
        "caption": Retriever(text_encoder, [*documents[:4], documents[5]]),
    }
    for query in ("two blue circles", "what is in the old house?"):
        found = {}
        for order, retriever in alone.items():
            hits = [(one.id, one.score) for one in retriever.retrieve(query)]
            found[order] = OrderHits(hits, len(hits), retriever.documents.__contains__)
        for fusion in (ReciprocalRank(), WeightedSum(0.4)):
            fused.fusion = fusion
            hits = [(one.id, one.score) for one in fused.retrieve(query, 4)]
            expected = fuse(found, fusion, 4)
            assert [id for id, _ in hits] == [id for id, _ in expected]
            np.testing.assert_allclose([s for _, s in hits], [s for _, s in expected], rtol=1e-4)


def test_what_only_one_of_them_reads_is_found(encoder, text_encoder, documents):
    fused = made(encoder, text_encoder, documents, WeightedSum(0))
    assert {one.id for one in fused.retrieve("anything")} == {one.id for one in documents}
    assert fused.retrieve("a tower", 1)[0].document is documents[5]
    assert fused.retrieve("a lazy dog", 1)[0].id == "d3"
    by_picture = fused.retrieve(Query(image=documents[4].path))
    assert by_picture[0].id == "bare", "a query without text is one for the pictures"
    assert len(by_picture) == 5


def test_add_and_remove_all_or_none(encoder, text_encoder, documents, tmp_path):
    fused = made(encoder, text_encoder, documents[:2])
    with pytest.raises(ValueError, match="already there"):
        fused.add([documents[5], documents[1]])
    fused.add([documents[4]])
    with pytest.raises(ValueError, match="already there: 'bare'"):  # in the other one's index
        fused.add([Document(text="a tower", id="bare")])
    assert fused.get("bare") == documents[4]
    fused.remove(["bare"])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(DocumentError, match="broken"):
        fused.add([documents[2], Document(broken, "a caption", "broken")])
    assert len(fused) == len(fused.picture) == len(fused.caption) == 2
    added = fused.add(
        [documents[2], Document(broken, "a caption", "broken"), documents[5]], on_error="skip"
    )
    assert added == ["d2", "text"]
    assert (len(fused), len(fused.picture), len(fused.caption)) == (4, 3, 4)
    with pytest.raises(ValueError, match="'gone'"):
        fused.remove(["d0", "gone"])
    fused.remove(["d0", "text"])
    assert list(fused.documents) == ["d1", "d2"] and fused.get("d0") is None
    assert {one.id for one in fused.retrieve("a red apple")} == {"d1", "d2"}
    with pytest.raises(ValueError, match="k=0: it must be at least 1"):
        fused.retrieve("a red apple", k=0)
    with pytest.raises(ValueError, match="no documents"):
        made(encoder, text_encoder, []).retrieve("a")
    with pytest.raises(DocumentError, match="nothing to find it by"):
        fused.add([Document(parts=[], id="blank")])


def test_encoders_in_the_wrong_place(encoder, text_encoder):
    with pytest.raises(ValueError, match="must have an encoder of pictures"):
        FusedRetriever(Retriever(text_encoder), Retriever(encoder))


class TestSaved:
    @pytest.fixture
    def folder(self, tmp_path, encoder, text_encoder, documents):
        made(encoder, text_encoder, documents, WeightedSum(0.25)).save(tmp_path / "index")
        return tmp_path / "index"

    def test_it_opens_without_a_word_about_encoders(self, folder, encoder, text_encoder, documents):
        again = open_index(folder, device="cpu")
        assert isinstance(again, FusedRetriever) and again.fusion == WeightedSum(0.25)
        expected = made(encoder, text_encoder, documents, WeightedSum(0.25))
        for query in ("a red apple", "the river"):
            assert [(one.id, one.score) for one in again.retrieve(query)] == [
                (one.id, one.score) for one in expected.retrieve(query)
            ]
        assert again.get("text").text == "a tower" and again.get("d0").caption == CAPTIONS[0]
        other = open_index(folder, fusion=ReciprocalRank(), device="cpu")
        assert other.fusion == ReciprocalRank()

    def test_one_encoder_alone_too(self, tmp_path, encoder, text_encoder, documents):
        for name, one, part in (("p", encoder, documents[:5]), ("c", text_encoder, documents[:4])):
            Retriever(one, part).save(tmp_path / name)
            again = open_index(tmp_path / name, device="cpu")
            assert isinstance(again, Retriever)
            assert again.encoder.fingerprint == one.fingerprint and len(again) == len(part)
        with pytest.raises(ValueError, match=r"text encoder .* of no use"):
            check_index(tmp_path / "p", text_encoder=text_encoder.origin["path"])
        with pytest.raises(ValueError, match=r"fusion=rrf: .* built of captions alone"):
            check_index(tmp_path / "c", fusion=ReciprocalRank())

    def test_other_encoders_are_refused_by_name(self, folder, tmp_path, encoder, text_encoder):
        dual = save_checkpoint(tmp_path / "dual", "clip", seed=1)
        with pytest.raises(IndexMismatchError, match=encoder.fingerprint):
            open_index(folder, encoder=dual, device="cpu")
        text = save_text_encoder(tmp_path / "text", seed=1)
        with pytest.raises(IndexMismatchError, match=text_encoder.fingerprint):
            open_index(folder, text_encoder=text, device="cpu")
        with pytest.raises(FileNotFoundError, match="no model folder"):
            check_index(folder, encoder=tmp_path / "gone")
        with pytest.raises(IndexMismatchError, match=r"FusedRetriever\.load"):
            Retriever.load(folder, encoder)
        Retriever(encoder, [Document(text="a")]).save(tmp_path / "one")
        with pytest.raises(IndexMismatchError, match=r"Retriever\.load"):
            FusedRetriever.load(tmp_path / "one", encoder, text_encoder)

    def test_an_encoder_that_has_no_place(self, tmp_path, encoder, documents):
        """As of an index that was saved before encoders were remembered."""
        bare = DualEncoder(encoder.model, encoder.image_processor, encoder.tokenizer)
        Retriever(bare, documents[:2]).save(tmp_path / "bare")
        with pytest.raises(ValueError, match="does not know where the encoder is"):
            check_index(tmp_path / "bare")
        again = open_index(tmp_path / "bare", encoder=encoder.origin["path"], device="cpu")
        assert len(again) == 2
        metadata = {"encoder": None, "order": None}
        forge(tmp_path / "bare", "metadata", metadata)
        with pytest.raises(IndexFileError):
            check_index(tmp_path / "bare")

    @pytest.mark.parametrize(
        "change",
        [
            {"views": {}},
            {"views": {"picture": 1, "caption": 2}},
            {"views": {"sound": {"encoder": {}}}},
            {"fusion": None},
            {"fusion": "loud"},
        ],
    )
    def test_a_description_that_is_none(self, folder, change):
        forge(folder, "metadata", change)
        with pytest.raises((IndexFileError, ValueError)):
            open_index(folder, device="cpu")

    def test_documents_that_are_in_no_order(self, folder, encoder, text_encoder):
        line = json.dumps({"id": "more", "text": "another"}) + "\n"
        state = json.loads((folder / "ragvl_index.json").read_text())["state"]
        content = (folder / state / "documents.jsonl").read_bytes()
        forge(folder, "documents.jsonl", content + line.encode())
        with pytest.raises(IndexFileError, match="other documents"):
            FusedRetriever.load(folder, encoder, text_encoder)

    def test_pictures_in_memory_are_given_again(self, tmp_path, encoder, text_encoder, pictures):
        in_memory = [Document(pictures[0], "a cat", "cat"), Document(text="a dog", id="dog")]
        made(encoder, text_encoder, in_memory).save(tmp_path / "memory")
        with pytest.raises(ValueError, match="in memory"):
            open_index(tmp_path / "memory", device="cpu")
        again = open_index(tmp_path / "memory", documents=in_memory[:1], device="cpu")
        assert again.get("cat") is in_memory[0]


def test_text_encoder_alone(text_encoder, documents):
    """Captions and texts compare, so they do not take turns."""
    retriever = Retriever(text_encoder, [*documents[:4], documents[5]])
    assert [one.id for one in retriever.retrieve("a tower", 1)] == ["text"]
    scores = [one.score for one in retriever.retrieve("a tower")]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(DocumentError, match="no caption and no text"):
        retriever.add([documents[4]])
    assert isinstance(text_encoder, TextEncoder)
