"""Captions and texts as vectors, by encoders in sentence-transformers' format."""

from __future__ import annotations

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_encoders import save_text_encoder, tiny_tokenizer

from ragvl import Document, Query
from ragvl.data.images import DocumentError
from ragvl.model_files import UnsupportedModelError
from ragvl.retriever import TextEncoder, check_text_encoder

TEXTS = ["a red apple", "two blue circles", "the quick brown fox " * 40]  # cut at 64 tokens


def test_vectors_are_those_of_sentence_transformers(text_checkpoint, text_encoder):
    expected = SentenceTransformer(str(text_checkpoint), device="cpu").encode(
        TEXTS, normalize_embeddings=True
    )
    vectors = text_encoder.encode_texts(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (3, text_encoder.dim) == (3, 16)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    np.testing.assert_allclose(text_encoder.encode_texts(TEXTS, batch_size=1), expected, atol=1e-5)
    assert text_encoder.encode_texts([]).shape == (0, 16)


def test_prompts_of_queries_and_documents_are_written_before_them(tmp_path):
    prompts = {"query": "ask: ", "document": "about: "}
    encoder = TextEncoder.from_pretrained(save_text_encoder(tmp_path, prompts=prompts))
    bare = encoder.encode_texts(["ask: apple", "about: apple"])
    np.testing.assert_allclose(encoder.encode_queries(["apple"])[0], bare[0], atol=1e-6)
    documents = [Document(text="apple")]
    np.testing.assert_allclose(encoder.encode_documents(documents)[0], bare[1], atol=1e-6)


def test_captions_and_texts_are_read_and_pictures_are_not(text_encoder, pictures):
    documents = [
        Document("no-such-file.png", "a red apple"),
        Document(text="a red apple"),
        Document(parts=["a red", pictures[0], "apple"]),
    ]
    caption, text, parts = text_encoder.encode_documents(documents)
    np.testing.assert_array_equal(caption, text)
    np.testing.assert_allclose(parts, text_encoder.encode_texts(["a red\napple"])[0], atol=1e-6)
    with pytest.raises(DocumentError, match=r"'bare' .*no caption and no text"):
        text_encoder.encode_documents([documents[0], Document("a.png", id="bare")])


def test_a_query_without_text_is_refused(text_encoder, pictures):
    both = Query("a red apple", image=pictures[0])
    np.testing.assert_array_equal(
        text_encoder.encode_queries([both]), text_encoder.encode_queries(["a red apple"])
    )
    with pytest.raises(ValueError, match=r"queries\[1\]: .*has no text"):
        text_encoder.encode_queries(["a", Query(image=pictures[0])])
    with pytest.raises(TypeError, match="not one"):
        text_encoder.encode_queries("a")


def test_bad_texts(text_encoder):
    with pytest.raises(TypeError, match="not one string"):
        text_encoder.encode_texts("a")
    with pytest.raises(TypeError, match="text 1 must be a string"):
        text_encoder.encode_texts(["a", 1])
    with pytest.raises(ValueError, match="text 1 is empty"):
        text_encoder.encode_texts(["a", " "])
    with pytest.raises(ValueError, match="batch_size"):
        text_encoder.encode_texts(["a"], batch_size=0)


def test_the_fingerprint_names_weights_and_settings(tmp_path, text_checkpoint, text_encoder):
    half = TextEncoder.from_pretrained(text_checkpoint, device="cpu", dtype="bfloat16")
    assert half.fingerprint == text_encoder.fingerprint
    assert (half.dtype, text_encoder.dtype) == ("torch.bfloat16", "torch.float32")
    others = {
        "weights": {"seed": 1},
        "prompts": {"prompts": {"query": "ask: ", "document": ""}},
    }
    names = {text_encoder.fingerprint}
    for name, change in others.items():
        names.add(
            TextEncoder.from_pretrained(save_text_encoder(tmp_path / name, **change)).fingerprint
        )
    folder = shutil.copytree(text_checkpoint, tmp_path / "pooling")
    settings = folder / "1_Pooling" / "config.json"
    settings.write_text(settings.read_text().replace('"mean"', '"max"'))
    names.add(TextEncoder.from_pretrained(folder).fingerprint)
    assert len(names) == 4


def test_it_remembers_where_it_is(text_checkpoint, text_encoder, monkeypatch):
    assert text_encoder.origin == {"path": str(text_checkpoint)}
    monkeypatch.chdir(text_checkpoint.parent)
    relative = TextEncoder.from_pretrained(text_checkpoint.name)
    assert relative.origin == text_encoder.origin


def test_one_encoder_in_many_threads(text_encoder):
    texts = [f"{'many ' * (i % 7)}words {i}" for i in range(40)]
    expected = text_encoder.encode_texts(texts)
    again = pickle.loads(pickle.dumps(text_encoder))
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text: again.encode_queries([text])[0], texts))
    np.testing.assert_allclose(np.stack(rows), expected, atol=1e-5)


def test_modules_in_folders_of_their_own(tmp_path):
    """As of static embeddings, which have no transformer and no configuration of one."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = tiny_tokenizer(attention_mask=True).backend_tokenizer
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)])
    static.save_pretrained(str(tmp_path / "static"))
    encoder = TextEncoder.from_pretrained(tmp_path / "static")
    np.testing.assert_allclose(
        encoder.encode_texts(TEXTS), static.encode(TEXTS, normalize_embeddings=True), atol=1e-6
    )


def test_what_is_no_text_encoder_is_refused(tmp_path, checkpoints, text_checkpoint):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        check_text_encoder(tmp_path / "missing")
    with pytest.raises(UnsupportedModelError, match=r"no modules\.json"):
        check_text_encoder(checkpoints["clip"])
    cross = shutil.copytree(text_checkpoint, tmp_path / "cross")
    settings = cross / "config_sentence_transformers.json"
    settings.write_text(json.dumps({"model_type": "CrossEncoder"}))
    with pytest.raises(UnsupportedModelError, match="CrossEncoder"):
        check_text_encoder(cross)
    torn = shutil.copytree(text_checkpoint, tmp_path / "torn")
    (torn / "modules.json").write_text("[")
    with pytest.raises(UnsupportedModelError, match="modules"):
        check_text_encoder(torn)


def test_pickles_and_foreign_code_are_never_read(tmp_path, text_checkpoint):
    pickled = shutil.copytree(text_checkpoint, tmp_path / "pickled")
    (pickled / "2_Dense").mkdir()
    (pickled / "2_Dense" / "pytorch_model.bin").write_bytes(b"whatever")
    with pytest.raises(UnsupportedModelError, match="pickled weights"):
        check_text_encoder(pickled)
    code = shutil.copytree(text_checkpoint, tmp_path / "code")
    (code / "mine.py").write_text("raise SystemExit('it ran')")
    modules = json.loads((code / "modules.json").read_text())
    modules[1]["type"] = "mine.Pooling"
    (code / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModelError, match="trust_remote_code"):
        TextEncoder.from_pretrained(code)


def test_weights_that_give_no_number(text_checkpoint):
    model = SentenceTransformer(str(text_checkpoint), device="cpu")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        TextEncoder(model, device="cpu")
