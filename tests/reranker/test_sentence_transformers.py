"""Checkpoints in sentence-transformers' format score as its CrossEncoder does, or are refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from pair_checkpoints import (
    PICTURES,
    cross_encoder,
    dense,
    logit_score,
    pair_template,
    save_cross_encoder,
    with_template,
)
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from tiny_models import into_cache
from tiny_models.parts import HIDDEN_SIZE
from torch import nn

from ragvl import Document, Query, Reranker, fast_rerank
from ragvl.mllm import PromptTooLongError, UnsupportedModelError
from ragvl.reranker.sentence_transformers import preset_of_folder

EXACT = {"rtol": 0, "atol": 1e-5}
TRUE, FALSE = 300, 301  # two tokens of any of the vocabularies
HEADS: dict[str, Callable[[], list[nn.Module]]] = {
    "both answers": lambda: logit_score(TRUE, FALSE),
    "one answer": lambda: logit_score(TRUE),
    "a linear score": lambda: dense("lasttoken", HIDDEN_SIZE, 1),
    "a network": lambda: dense("lasttoken", HIDDEN_SIZE, 16, 1, activation=nn.GELU()),
    "mean pooling": lambda: dense("mean", HIDDEN_SIZE, 1),
}
Checkpoint = Callable[..., Path]


def picture(seed: int, height: int = 64, width: int = 48) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


TEXT = "Which tower has a red roof?"
PAGE = {"text": "Velmora has a tower. Its roof is red."}
PICTURE_PAIRS = [
    (TEXT, picture(0)),
    (TEXT, {"image": picture(1, 40, 90), "text": "The tower of Velmora"}),
    ("How many windows?", picture(0)),
    (picture(2), PAGE),
    ({"image": picture(2), "text": "Where is this?"}, PAGE),
]
PAIRS = [(TEXT, PAGE), ("How many windows?", {"text": "x y"}), *PICTURE_PAIRS]
PICTURES_ON_BOTH_SIDES = [
    (picture(3), picture(4)),
    ({"image": picture(3), "text": "Where?"}, {"image": picture(4), "text": "Here"}),
]


@pytest.fixture(scope="module")
def checkpoint(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """The folder of a tiny reranker in sentence-transformers' format; do not write into it."""
    made: dict[tuple[str, bool, str], Path] = {}

    def folder(
        architecture: str = "qwen2_vl", *, document_first: bool = True, head: str = "both answers"
    ) -> Path:
        key = architecture, document_first, head
        if key not in made:
            root = tmp_path_factory.mktemp("cross_encoder")
            template = pair_template(architecture, document_first=document_first)
            base = with_template(tiny_model(architecture), root / "base", template)
            made[key] = save_cross_encoder(base, root / "model", HEADS[head]())
        return made[key]

    return folder


def load(folder: Path | str, **options: Any) -> Reranker:
    return Reranker.from_pretrained(folder, device="cpu", dtype="float32", **options)


def changed(folder: Path, to: Path, file: str, change: Callable[[Any], Any]) -> Path:
    """A copy with other content of a JSON file."""
    shutil.copytree(folder, to)
    content = json.loads((to / file).read_text())
    (to / file).write_text(json.dumps(change(content)))
    return to


def with_keys(**keys: Any) -> Callable[[dict], dict]:
    return lambda content: {**content, **keys}


# --- scores -------------------------------------------------------------------------------------

ORDERS = pytest.mark.parametrize("document_first", [True, False])


@pytest.mark.slow
@ORDERS
@pytest.mark.parametrize("architecture", PICTURES)
def test_scores_are_those_of_sentence_transformers(architecture, document_first, checkpoint):
    folder = checkpoint(architecture, document_first=document_first)
    pairs = PAIRS if document_first else [*PAIRS, *PICTURES_ON_BOTH_SIDES]
    expected = cross_encoder(folder).predict(pairs)
    reranker = load(folder)
    assert np.ptp(expected) > 1e-3  # else much would be equal
    for _ in ("cold", "warm"):
        np.testing.assert_allclose(reranker.predict(pairs), expected, **EXACT)
    np.testing.assert_allclose(reranker.predict(pairs[::-1])[::-1], expected, **EXACT)


