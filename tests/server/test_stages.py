"""What a server loads, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tiny_encoders import save_text_encoder
from typer.testing import CliRunner

from ragvl import Document, RagVL, Reranker, Retriever
from ragvl.cli import app
from ragvl.data.synthetic import Places, write_world
from ragvl.reranker import THRESHOLDS_FILE
from ragvl.retriever import (
    DualEncoder,
    FusedRetriever,
    IndexMismatchError,
    ReciprocalRank,
    TextEncoder,
    parse_fusion,
    retriever_name,
)
from ragvl.server.settings import TINY_RERANKER
from ragvl.server.stages import ASSETS, Stages, load_stages

ENCODER = ASSETS / "tiny-retriever"
GENERATOR = ASSETS / "tiny-generator"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    encoder = DualEncoder.from_pretrained(ENCODER, device="cpu")
    texts = [Document(text=text, id=text[:1]) for text in ("a tower", "birds", "cafe")]
    Retriever(encoder, texts).save(folder)
    return folder


def _not_loaded() -> Reranker:
    raise AssertionError("nothing may be loaded")


def test_each_stage_is_loaded_where_it_is_named(index: Path) -> None:
    def reranker() -> Reranker:
        return Reranker.from_pretrained(TINY_RERANKER, device="cpu")

    alone = load_stages(reranker)
    assert alone.retriever is None
    assert alone.generator is None
    stages = load_stages(reranker, index=index, encoder=ENCODER, generator=GENERATOR, device="cpu")
    assert stages.retriever is not None
    assert list(stages.retriever.documents) == ["a", "b", "c"]
    assert stages.generator is not None
    assert stages.generator.answer("Which?")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"encoder": ENCODER}, "of no use"),
        ({"index": "index", "text_encoder": ENCODER}, "not built of captions"),
        ({"index": "index", "fusion": ReciprocalRank()}, "built of pictures alone"),
        ({"index": "index", "retriever_weight": -1.0}, "retriever_weight=-1.0"),
        ({"retriever_weight": 1.0}, "retriever_weight: of no use without an index"),
        ({"index": "nowhere", "encoder": ENCODER}, "holds no saved index"),
        ({"index": "cut", "encoder": ENCODER}, "size does not match"),
        ({"index": "index", "encoder": TINY_RERANKER}, "llava"),
        ({"index": "index", "encoder": "deeper"}, "lacks"),
        ({"index": "index", "encoder": "deeper", "generator": ENCODER}, "dual-encoder"),
        ({"generator": "nowhere/at/all"}, "nowhere/at/all"),
        ({"generator": GENERATOR, "dtype": "float33"}, "float33"),
        ({"generator": GENERATOR, "caption_tokens": 0}, "caption_tokens=0"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_the_first_model(
    arguments: dict[str, Any], problem: str, index: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(index, cut)
    (vectors,) = cut.rglob("index.faiss")
    vectors.write_bytes(vectors.read_bytes()[:-1])
    deeper = tmp_path / "deeper"  # than its weights
    shutil.copytree(ENCODER, deeper)
    config = json.loads((deeper / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    (deeper / "config.json").write_text(json.dumps(config))
    places = {"index": index, "cut": cut, "deeper": deeper, "nowhere": tmp_path}
    chosen = {name: places.get(value, value) for name, value in arguments.items()}
    with pytest.raises((ValueError, OSError), match=problem):
        load_stages(_not_loaded, **chosen)


def test_an_index_of_another_encoder_is_refused_before_the_reranker(
    index: Path, tmp_path: Path
) -> None:
    other = tmp_path / "encoder"
    shutil.copytree(ENCODER, other)
    config = other / "processor_config.json"
    config.write_text(config.read_text().replace("0.5", "0.25"))
    with pytest.raises(IndexMismatchError, match="was built by encoder"):
        load_stages(_not_loaded, index=index, encoder=other, device="cpu")


def test_saved_thresholds_come_along_where_they_are_the_rerankers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def loaded(dtype: str) -> Reranker:
        def load() -> Reranker:
            return Reranker.from_pretrained(TINY_RERANKER, device="cpu", dtype=dtype)

        return load_stages(load).reranker

    thresholds = loaded("float32").thresholds
    assert thresholds is not None
    assert "adaptive" in thresholds.values
    assert not caplog.records
    assert loaded("bfloat16").thresholds is None
    assert "the saved thresholds are not used" in caplog.text


@pytest.mark.slow
def test_what_was_estimated_for_an_indexs_encoders_is_taken(
    demo: Stages,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = TextEncoder.from_pretrained(save_text_encoder(tmp_path / "text"), device="cpu")
    pictures = DualEncoder.from_pretrained(ENCODER, device="cpu")
    built = FusedRetriever(Retriever(pictures), Retriever(texts), documents=[Document(text="Red")])
    built.save(tmp_path / "index")
    fusion = parse_fusion("0.4")
    name = retriever_name({"picture": pictures, "caption": texts}, fusion)
    thresholds = demo.reranker.thresholds
    assert thresholds is not None
    folder = tmp_path / "model"
    folder.mkdir()
    estimated = replace(thresholds, encoder=name, fusion=fusion.name)
    estimated.save(folder / THRESHOLDS_FILE)

    def loaded(**settings: Any) -> Stages:
        return load_stages(
            lambda: demo.reranker,
            thresholds=folder,
            index=tmp_path / "index",
            device="cpu",
            **settings,
        )

    def fusion_of(**settings: Any) -> str:
        stages = loaded(**settings)
        assert isinstance(stages.retriever, FusedRetriever)
        return stages.retriever.fusion.name

    assert fusion_of() == fusion.name
    assert fusion_of(fusion=parse_fusion("rrf")) == "rrf"
    replace(estimated, encoder="another's").save(folder / THRESHOLDS_FILE)
    assert fusion_of() == built.fusion.name
    (folder / THRESHOLDS_FILE).write_text("[]")
    assert fusion_of() == built.fusion.name
    assert "no fusion is taken" in caplog.text
    assert loaded().retriever_weight == 0
    assert loaded(retriever_weight=2).retriever_weight == 2
    monkeypatch.setattr(
        demo.reranker, "thresholds", replace(thresholds, encoder=built.name, retriever_weight=3.0)
    )
    with caplog.at_level(logging.INFO):
        assert loaded().retriever_weight == 3
    assert "the index's order counts, with a weight of 3, as estimated" in caplog.text
    assert loaded(retriever_weight=0).retriever_weight == 0


def test_the_demo_answers_its_examples(demo: Stages) -> None:
    assert demo.retriever is not None
    assert demo.generator is not None
    assert set(demo.reranker.thresholds.values) > {"adaptive"}
    rag = RagVL(demo.retriever, demo.reranker, demo.generator)
    answers = [rag.answer(question, max_new_tokens=8) for question in demo.examples[:3]]
    assert all(answer.evidence for answer in answers)
    # What was drawn is gone from the disk, and its documents are whole
    document = answers[0].evidence[0].document
    assert demo.retriever.get(document.id) is document
    assert demo.retriever.get("no such id") is None
    assert isinstance(document.image, bytes)


def test_an_index_from_the_command_line(demo: Stages, tmp_path: Path) -> None:
    assert demo.retriever is not None
    pictures, built = tmp_path / "pictures", tmp_path / "index"
    pictures.mkdir()
    lines = []
    for i, document in enumerate(list(demo.retriever.documents.values())[:3]):
        assert isinstance(document.image, bytes)
        (pictures / f"{i}.png").write_bytes(document.image)
        lines.append({"id": f"own {i}", "image": f"{i}.png", "caption": document.caption})
    (pictures / "2.png").write_bytes(b"no picture")
    (pictures / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def run(source: Path, *others: str) -> Result:
        command = ["index", str(source), str(built), "--encoder", str(ENCODER), "--device", "cpu"]
        return CliRunner().invoke(app, [*command, *others])

    strict = run(pictures / "own.jsonl", "--strict")
    assert strict.exit_code == 1
    assert "'own 2'" in strict.stderr
    assert not built.exists()
    outcome = run(pictures / "own.jsonl", "--json")
    assert outcome.exit_code == 0, outcome.output
    figures = json.loads(outcome.stdout)
    assert (figures["documents"], figures["skipped"]) == (2, 1)
    stages = load_stages(lambda: demo.reranker, index=built, encoder=ENCODER, device="cpu")
    assert stages.retriever is not None
    assert list(stages.retriever.documents) == ["own 0", "own 1"]
    write_world(tmp_path / "world", Places(), counts={"test": 2})
    refused = run(tmp_path / "world", "--split", "test")
    assert refused.exit_code == 1
    assert "has no file of its own" in refused.stderr
