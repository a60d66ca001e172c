"""Pictures and texts in one index, and queries of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ragvl import Document, Query
from ragvl.data.images import DocumentError, ImageError
from ragvl.retriever import IndexFileError, MixedIndex, Retriever, VectorIndex, Where

PASSAGES = ["A red tower of stone.", "The mill at the river.", "Bread, and how it is baked."]


@pytest.fixture
def mixed(pictures) -> list[Document]:
    first, second, *others = pictures
    return [
        *(Document(p, caption="a picture", id=f"p{i}") for i, p in enumerate(others)),
        *(Document(text=text, id=f"t{i}") for i, text in enumerate(PASSAGES)),
        Document(parts=[first, "and then", second], id="both"),
    ]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors)


def test_vectors_are_of_pictures_or_else_of_texts(encoder, mixed, pictures):
    vectors = encoder.encode_documents(mixed)
    np.testing.assert_allclose(vectors[:-4], encoder.encode_documents(pictures[2:]), atol=1e-6)
    np.testing.assert_allclose(vectors[-4:-1], encoder.encode_texts(PASSAGES), atol=1e-6)
    both = encoder.encode_documents(pictures[:2])
    np.testing.assert_allclose(vectors[-1], unit(both.sum(0)), atol=1e-6)


def test_vectors_of_queries(encoder, pictures):
    queries = ["a tower", Query(image=pictures[0]), Query("a tower", image=pictures[0])]
    text, picture, both = encoder.encode_queries(queries)
    np.testing.assert_allclose(text, encoder.encode_texts(["a tower"])[0], atol=1e-6)
    np.testing.assert_allclose(picture, encoder.encode_documents(pictures[:1])[0], atol=1e-6)
    np.testing.assert_allclose(both, unit(text + picture), atol=1e-6)
    with pytest.raises(TypeError, match=r"queries\[1\]: a query must be a string"):
        encoder.encode_queries(["a", 3])
    with pytest.raises(ImageError, match=r"the query .*no\.png"):
        encoder.encode_queries([Query(image=Path("no.png"))])
    with pytest.raises(ValueError, match=r"queries\[0\]: the query is empty"):
        encoder.encode_queries([Query(instruction="Find it.")])


def test_a_document_that_says_nothing_is_named(encoder):
    with pytest.raises(DocumentError, match=r"'blank' .*nothing to find it by"):
        encoder.encode_documents([Document(text="a"), Document(parts=[], id="blank")])


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_kinds_take_turns_and_are_ordered_by_their_cosines(encoder, mixed, kind):
    retriever = Retriever(encoder, mixed, kind=kind)
    vectors = dict(zip([d.id for d in mixed], encoder.encode_documents(mixed), strict=True))
    for query in ("the mill", Query(image=mixed[1].image)):
        hits = retriever.retrieve(query, k=20)
        (of_query,) = encoder.encode_queries([query])
        cosines = {id: float(vector @ of_query) for id, vector in vectors.items()}
        ranked = sorted(cosines, key=lambda id: -cosines[id])
        of_texts = [id for id in ranked if id.startswith("t")]
        of_pictures = [id for id in ranked if not id.startswith("t")]
        paired = [id for pair in zip(of_pictures, of_texts) for id in pair]  # noqa: B905
        assert [hit.id for hit in hits] == [*paired, *of_pictures[len(of_texts) :]]
        for hit in hits:
            assert hit.score == pytest.approx(cosines[hit.id], abs=2e-6)
        assert [hit.id for hit in retriever.retrieve(query, k=3)] == paired[:3]
    retriever.remove([id for id in vectors if id.startswith("t")])
    assert [hit.id for hit in retriever.retrieve(query)] == of_pictures


def test_a_selection_is_searched_alone():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 8)).astype(np.float32)
    ids = [str(i) for i in range(200)]
    for kind in ("exact", "hnsw"):
        index = VectorIndex(8, kind=kind)
        index.add(ids, vectors)
        index.remove(ids[:20])
        odd = index.selection(ids[21::2])
        scores = vectors @ vectors[3]
        expected = sorted(ids[21::2], key=lambda id: -scores[int(id)])
        ((*hits,),) = index.search(vectors[3:4], 5, among=odd)
        assert [id for id, _ in hits] == expected[:5]
        mixed = MixedIndex(index, ids[20::2])
        (both,) = mixed.search(vectors[3:4], 4, in_turn=True)
        assert [int(id) % 2 for id, _ in both] == [1, 0, 1, 0]
        (some,) = mixed.search(vectors[3:4], 4, among=[*ids[21:26:2], "22", "0"], in_turn=True)
        assert [int(id) % 2 for id, _ in some] == [1, 0, 1, 1]
        assert mixed.search(vectors[3:4], 4, among=["0"]) == [[]]
    with pytest.raises(KeyError):
        index.selection(["0"])


def test_a_saved_index_has_documents_of_every_kind(encoder, mixed, tmp_path):
    files = []
    for i, document in enumerate(mixed[:3]):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(document.image).save(files[-1])
    kept = [
        Document(files[0], caption="a mill", id="picture"),
        Document(parts=["first", files[1], files[2]], id="parts"),
        Document(text="A text", id="text"),
    ]
    retriever = Retriever(encoder, kept)
    retriever.save(tmp_path / "index")
    loaded = Retriever.load(tmp_path / "index", encoder)
    for before in kept:
        after = loaded.documents[str(before.id)]
        assert (after.caption, after.text, after.id) == (before.caption, before.text, before.id)
        assert [p if isinstance(p, str) else p.path for p in after.parts] == [
            p if isinstance(p, str) else p.path for p in before.parts
        ]
    assert [h.id for h in loaded.retrieve("a")] == [h.id for h in retriever.retrieve("a")]

    Retriever(encoder, [mixed[-1]]).save(tmp_path / "memory")
    with pytest.raises(ValueError, match="were in memory"):
        Retriever.load(tmp_path / "memory", encoder)
    again = Retriever.load(tmp_path / "memory", encoder, documents=[mixed[-1]])
    assert again.documents["both"] is mixed[-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x", "text": " "}', "the text is empty"),
        ('{"id": "x", "parts": ["a"]}', "a part is of type str"),
        ('{"id": "x", "parts": {}}', "parts is of type dict"),
        ('{"id": "x", "parts": [{"video": "a"}]}', r"parts\[0\]"),
        ('{"id": "x", "sound": "a"}', "no object with id"),
    ],
)
def test_lines_that_hold_no_document(encoder, tmp_path, line, message):
    from retriever.forging import forge

    Retriever(encoder, [Document(text="a", id="x")]).save(tmp_path)
    forge(tmp_path, "documents.jsonl", line.encode() + b"\n")
    with pytest.raises(IndexFileError, match=message):
        Retriever.load(tmp_path, encoder)


def test_ids_are_made_of_what_a_document_holds(encoder, pictures):
    documents = [
        Document(text="a"),
        Document(text="b"),
        Document(parts=[pictures[0], "a"]),
        Document(parts=["a", pictures[0]]),
    ]
    ids = Retriever(encoder, documents).add([Document(text="c")])
    assert len(ids[0]) == 16
    assert len(Retriever(encoder, documents)) == 4
    with pytest.raises(ValueError, match="more than once"):
        Retriever(encoder, [Document(text="a"), Document(text="a")])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Where("RIVER"), ["t1"]),
        (Where("a pict", ["old"]), ["p0", "p2"]),
        (Where(tags=["old", "red"]), ["p2"]),
        (Where("nowhere"), []),
    ],
)
def test_only_what_has_a_text_or_a_tag_is_searched(encoder, mixed, where, expected):
    tags = {"p0": ["old"], "p2": ["red", "old"], "t0": ["old"]}
    documents = [
        Document(d.image, d.caption, d.id, tags=tags.get(str(d.id), ()))
        if d.image is not None
        else Document(text=d.text, id=d.id, tags=tags.get(str(d.id), ()))
        for d in mixed[:-1]
    ]
    retriever = Retriever(encoder, documents)
    vectors = dict(zip([d.id for d in documents], encoder.encode_documents(documents), strict=True))
    (query,) = encoder.encode_queries(["the mill"])
    hits = retriever.retrieve("the mill", where=where)
    assert {hit.id for hit in hits} == set(expected)
    for hit in hits:
        assert hit.score == pytest.approx(float(vectors[hit.id] @ query), abs=2e-6)


def test_what_is_no_condition():
    with pytest.raises(ValueError, match="say which documents"):
        Where()
    with pytest.raises(ValueError, match="the text is empty"):
        Where(" ")
    with pytest.raises(TypeError, match="must be a string or None"):
        Where(3)
    with pytest.raises(TypeError, match="not one"):
        Where(tags="old")
    with pytest.raises(ValueError, match="a tag is empty"):
        Where(tags=[""])