@pytest.mark.slow
@ORDERS
@pytest.mark.parametrize("head", HEADS)
def test_every_head_scores_as_there(head, document_first, checkpoint):
    folder = checkpoint(head=head, document_first=document_first)
    theirs, ours = cross_encoder(folder), load(folder)
    np.testing.assert_allclose(ours.predict(PAIRS), theirs.predict(PAIRS), **EXACT)
    raw = theirs.predict(PAIRS, activation_fn=nn.Identity())
    np.testing.assert_allclose(ours.score(PAIRS, raw=True).numpy(), raw, **EXACT)


def test_pictures_stand_on_their_own_sides(checkpoint):
    """Where the document comes first, transformers fills in the query's pictures first."""
    ours, theirs = load(checkpoint()), cross_encoder(checkpoint())
    pairs = [(picture(3), picture(4)), (picture(5, 80, 40), picture(6))]
    exchanged = theirs.predict([(document, query) for query, document in pairs])
    np.testing.assert_allclose(ours.predict(pairs), exchanged, **EXACT)


def _exchanged(query: dict, document: dict) -> tuple[dict, dict]:
    """The pair with each other's pictures."""
    return {**query, "image": document["image"]}, {**document, "image": query["image"]}


@pytest.mark.parametrize("moved", ["query", "document"])
def test_pictures_that_a_chat_template_moves_to_its_start_stay_their_own_sides(
    moved, tiny_model, tmp_path
):
    """The side's text comes second."""
    placeholder = f"{{{{ {PICTURES['qwen2_vl']} }}}}"
    template = pair_template("qwen2_vl", document_first=moved == "query").replace(
        f"-%}}{placeholder}", f"-%}}{{%- if role != '{moved}' -%}}{placeholder}{{%- endif -%}}"
    )
    start = (
        f"{{%- for m in messages if m.role == '{moved}' -%}}{{%- for part in m.content "
        f"if part.type == 'image' -%}}{placeholder}{{%- endfor -%}}{{%- endfor -%}}"
    )
    base = with_template(tiny_model("qwen2_vl"), tmp_path / "base", start + template)
    folder = save_cross_encoder(base, tmp_path / "model", logit_score(TRUE, FALSE))
    sides = ({"image": picture(3), "text": "Where?"}, {"image": picture(4, 40, 90), "text": "Here"})
    pairs = [sides, sides[::-1], (TEXT, sides[1])]
    # transformers fills in the query's pictures first
    asked = pairs if moved == "query" else [*(_exchanged(*pair) for pair in pairs[:2]), pairs[2]]
    expected = cross_encoder(folder).predict(asked)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(load(folder).predict(pairs), expected, **EXACT)


def test_a_string_is_a_text_unless_it_names_a_picture(checkpoint, tmp_path):
    ours, theirs = load(checkpoint()), cross_encoder(checkpoint())
    path = str(tmp_path / "tower.PNG")
    picture(0).save(path)
    pairs = [(TEXT, PAGE["text"]), (TEXT, path), (path, "A tower")]
    expected = theirs.predict(pairs)
    np.testing.assert_allclose(ours.predict(pairs), expected, **EXACT)
    assert ours.predict(pairs[0]) == pytest.approx(expected[0], abs=1e-5)
    np.testing.assert_array_equal(
        ours.predict([("See a.png", "No file b.png, nor c.png")]),
        ours.score([("See a.png", {"text": "No file b.png, nor c.png"})]).numpy(),
    )
    for picture_that_is_none in ("gone.png", "https://example.com/a.png", "data:image/png;base64,"):
        with pytest.raises(ValueError, match="document"):
            ours.predict([(TEXT, picture_that_is_none)])


