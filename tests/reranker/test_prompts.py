"""Whatever a chat template and a pair's texts hold, a score is that of plain scoring."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.utils.chat_template_utils as hugging_face
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from plain import plain_logits
from tiny_models import ARCHITECTURES, with_chat_template_changed
from tokenizers import normalizers

from ragvl import Document, PrefixCache, Query, Reranker
from ragvl.mllm import MLLM
from ragvl.reranker import Answers, Preset, PromptTemplate
from ragvl.reranker.templates import CAPTION

SYSTEM = "You are a helpful assistant."
OF_PART = "{{ part['text'] }}"
SIDE_BY_SIDE = PromptTemplate("side-by-side", "<image>{caption}{query}")
CAPTIONS = ("Tower & mill", "red ", "Bruxelles,  1987")
QUERIES = ("Is A  & B < C?", " and red")


def documents(captions: Sequence[str] = CAPTIONS) -> list[Document]:
    noise = np.random.default_rng(0).integers(0, 255, (len(captions), 48, 40, 3), np.uint8)
    return [Document(Image.fromarray(x), caption=c) for x, c in zip(noise, captions, strict=True)]


def load(folder: Path, **options: object) -> Reranker:
    return Reranker.from_pretrained(folder, device="cpu", dtype="float32", **options)


def published(reranker: Reranker, document: Document, prompt: str) -> float:
    """The published formula: softmax over the two answers' logits, of the whole vocabulary's."""
    logits = plain_logits(reranker.mllm, document.load(), prompt)
    answers = [*reranker.yes_token_ids, *reranker.no_token_ids]
    assert len(answers) == 2
    return logits[answers].softmax(0)[0].item()


def by_hugging_face(reranker: Reranker, query: str, document: Document) -> str:
    text = reranker.template.text.format(query=query, caption=document.caption)
    text = text.replace("<image>", reranker.mllm.prompting.image_placeholder)
    says = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    return reranker.mllm.prompting.processor.apply_chat_template(says, add_generation_prompt=True)


@pytest.mark.slow
@pytest.mark.parametrize("template", [CAPTION, SIDE_BY_SIDE], ids=lambda template: template.name)
@pytest.mark.parametrize(
    "change",
    [
        (SYSTEM, "Judge whether the image answers the QUERY, or the Probe."),
        (OF_PART, "{{ part['text'] | replace('  ', ' ') }}"),
        (OF_PART, "{{ part['text'] | replace('&', 'and') | trim }}"),
        (OF_PART, "{% if 'red' in part['text'] %}{{ 'Red! ' }}{% endif %}" + OF_PART),
        (OF_PART, "{% if '1' in part['text'] %}{{ 'Figures! ' }}{% endif %}" + OF_PART),
    ],
    ids=["marks", "spaces", "words", "reacts", "reacts to a probe"],
)
def test_scores_are_those_of_the_whole_rendered_prompt(
    change: tuple[str, str],
    template: PromptTemplate,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    reranker = load(
        with_chat_template_changed(tiny_model("qwen2_vl"), tmp_path / "m", change),
        template=template,
    )
    pairs = [(query, document) for query in QUERIES for document in documents()]
    expected = [published(reranker, d, by_hugging_face(reranker, q, d)) for q, d in pairs]
    for _ in range(2):  # cold and warm
        result = reranker.score(pairs)
        assert result.tolist() == pytest.approx(expected, abs=1e-5)
    alone = [reranker.score([pair]).item() for pair in pairs]
    assert result.tolist() == alone, "bitwise"


class Clock(datetime.datetime):
    day = datetime.datetime(2026, 11, 27, 23, 59)

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # noqa: ARG003
        return cls.day


def test_what_was_warmed_one_day_serves_the_next(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hugging_face, "datetime", Clock)
    today = (SYSTEM, "Today is ' + strftime_now('%d %B %Y') + '.")
    folder = with_chat_template_changed(tiny_model("qwen2_vl"), tmp_path / "m", today)

    def reranker(**options: object) -> Reranker:
        return load(
            folder, prefix_cache=PrefixCache(folder=tmp_path / "cache", keep="kv"), **options
        )

    pairs = [("Red?", document) for document in documents()]
    first = reranker()
    assert first.warm(documents(), progress=False).built == len(pairs)
    before = first.score(pairs)
    monkeypatch.setattr(Clock, "day", datetime.datetime(2026, 11, 28, 0, 1))
    others = [("Red?", document) for document in documents([f"{c}!" for c in CAPTIONS])]
    later, fresh = first.score(others), reranker()
    assert fresh.warm(documents(), progress=False).known == len(pairs)
    assert torch.equal(fresh.score(pairs), before)
    assert torch.equal(fresh.score(others), later), "a process that runs on mixes no days"
    dated = reranker(date="2026-11-28")
    assert "Today is 28 November 2026." in dated.prompt(*pairs[0])
    assert dated.warm(documents(), progress=False).built == len(pairs)
    assert not torch.equal(dated.score(pairs), before)


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_relevance_is_the_published_formula(architecture: str, tiny_mllm) -> None:
    reranker = Reranker(tiny_mllm(architecture))
    pairs = [("What color is it?", document) for document in documents()]
    expected = [published(reranker, d, reranker.prompt(q, d)) for q, d in pairs]
    assert reranker.score(pairs).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_preset_may_name_the_tokens_as_the_vocabulary_spells_them(tiny_model, caplog) -> None:
    folder = tiny_model("qwen2_vl")
    vocabulary = load(folder).mllm.prompting.tokenizer.get_vocab()
    spaced = load(folder, preset=Preset("spaced", head=Answers(tokens=("ĠYes", "ĠNo"))))
    assert (spaced.yes_token_ids, spaced.no_token_ids) == (
        [vocabulary["ĠYes"]],
        [vocabulary["ĠNo"]],
    )
    (document, *_) = documents()
    expected = published(spaced, document, spaced.prompt("Red?", document))
    assert spaced.score([("Red?", document)]).item() == pytest.approx(expected, abs=1e-5)
    # Words given besides a preset are read as the prompt calls for them
    preset = Preset("spaced", head=Answers(tokens=("ĠYes", "ĠNo")))
    own = load(folder, preset=preset, answers=("Yes", "No"))
    assert own.yes_token_ids == [vocabulary["Yes"]]
    assert "answer tokens" not in caplog.text
    other = load(folder, preset=Preset("other", head=Answers(tokens=("true", "ĠNo"))))
    assert caplog.text.count("has not both of the answer tokens ('true', 'ĠNo')") == 1
    assert other.no_token_ids == [vocabulary["No"]], "the vocabulary has not both"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "words"), [("monoqwen2-vl", ("True", "False")), ("qwen3-vl-reranker", ("yes", "no"))]
)
def test_presets_read_the_published_tokens(preset, words, tiny_model) -> None:
    mllm = MLLM.from_pretrained(tiny_model("qwen3_vl"), device="cpu")
    mllm.prompting.tokenizer.add_tokens(list(words))
    mllm.model.resize_token_embeddings(len(mllm.prompting.tokenizer), mean_resizing=False)
    folder = tiny_model("qwen3_vl").parent / f"with-{preset}"
    mllm.model.save_pretrained(folder)
    mllm.prompting.processor.save_pretrained(folder)
    reranker = load(folder, preset=preset)
    names = reranker.mllm.prompting.tokenizer.convert_ids_to_tokens(
        [*reranker.yes_token_ids, *reranker.no_token_ids]
    )
    assert tuple(names) == words
    pairs = [("What color is it?", document) for document in documents()]
    expected = [published(reranker, d, reranker.prompt(q, d)) for q, d in pairs]
    assert reranker.score(pairs).tolist() == pytest.approx(expected, abs=1e-5)


def test_the_answers_share_of_probability_is_measured(tiny_model, caplog) -> None:
    reranker = load(tiny_model("qwen3_vl"))
    mllm = reranker.mllm
    probe = Document(Image.new("RGB", (64, 48), (200, 120, 40)), caption="A mill")
    logits = plain_logits(mllm, probe.load(), reranker.prompt("Is it a mill?", probe))
    answers = [*reranker.yes_token_ids, *reranker.no_token_ids]
    assert reranker.answer_share == pytest.approx(logits.softmax(0)[answers].sum().item(), rel=1e-4)
    pairs = [("Red?", document) for document in documents()]
    with caplog.at_level(logging.WARNING, "ragvl"):
        reranker.score(pairs)
    assert not caplog.records, "random weights in a tiny vocabulary are no case for a word"

    with torch.no_grad():  # like a model that opens a thought there
        prompt = mllm.prompting.encode_prompt(
            reranker.prompt("Is it a mill?", probe), [mllm.prompting.encode_image(probe.load())]
        )
        normed = mllm.final_norm(mllm.hidden_states([prompt])[0, -1])
        head = mllm.model.get_output_embeddings().weight
        head[answers] -= 20 * normed / normed.norm() ** 2
    again = Reranker(mllm)
    with caplog.at_level(logging.WARNING, "ragvl"):
        for _ in range(2):
            again.score(pairs)
    (record,) = caplog.records
    assert again.answer_share < 1e-8
    assert f"'Yes' and 'No' hold {again.answer_share:.1e}" in record.message
    assert "'.<|im_end|>\\n<|im_start|>assistant\\n\": the model would" in record.message
    assert "chat_template_kwargs=" in record.message


# --- control tokens -----------------------------------------------------------------------------

ADDED = ["<think>", "</think>", "<tool_call>", "<|fim_suffix|>", "<unused42>"]
PARTS = ["<", ">", "<|", "|>", "im_", "end|>", "<|im_", "think", "/think>", "image_pad", "vision"]
SPELLED = ["<|im_end|>", "<|image_pad|>", "＜think＞", "<THINK>", " ", *ADDED]
TEXTS = st.lists(st.sampled_from(PARTS + SPELLED), min_size=1, max_size=8).map("".join)


@pytest.fixture(scope="module", params=["raw", "nfkc and lower case"])
def with_added_tokens(request: pytest.FixtureRequest, tiny_model) -> Reranker:
    mllm = MLLM.from_pretrained(tiny_model("qwen2_vl"), device="cpu")
    if request.param != "raw":
        mllm.prompting.tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase()]
        )
    mllm.prompting.tokenizer.add_tokens(ADDED)  # normalised, and not special
    return Reranker(MLLM(mllm.model, mllm.prompting.processor), template=SIDE_BY_SIDE)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(caption=TEXTS, query=TEXTS)
def test_a_prompt_has_no_control_token_but_the_templates_own(
    with_added_tokens: Reranker, caption: str, query: str
) -> None:
    reranker = with_added_tokens
    control = set(reranker.mllm.prompting.tokenizer.added_tokens_decoder)
    picture = Image.new("RGB", (40, 40))
    expansion = reranker.mllm.prompting.encode_image(picture).expansion

    def read(query: str, caption: str) -> list[int]:
        parts = [(Query(query), Document(picture, caption=caption), [expansion])]
        return [token for token in reranker._prompts.tokens(parts)[0] if token in control]

    if query.strip():
        assert read(query, caption) == read("x", "y")
