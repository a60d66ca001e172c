"""`ragvl index`, `ragvl search` and `ragvl ask`, from files to tables, JSON and pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from tiny_encoders import save_checkpoint, save_text_encoder
from typer.testing import CliRunner

from ragvl import Document, Generator, Reranker
from ragvl.cli import app
from ragvl.messages import visible
from ragvl.mllm import MLLM
from ragvl.reranker import THRESHOLDS_FILE, SavedThresholds
from ragvl.retriever import (
    DualEncoder,
    FusedRetriever,
    Retriever,
    TextEncoder,
    bring_up_to_date,
    open_index,
    parse_fusion,
    retriever_name,
)

CAPTIONS = ["a red square", "two blue circles above the green line", None, "the old house"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "--encoder": str(save_checkpoint(folder / "clip", "clip")),
        "--text-encoder": str(save_text_encoder(folder / "text")),
    }


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, three of them with captions, and two texts."""
    folder = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for i, caption in enumerate(CAPTIONS):
        pixels = rng.integers(0, 256, (40 + 4 * i, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append({"id": f"picture {i}", "image": f"{i}.png", "caption": caption})
    lines.append({"id": "fact", "text": "the quick brown fox jumps"})
    lines.append({"id": "later", "text": "the lazy dog", "split": "train"})
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def run_index(*arguments: str | Path) -> Result:
    return run("index", *arguments, "--device", "cpu")


@pytest.mark.parametrize(
    ("given", "num_found"), [(["--encoder"], 6), (["--text-encoder"], 5), (None, 6)]
)
def test_an_index_is_of_pictures_or_captions_or_both(
    given: list[str] | None,
    num_found: int,
    encoders: dict[str, str],
    collection: Path,
    tmp_path: Path,
) -> None:
    chosen = [x for name in given or encoders for x in (name, encoders[name])]
    outcome = run_index(collection, tmp_path / "index", *chosen)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout.endswith(f"holds {num_found} documents; {6 - num_found} skipped\n")
    retriever = open_index(tmp_path / "index", device="cpu")
    assert isinstance(retriever, Retriever if given else FusedRetriever)
    assert len(retriever) == num_found
    of_split = run_index(collection, tmp_path / "test", *chosen, "--split", "test")
    assert f"holds {num_found - 1} documents" in of_split.stdout


def test_an_index_is_named_after_its_source(
    encoders: dict[str, str], collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "my.pictures"
    pictures.mkdir()
    for name in ("0.png", "1.png"):
        (pictures / name).write_bytes((collection / name).read_bytes())
    (pictures / "captions.csv").write_text("image,caption\n0.png,a red square\n")
    text_encoder = ["--text-encoder", encoders["--text-encoder"]]
    outcome = run_index("my.pictures", *text_encoder, "--captions", "my.pictures/captions.csv")
    assert outcome.stdout == "my.pictures.index holds 1 documents; 1 skipped\n"
    assert "captions.csv has captions for 1 of 2 pictures" in outcome.stderr
    held = open_index("my.pictures.index", device="cpu").documents
    assert {id: document.caption for id, document in held.items()} == {"0.png": "a red square"}
    nothing = run_index("my.pictures", "other", *text_encoder)
    assert (nothing.exit_code, (tmp_path / "other").exists()) == (1, False)
    assert "none of 2 documents can be used: no index was written" in nothing.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name what is to be searched by: --encoder for pictures, --text-encoder"),
        ({"--encoder": "./nowhere"}, "no model folder './nowhere'"),
        ({"--text-encoder": "./nowhere"}, "no model folder './nowhere'"),
        ({"--encoder": None, "--fusion": "rrf"}, "--fusion is of --encoder and --text-encoder"),
        ({"--encoder": None, "--text-encoder": None, "--fusion": "2"}, "'2' is no fusion"),
        ({"--encoder": None, "--captions": "./nowhere.csv"}, "nowhere.csv is missing"),
    ],
)
def test_what_makes_no_index_is_refused_before_the_work(
    options: dict[str, str | None],
    message: str,
    encoders: dict[str, str],
    collection: Path,
    tmp_path: Path,
) -> None:
    given = [x for name, value in options.items() for x in (name, value or encoders[name])]
    outcome = run_index(collection, tmp_path / "index", *given)
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert message in outcome.stderr
    assert not (tmp_path / "index").exists()


@pytest.fixture(scope="module")
def index(
    encoders: dict[str, str], collection: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of everything, by pictures and captions."""
    folder = tmp_path_factory.mktemp("built") / "index"
    both = [x for pair in encoders.items() for x in pair]
    assert run_index(collection, folder, *both).exit_code == 0
    return folder


QUESTION = "Which is <b>the</b> old house?"
DEVICE = ("--device", "cpu")


def test_search_without_a_reranker_is_the_retrievers_order(index: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = ["search", index, QUESTION, *DEVICE, "--candidates", "5", "--top-k", "3"]
    outcome = run(*command, "--json", "--html", page)
    assert outcome.exit_code == 0, outcome.output
    printed = json.loads(outcome.stdout)
    expected = open_index(index, device="cpu").retrieve(QUESTION, 5)
    assert [one["id"] for one in printed["results"]] == [one.id for one in expected[:3]]
    assert [one["retrieved"] for one in printed["results"]] == [1, 2, 3]
    scores = [one["retrieval_score"] for one in printed["results"]]
    assert scores == pytest.approx([one.score for one in expected[:3]])
    assert (printed["query"], printed["num_documents"], printed["num_candidates"]) == (
        QUESTION,
        6,
        5,
    )
    assert not {"threshold", "cache"} & printed.keys()
    table = run(*command)
    head, *rows = [line.split("\t") for line in table.stdout.splitlines()]
    assert head == ["document", "caption", "retrieved", "score"]
    assert [row[0] for row in rows] == [one.id for one in expected[:3]]
    assert "in the retriever's order: name a reranker" in table.stderr
    shown = page.read_text()
    assert "not reranked" in shown and "<b>the" not in shown
    pictures = [one for one in expected if one.document.pictures]
    assert shown.count("data:image/png;base64,") == len(pictures)


@pytest.mark.slow
def test_search_reranks_what_it_retrieved(
    index: Path, tiny_mllm: Callable[[str], MLLM], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    command = ["search", index, QUESTION, *DEVICE, "--reranker", tiny_model("qwen2_vl")]
    command += ["--threshold", "0.5", "--candidates", "4", "--cache", tmp_path / "cache"]
    first = run(*command, "--json")
    assert first.exit_code == 0, first.output
    assert "0 of 4 prefixes were in the cache: a prefix is of a picture with its" in first.stderr
    printed = json.loads(first.stdout)
    assert printed["cache"] == {"folder": str(tmp_path / "cache"), "hits": 0, "misses": 4}
    retrieved = open_index(index, device="cpu").retrieve(QUESTION, 4)
    reranker = Reranker(tiny_mllm("qwen2_vl"))
    scores = reranker.score([(QUESTION, one.document) for one in retrieved]).tolist()
    by_id = {one["id"]: one for one in printed["results"]}
    assert [by_id[one.id]["retrieved"] for one in retrieved] == [1, 2, 3, 4]
    assert [by_id[one.id]["relevance"] for one in retrieved] == pytest.approx(scores, abs=1e-6)
    relevances = [one["relevance"] for one in printed["results"]]
    assert relevances == sorted(relevances, reverse=True)
    assert [one["kept"] for one in printed["results"]] == [x >= 0.5 for x in relevances]
    again = run(*command, "--html", tmp_path / "page.html")
    assert "4 of 4 prefixes were in the cache\n" in again.stderr
    rows = [line.split("\t") for line in again.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == [one["id"] for one in printed["results"]]
    assert [row[-2] for row in rows] == [f"{relevance:.4f}" for relevance in relevances]
    page = (tmp_path / "page.html").read_text()
    assert page.index("<h2>Reranked</h2>") < page.index("<h2>Retrieved</h2>")


@pytest.mark.slow
def test_search_takes_the_fusion_that_was_estimated_for_its_encoders(
    index: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    held = open_index(index, device="cpu")
    assert isinstance(held, FusedRetriever) and held.fusion.name == "rrf"
    encoders = {"picture": held.picture.encoder, "caption": held.caption.encoder}
    fusion = parse_fusion("0.25")
    model = shutil.copytree(tiny_model("qwen2_vl"), tmp_path / "model")
    estimated = SavedThresholds(
        model="another dtype's",
        template="caption",
        prompts="",
        encoder=retriever_name(encoders, fusion),
        pool="full",
        num_candidates=20,
        top_k=2,
        data="dev",
        questions=(),
        fusion=fusion.name,
    )
    estimated.save(model / THRESHOLDS_FILE)
    command = ["search", index, QUESTION, *DEVICE, "--reranker", model, "--json"]
    outcome = run(*command)
    assert f"fusion {fusion.name}, as estimated, in place of rrf\n" in outcome.stderr
    held.fusion = fusion
    scores = {one.id: one.score for one in held.retrieve(QUESTION)}
    found = {one["id"]: one["retrieval_score"] for one in json.loads(outcome.stdout)["results"]}
    assert found == pytest.approx(scores)
    assert "as estimated" not in run(*command, "--fusion", "rrf").stderr
    replace(estimated, encoder=retriever_name(encoders, parse_fusion("0.3"))).save(
        model / THRESHOLDS_FILE
    )
    assert "as estimated" not in run(*command).stderr, "it was estimated for other encoders"


@pytest.mark.slow
def test_search_takes_the_weight_that_was_estimated_for_its_models(
    index: Path,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = shutil.copytree(tiny_model("qwen2_vl"), tmp_path / "model")
    reranker = Reranker.from_pretrained(model, device="cpu", prefix_cache=None)
    estimated = SavedThresholds(
        model=reranker.weights,
        template=reranker.template_name,
        prompts=reranker.prompts_name,
        encoder=open_index(index, device="cpu").name,
        pool="full",
        num_candidates=20,
        top_k=2,
        data="dev",
        questions=(),
        retriever_weight=1e6,
        num_documents=100,
    )
    estimated.save(model / THRESHOLDS_FILE)
    command = ["search", index, QUESTION, *DEVICE, "--reranker", model, "--json"]

    def places(outcome: Result) -> list[int]:
        return [one["retrieved"] for one in json.loads(outcome.stdout)["results"]]

    outcome = run(*command)
    assert "the retriever's order counts, with a weight of 1e+06, as estimated" in outcome.stderr
    assert "the retriever's weight: estimated on dev in a search among 100" in caplog.text
    assert places(outcome) == [1, 2, 3, 4, 5, 6], "in the retriever's order, near enough"
    assert json.loads(outcome.stdout)["retriever_weight"] == 1e6
    page = tmp_path / "page.html"
    assert run(*command, "--html", page).exit_code == 0
    assert "counts with a weight of 1e+06" in page.read_text()
    alone = run(*command, "--retriever-weight", "0")
    relevances = [one["relevance"] for one in json.loads(alone.stdout)["results"]]
    assert "as estimated" not in alone.stderr
    assert "retriever_weight" not in json.loads(alone.stdout)
    assert relevances == sorted(relevances, reverse=True) and places(alone) != places(outcome)
    assert places(run(*command, "--retriever-weight", "1e6")) == places(outcome)
    replace(estimated, encoder="another").save(model / THRESHOLDS_FILE)
    assert places(run(*command)) == places(alone)
    replace(estimated, model="another dtype's").save(model / THRESHOLDS_FILE)
    assert places(run(*command)) == places(alone)
    assert "the saved thresholds are not used: the thresholds were estimated" in caplog.text


def test_a_picture_that_is_gone_comes_last(
    encoders: dict[str, str], collection: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes((collection / name).read_bytes())
    index = tmp_path / "index"
    assert run_index(tmp_path, index, "--encoder", encoders["--encoder"]).exit_code == 0
    (tmp_path / "1.png").unlink()
    command = ["search", index, QUESTION, *DEVICE, "--reranker", tiny_model("qwen2_vl")]
    printed = json.loads(run(*command, "--json").stdout)["results"]
    assert [(one["id"], one["kept"]) for one in printed][1] == ("1.png", False)
    assert (printed[0]["relevance"] is None, printed[1]["relevance"]) == (False, None)
    page = tmp_path / "page.html"
    table = run(*command, "--html", page)
    assert table.stdout.splitlines()[2].split("\t")[2:] == ["cannot be used", "no"]
    assert "a picture that cannot be read" in page.read_text()


@pytest.mark.slow
def test_ask_answers_from_what_is_kept(
    index: Path, tiny_mllm: Callable[[str], MLLM], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model, page = tiny_model("qwen2_vl"), tmp_path / "page.html"
    command = ["ask", index, QUESTION, *DEVICE, "--reranker", model, "--generator", model]
    command += ["--max-new-tokens", "6", "--html", page]
    outcome = run(*command, "--threshold", "0", "--json")
    assert outcome.exit_code == 0, outcome.output
    printed = json.loads(outcome.stdout)
    held = open_index(index, device="cpu")
    assert printed["evidence"] == [one["id"] for one in printed["results"][:2]]
    evidence = [held.documents[id] for id in printed["evidence"]]
    generator = Generator(tiny_mllm("qwen2_vl"))
    assert printed["answer"] == generator.answer(QUESTION, evidence, max_new_tokens=6)
    assert f"Answered from {', '.join(printed['evidence'])}." in page.read_text()
    table = run(*command, "--threshold", "0")
    assert [line.split("\t")[0] for line in table.stdout.splitlines()[2:]] == printed["evidence"]
    nothing = run(*command, "--threshold", "1")
    assert nothing.stdout == visible(generator.answer(QUESTION, max_new_tokens=6)) + "\n"
    assert "none of 6 documents has a relevance of 1: " in nothing.stderr
    assert "answered from the question alone" in page.read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nowhere", "Which?"], "there is no index nowhere: `ragvl index` makes one"),
        ([".", "Which?"], "holds no saved index"),
        (["INDEX", " "], "the query is empty"),
        (["INDEX", ""], "the query is empty"),
        (["INDEX", "Which?", "--encoder", "./moved"], "no model folder './moved'"),
        (["INDEX", "Which?", "--fusion", "most"], "'most' is no fusion"),
        (["INDEX", "Which?", "--retriever-weight", "inf"], "expected a number from 0"),
        (["INDEX", "Which?", "--retriever-weight", "1"], "name a reranker with --reranker"),
        (["INDEX", "Which?", "--html", "no/such/page.html"], "there is no folder"),
        (["INDEX", "Which?", "--html", "-"], "'-' is no name for a file"),
        (["INDEX", "Which?", "--captions", __file__], "--captions is of documents to index"),
        (["INDEX", "Which?", "--cache", __file__, "--encoder", "./moved"], "is no folder"),
        (["INDEX", "Which?", "--threshold", "2"], "is not a probability"),
        (["INDEX", "Which?", "--query-image", "nowhere.png"], "there is no such file"),
        (["INDEX", "Which?", "--reranker", "./nowhere"], "no model folder './nowhere'"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    given: list[str], message: str, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("search", *[str(index) if x == "INDEX" else x for x in given], *DEVICE)
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.fixture
def photos(collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three pictures, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("0.png", "1.png", "3.png"):
        shutil.copy(collection / name, folder)
    return folder


def found_ids(outcome: Result) -> set[str]:
    assert outcome.exit_code == 0, outcome.output
    return {one["id"] for one in json.loads(outcome.stdout)["results"]}


@pytest.mark.slow
def test_a_folder_is_indexed_once_and_followed(
    encoders: dict[str, str], photos: Path, collection: Path, tiny_model: Callable[[str], Path]
) -> None:
    command = ["search", photos, QUESTION, *DEVICE, "--json"]
    first = run(*command, "--encoder", encoders["--encoder"])
    assert found_ids(first) == {"0.png", "1.png", "3.png"}
    assert f"{photos}: 3 documents indexed, 0 skipped; kept in " in first.stderr
    kept = Path(json.loads(first.stdout)["index"])
    assert open_index(kept, device="cpu").documents.keys() == found_ids(first)
    assert len(list(photos.iterdir())) == 3, "nothing is written there"

    again = run(*command, "--reranker", tiny_model("qwen2_vl"))
    assert found_ids(again) == found_ids(first)
    assert "indexed" not in again.stderr
    nothing = {"new": 0, "changed": 0, "gone": 0, "skipped": 0}
    assert json.loads(again.stdout)["indexed"] == nothing
    (state,) = (one.name for one in kept.glob("state-*"))

    (photos / "0.png").unlink()
    shutil.copy(collection / "2.png", photos / "1.png")
    shutil.copy(collection / "0.png", photos / "new.png")
    (photos / "broken.png").write_bytes(b"no picture")
    changed = run(*command)
    assert found_ids(changed) == {"1.png", "3.png", "new.png"}
    assert f"{photos}: 1 new, 1 changed, 1 gone; 3 documents indexed\n" in changed.stderr
    assert state not in [one.name for one in kept.glob("state-*")]
    anew = Retriever(DualEncoder.from_pretrained(encoders["--encoder"], device="cpu"))
    anew.add([Document(photos / name, id=name) for name in ("1.png", "3.png", "new.png")])
    scores = {one.id: one.score for one in anew.retrieve(QUESTION)}
    printed = json.loads(changed.stdout)
    assert {one["id"]: one["retrieval_score"] for one in printed["results"]} == pytest.approx(
        scores, abs=1e-6
    )
    assert printed["indexed"] == {"new": 1, "changed": 1, "gone": 1, "skipped": 1}
    assert "indexed" not in run(*command).stderr, "what is broken is not tried again"
    shutil.copy(collection / "3.png", photos / "broken.png")
    assert "1 new, 0 changed, 0 gone" in run(*command).stderr


@pytest.mark.slow
def test_a_folders_index_is_made_again_where_it_must_be(
    encoders: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    command = ["search", photos, QUESTION, *DEVICE]
    refused = run(*command)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "holds no saved index: to index the documents in it, name --encoder" in refused.stderr
    assert not (tmp_path / "cache").exists()
    by_pictures = ["--encoder", encoders["--encoder"]]
    kept = Path(json.loads(run(*command, *by_pictures, "--json").stdout)["index"])
    both = [x for pair in encoders.items() for x in pair]
    (tmp_path / "captions.csv").write_text("image,caption\nphotos/0.png,a red square\n")
    captioned = run(*command, *both, "--captions", tmp_path / "captions.csv")
    assert "3 documents indexed" in captioned.stderr, "beside the one without"
    assert "captions for 1 of 3 pictures" in captioned.stderr
    assert "a red square" in captioned.stdout
    other = run(*command, *both)
    assert "is indexed by other encoders than before" in other.stderr
    assert isinstance(open_index(kept, device="cpu"), FusedRetriever)
    (next(kept.glob("state-*")) / "documents.jsonl").write_text("")
    damaged = run(*command)
    assert (damaged.exit_code, damaged.stdout) == (1, "")
    assert "is damaged" in damaged.stderr and "name --encoder" in damaged.stderr
    repaired = run(*command, *both)
    assert "is indexed again: " in repaired.stderr and "3 documents indexed" in repaired.stderr
    for path in photos.iterdir():
        path.write_bytes(b"no picture")
    nothing = run(*command)
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert "none of 3 documents can be used" in nothing.stderr


def test_only_what_has_changed_is_encoded_again(
    encoders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TextEncoder.from_pretrained(encoders["--text-encoder"], device="cpu")
    encoded: list[str | None] = []
    encode = encoder.encode_documents

    def noted(documents: Any, **settings: Any) -> Any:
        encoded.extend(one.text for one in documents)
        return encode(documents, **settings)

    monkeypatch.setattr(encoder, "encode_documents", noted)
    retriever = Retriever(encoder)
    texts = [Document(text="One.", id="a"), Document(text="Two.", id="b")]
    first = bring_up_to_date(retriever, texts, {})
    assert (encoded, first.new, first.is_change) == (["One.", "Two."], 2, True)
    encoded.clear()
    assert not bring_up_to_date(retriever, texts, first.versions).is_change
    assert not encoded
    texts[1] = Document(text="Three.", id="b")
    second = bring_up_to_date(retriever, texts, first.versions)
    assert (encoded, second.new, second.changed, second.gone) == (["Three."], 0, 1, 0)
    third = bring_up_to_date(retriever, texts[1:], second.versions)
    assert (third.gone, retriever.documents.keys()) == (1, {"b"})
    with pytest.raises(ValueError, match="more than once"):
        bring_up_to_date(retriever, [*texts, *texts], third.versions)