@ORDERS
def test_parts_stay_in_order(document_first, checkpoint):
    folder = checkpoint(document_first=document_first)
    ours, theirs = load(folder), cross_encoder(folder)
    first, second = picture(1), picture(2, 30, 90)
    both = {"image": first, "text": "A tower."}
    pairs = [
        (TEXT, both),
        (TEXT, dict(reversed(both.items()))),
        (both, PAGE),
        (dict(reversed(both.items())), PAGE),
        (TEXT, {"image": [first, second], "text": "Towers."}),
        (TEXT, {"text": ["One,", "two."], "image": [second, first]}),
    ]
    expected = theirs.predict(pairs)
    assert len({*expected.round(5)}) == len(pairs)
    np.testing.assert_allclose(ours.predict(pairs), expected, **EXACT)
    document = Document(parts=[first, second, "Towers."])
    np.testing.assert_allclose(ours.predict([(TEXT, document)]), expected[4:5], **EXACT)
    asked = theirs.predict(pairs[2:4], prompt="Find towers.")
    np.testing.assert_allclose(ours.predict(pairs[2:4], prompt="Find towers."), asked, **EXACT)
    np.testing.assert_allclose(ours.predict(pairs[3]), expected[3], **EXACT)  # one pair


def test_a_ranking_is_that_of_sentence_transformers(checkpoint):
    documents = [picture(1), PAGE, {"image": picture(0), "text": "A tower"}, {"text": "No."}]
    theirs = cross_encoder(checkpoint()).rank(TEXT, documents)
    ours = load(checkpoint()).rank(TEXT, documents)
    assert [each.index for each in ours] == [each["corpus_id"] for each in theirs]
    scores = [each["score"] for each in theirs]
    np.testing.assert_allclose([each.score for each in ours], scores, **EXACT)


# --- the cut ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen3_5"])
def test_document_first_another_query_costs_its_own_tokens(architecture, checkpoint):
    reranker = load(checkpoint(architecture, document_first=True))
    run: list[int] = []

    def count(_: nn.Module, __: tuple, inputs: dict[str, Any]) -> None:
        given = inputs.get("input_ids")
        run.append(inputs["inputs_embeds"].shape[1] if given is None else given.numel())

    reranker.mllm.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    documents = [Document(picture(0), caption="A tower"), Document(text=PAGE["text"] * 4)]
    reranker.score([(TEXT, document) for document in documents])
    splits = [reranker.split_prompt("How many windows?", document) for document in documents]
    run.clear()
    reranker.score([("How many windows?", document) for document in documents])
    num_own = sum(len(suffix) for _, suffix in splits)
    assert num_own <= sum(run) <= num_own + 32  # filled up to a shape
    assert all(len(prefix) > 40 for prefix, _ in splits)


def test_query_first_no_prefix_is_reused(checkpoint, caplog):
    caplog.set_level(logging.WARNING)
    reranker = load(checkpoint(document_first=False))
    reranker.score([(TEXT, PAGE)])
    assert "prompts are scored whole" in caplog.text
    assert "the template puts the query before the" in caplog.text


# --- instructions -------------------------------------------------------------------------------


@ORDERS
def test_a_prompt_of_theirs_is_an_instruction(document_first, checkpoint):
    folder = checkpoint(document_first=document_first)
    ours, theirs = load(folder), cross_encoder(folder)
    said = "Find pictures of mills."
    expected = theirs.predict(PAIRS, prompt=said)
    assert np.abs(expected - theirs.predict(PAIRS)).max() > 1e-4
    np.testing.assert_allclose(ours.predict(PAIRS, prompt=said), expected, **EXACT)
    pair = (Query(TEXT, instruction=said), Document(text=PAGE["text"]))
    np.testing.assert_allclose(ours.predict([pair]), expected[:1], **EXACT)


def test_prompts_have_names_and_one_is_the_default(tiny_model, tmp_path):
    template = pair_template("qwen2_vl", document_first=True)
    base = with_template(tiny_model("qwen2_vl"), tmp_path / "base", template)
    prompts = {"mills": "Find mills.", "towers": "Find towers."}
    options = {"prompts": prompts, "default_prompt_name": "towers"}
    folder = save_cross_encoder(base, tmp_path / "model", logit_score(TRUE, FALSE), **options)
    ours, theirs = load(folder), cross_encoder(folder)
    for keywords in ({}, {"prompt_name": "mills"}, {"prompt": "Find anything."}):
        expected = theirs.predict(PAIRS, **keywords)
        np.testing.assert_allclose(ours.predict(PAIRS, **keywords), expected, **EXACT)
    with pytest.raises(ValueError, match="has no prompt 'trees'; it has mills, towers"):
        ours.predict(PAIRS, prompt_name="trees")


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_calls_settings_are_heeded(tiny_model, tmp_path):
    template = "{{ mark | default('') }}" + pair_template("qwen2_vl", document_first=True)
    base = with_template(tiny_model("qwen2_vl"), tmp_path / "base", template)
    processing = {
        "chat_template": {"add_generation_prompt": True, "mark": "Towers:\n"},
        "image": {"size": {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}},
        "text": {"padding": True, "logits_to_keep": 1},
    }
    folder = save_cross_encoder(
        base, tmp_path / "model", logit_score(TRUE, FALSE), processing_kwargs=processing
    )
    expected = cross_encoder(folder).predict(PAIRS)
    np.testing.assert_allclose(load(folder).predict(PAIRS), expected, **EXACT)
    for own in (
        {"processor_settings": {"min_pixels": 32 * 32, "max_pixels": 32 * 32}},
        {"chat_template_kwargs": {"mark": "Mills:\n"}},
    ):
        assert np.abs(load(folder, **own).predict(PAIRS) - expected).max() > 1e-4


def test_without_a_sigmoid_predict_gives_raw_scores_and_score_probabilities(checkpoint, tmp_path):
    folder = changed(
        checkpoint(),
        tmp_path / "model",
        "config_sentence_transformers.json",
        with_keys(activation_fn="torch.nn.modules.linear.Identity"),
    )
    ours = load(folder)
    raw = cross_encoder(folder).predict(PAIRS)
    np.testing.assert_allclose(ours.predict(PAIRS), raw, **EXACT)
    sigmoid = torch.from_numpy(raw).sigmoid().numpy()
    np.testing.assert_allclose(ours.score(PAIRS).numpy(), sigmoid, **EXACT)
    np.testing.assert_allclose(ours.predict(PAIRS, activation_fn=nn.Sigmoid()), sigmoid, **EXACT)


@ORDERS
def test_long_texts_are_cut_as_there_and_said(document_first, tiny_model, tmp_path, caplog):
    template = pair_template("qwen2_vl", document_first=document_first)
    base = with_template(tiny_model("qwen2_vl"), tmp_path / "base", template)
    processing = {
        "text": {"max_length": 120, "truncation": True},
        "chat_template": {"add_generation_prompt": True},
    }
    folder = save_cross_encoder(
        base, tmp_path / "model", logit_score(TRUE, FALSE), processing_kwargs=processing
    )
    long = "The tower of Velmora. " * 40
    pairs = [
        (TEXT, {"text": "A tower."}),
        (long, PAGE) if document_first else (TEXT, {"text": long}),
    ]
    expected = cross_encoder(folder).predict(pairs)
    ours = load(folder)
    caplog.set_level(logging.WARNING)
    np.testing.assert_allclose(ours.predict(pairs), expected, **EXACT)
    assert "cut to 120 tokens" in caplog.text
    captioned = Document(picture(0), caption=long)
    if document_first:  # nothing would be left of the query, which is no score
        with pytest.raises(PromptTooLongError, match="takes at most 120"):
            ours.score([(TEXT, captioned)])
    else:  # there, a prompt with a picture loses its end, and here it does not
        prompts = [
            [token for part in ours.split_prompt(TEXT, document) for token in part]
            for document in (captioned, Document(picture(0), caption="A tower."))
        ]
        assert len(prompts[0]) == 120
        assert prompts[0][-3:] == prompts[1][-3:]  # "Answer:"


@pytest.mark.slow
@pytest.mark.parametrize("head", ["both answers", "a linear score"])
def test_adapters_that_were_saved_with_their_modules(head, tiny_model, tmp_path):
    template = pair_template("qwen2_vl", document_first=True)
    base = with_template(tiny_model("qwen2_vl"), tmp_path / "base", template)
    plain = save_cross_encoder(base, tmp_path / "plain", HEADS[head]())
    theirs = cross_encoder(plain)
    theirs.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    theirs.save(str(tmp_path / "model"), create_model_card=False)
    assert not (tmp_path / "model" / "model.safetensors").exists()
    expected = theirs.predict(PAIRS)
    assert np.abs(expected - cross_encoder(plain).predict(PAIRS)).max() > 1e-4
    np.testing.assert_allclose(load(tmp_path / "model").predict(PAIRS), expected, **EXACT)
    # PEFT itself saves no more than the adapters; modules and processor are the base's then
    for file in (tmp_path / "model").iterdir():
        if file.is_dir():
            shutil.rmtree(file)
        elif not file.name.startswith("adapter_"):
            file.unlink()
    given = load(plain, adapters=tmp_path / "model")
    np.testing.assert_allclose(given.predict(PAIRS), expected, **EXACT)


@pytest.mark.slow
def test_a_hub_id_says_it_as_a_folder_does(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = checkpoint(head="a network")
    into_cache(folder, "owner/reranker", tmp_path)
    scores = load("owner/reranker").score(PAIRS)
    assert torch.equal(scores, load(folder).score(PAIRS))
    documents = [document for query, document in PAIRS if query == TEXT]
    best, *_ = fast_rerank(TEXT, documents, model="owner/reranker", device="cpu", dtype="float32")
    own = [score for (query, _), score in zip(PAIRS, scores, strict=True) if query == TEXT]
    assert best.score == pytest.approx(float(max(own)), abs=1e-6)


def test_a_preset_or_template_that_is_named_goes_before_the_files(checkpoint):
    with pytest.raises(ValueError, match="the checkpoint's chat template writes none"):
        load(checkpoint(), preset="ragvl")


def test_a_folder_without_the_format_has_no_such_preset(tiny_model):
    assert preset_of_folder(tiny_model("qwen2_vl")) is None


# --- what is refused ----------------------------------------------------------------------------

MODULES, MODEL, TRANSFORMER = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)


def with_module(number: int, **keys: Any) -> Callable[[list], list]:
    return lambda modules: [
        {**each, **keys} if i == number else each for i, each in enumerate(modules)
    ]


ST = "sentence_transformers"
REFUSED: list[tuple[str, str, Callable[[Any], Any], str]] = [
    ("both answers", MODULES, lambda _: {}, "holds a JSON dict, and a list is expected"),
    ("both answers", MODULES, lambda _: [], "the first module must be a Transformer"),
    ("both answers", MODULES, lambda modules: modules[:1], "known are LogitScore behind"),
    ("both answers", MODULES, with_module(1, type=f"{ST}.models.Router"), "Router: known are"),
    ("both answers", MODULES, with_module(1, type="modeling.Head"), "'modeling.Head' is none of"),
    ("both answers", MODULES, with_module(1, path="../1_LogitScore"), "which is no folder in"),
    ("both answers", MODULES, with_module(0, path="0_Transformer"), "in the folder itself"),
    ("a network", MODULES, lambda modules: [modules[0], *modules[2:]], "known are LogitScore"),
    # it has no file of settings
    (
        "a network",
        MODULES,
        lambda modules: [*modules, {"type": f"{ST}.models.Normalize", "path": "4_Normalize"}],
        "Normalize: known are",
    ),
    ("a network", MODULES, lambda modules: modules[:-1], "it gives 'sentence_embedding', and"),
    ("both answers", MODEL, with_keys(model_type="SentenceTransformer"), "is a 'Sentence"),
    ("both answers", MODEL, with_keys(model_type=None), "is a 'SentenceTransformer'"),
    ("both answers", MODEL, with_keys(activation_fn="torch.nn.Softmax"), "is 'torch.nn.Softmax'"),
    ("both answers", MODEL, with_keys(default_prompt_name="x"), "of its default's name 'x'"),
    ("both answers", MODEL, with_keys(prompts={"x": 1}), "its prompts are no texts"),
    ("both answers", TRANSFORMER, with_keys(transformer_task="fill-mask"), "task 'fill-mask'"),
    ("both answers", TRANSFORMER, with_keys(modality_config={}), "has no 'message'"),
    ("both answers", TRANSFORMER, with_keys(do_lower_case=True), "'do_lower_case'=True is not"),
    ("both answers", TRANSFORMER, with_keys(config_args={"is_causal": True}), "'is_causal'=True"),
    (
        "both answers",
        TRANSFORMER,
        lambda content: {
            **content,
            "modality_config": {
                "message": {**content["modality_config"]["message"], "format": "flat"}
            },
        },
        "plain texts ('flat')",
    ),
    (
        "both answers",
        TRANSFORMER,
        with_keys(processing_kwargs={"text": {"stride": 8}}),
        "calls' text 'stride'=8",
    ),
    (
        "both answers",
        TRANSFORMER,
        with_keys(processing_kwargs={"image": {"unheard_of": 8}}),
        "unheard_of",
    ),
    ("both answers", "1_LogitScore/config.json", with_keys(true_token_id=None), "reads no token"),
    ("both answers", "1_LogitScore/config.json", with_keys(true_token_id=10**6), "1000000"),
    ("a network", "1_Pooling/config.json", with_keys(pooling_mode="cls"), "it pools by cls"),
    ("a network", "2_Dense/config.json", with_keys(use_residual=True), "'use_residual'=True"),
    ("a network", "2_Dense/config.json", with_keys(bias=False), "not said to have: linear.bias"),
    ("both answers", "1_LogitScore/config.json", with_keys(bias=0), "'bias'=0 is not"),
    (
        "a network",
        "2_Dense/config.json",
        with_keys(activation_function="modeling.Swish"),
        "'modeling.Swish'",
    ),
    ("a network", "2_Dense/config.json", with_keys(module_input_name="x"), "it takes 'x', and"),
]


@pytest.mark.parametrize(
    ("head", "file", "change", "message"), REFUSED, ids=[f"{r[1]}: {r[3]}" for r in REFUSED]
)
def test_what_is_not_understood_is_refused_by_name(
    head, file, change, message, checkpoint, tmp_path
):
    folder = changed(checkpoint(head=head), tmp_path / "model", file, change)
    with pytest.raises(ValueError) as error:
        load(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", [MODEL, TRANSFORMER, "1_Pooling/config.json"])
def test_a_missing_file_is_named(file, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(head="a network"), tmp_path / "model")
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        load(folder)


def test_score_weights_that_are_missing_broken_or_of_another_width(checkpoint, tmp_path):
    weights = Path("2_Dense") / "model.safetensors"
    tensors = load_file(checkpoint(head="a linear score") / weights)
    others = {
        "lacks weights of the score network": {"linear.bias": tensors["linear.bias"]},
        "holds NaN": {**tensors, "linear.weight": tensors["linear.weight"] * torch.nan},
        "takes states of 7 numbers": {**tensors, "linear.weight": torch.ones(1, 7)},
    }
    for number, (message, content) in enumerate(others.items()):
        folder = tmp_path / str(number)
        shutil.copytree(checkpoint(head="a linear score"), folder)
        save_file(content, folder / weights)
        with pytest.raises(UnsupportedModelError, match=message):
            load(folder)
    (folder / weights).unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load(folder)


def test_documents_and_queries_without_a_place_are_refused_by_name(tiny_model, tmp_path):
    template = pair_template("qwen2_vl", document_first=True)
    one_part = template.replace("in message.content", "in message.content[:1]")
    base = with_template(tiny_model("qwen2_vl"), tmp_path / "base", one_part)
    folder = save_cross_encoder(base, tmp_path / "model", logit_score(TRUE, FALSE))
    ours = load(folder)
    assert ours.score([(TEXT, picture(0)), (TEXT, PAGE), (picture(1), PAGE)]).shape == (3,)
    refused = {
        "no place for the text of document 'captioned'": (
            TEXT,
            Document(picture(0), caption="A tower", id="captioned"),
        ),
        "no place for the pictures of document 'two'": (
            TEXT,
            Document(parts=[picture(0), picture(1)], id="two"),
        ),
        r"no place for the text of query 'Where\?'": (Query("Where?", image=picture(0)), PAGE),
    }
    for message, pair in refused.items():
        with pytest.raises(ValueError, match=message):
            ours.score([pair])
    scores = ours.score(
        [(TEXT, Document(picture(0), caption="A tower")), (TEXT, picture(0))], on_error="skip"
    )
    assert scores.isnan().tolist() == [True, False]


def test_what_the_chat_template_refuses_is_refused_in_its_words(tiny_model, tmp_path):
    template = (
        "{% if messages[-1].content | length > 1 %}{{ raise_exception('one part') }}{% endif %}"
    )
    template += pair_template("qwen2_vl", document_first=True)
    base = with_template(tiny_model("qwen2_vl"), tmp_path / "base", template)
    ours = load(save_cross_encoder(base, tmp_path / "model", logit_score(TRUE, FALSE)))
    pairs = [(TEXT, picture(0)), (TEXT, Document(picture(1), caption="A tower", id="captioned"))]
    with pytest.raises(ValueError, match=r"document 'captioned'.* query .*refuses.* one part"):
        ours.score(pairs)
    assert ours.score(pairs, on_error="skip").isnan().tolist() == [False, True]


def test_a_pair_that_is_refused_as_such_is_skipped_alone(tiny_model, tmp_path, caplog):
    template = "{% set pictures = messages | map(attribute='content') | sum(start=[]) "
    template += "| selectattr('type', 'eq', 'image') | list %}"
    template += "{% if pictures | length > 1 %}{{ raise_exception('one picture') }}{% endif %}"
    template += pair_template("qwen2_vl", document_first=True)
    base = with_template(tiny_model("qwen2_vl"), tmp_path / "base", template)
    ours = load(save_cross_encoder(base, tmp_path / "model", logit_score(TRUE, FALSE)))
    document, query = Document(picture(0), id="tower"), Query(image=picture(1))
    pairs = [(TEXT, document), (query, document), (query, PAGE), (query, document)]
    scores = ours.score(pairs, on_error="skip")
    assert scores.isnan().tolist() == [False, True, False, True]
    assert caplog.text.count("skipped: document 'tower'") == 1
    assert torch.equal(scores[[0, 2]], ours.score([pairs[0], pairs[2]]))


def test_an_instruction_without_a_place_is_refused(tiny_model, tmp_path):
    template = pair_template("qwen2_vl", document_first=True).replace(
        "{% if asked %}", "{% if 0 %}"
    )
    base = with_template(tiny_model("qwen2_vl"), tmp_path / "base", template)
    ours = load(save_cross_encoder(base, tmp_path / "model", logit_score(TRUE, FALSE)))
    with pytest.raises(ValueError, match="no place for the instruction of query 'Where\\?'"):
        ours.score([(Query("Where?", instruction="Find towers."), PAGE)])


def test_a_chat_template_without_the_roles_is_refused_at_load(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint(), tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("side('document')", "''"))
    with pytest.raises(UnsupportedModelError):
        load(folder)
    assert isinstance(cross_encoder(folder), CrossEncoder)
