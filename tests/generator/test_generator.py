"""The generator decodes greedily what the model itself would, in batches of mixed evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plain import plain_inputs
from tiny_models import ARCHITECTURES

from ragvl import Document, Generator
from ragvl.data.images import ImageError
from ragvl.generator import generator_prompt
from ragvl.mllm import CaptionLimit, PromptTooLongError, encode_picture


def picture(seed: int, width: int = 50, height: int = 50) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


EVIDENCE = [
    [Document(picture(0), caption="A barn"), Document(picture(1, 80, 40), caption="A mill")],
    [],
    [Document(picture(2, 40, 80))],
    [Document(parts=[picture(3), "From the south."]), Document(text="The barn burnt in 1987.")],
]
QUERIES = ["What color is the roof of the barn?", "Why?", "How many windows are there?", "When?"]


@pytest.fixture(params=ARCHITECTURES)
def generator(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Generator:
    return Generator.from_pretrained(tiny_model(request.param), device="cpu", dtype="float32")


@pytest.mark.slow
def test_a_batch_answers_as_the_model_does_one_by_one(generator: Generator) -> None:
    mllm = generator.mllm
    expected = []
    for query, documents in zip(QUERIES, EVIDENCE, strict=True):
        template, fields = generator_prompt(query, documents)
        images = [picture.load() for document in documents for picture in document.pictures]
        inputs = plain_inputs(mllm, images, mllm.prompting.render(template, **fields))
        with torch.inference_mode():
            ids = mllm.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        expected.append(mllm.prompting.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert len(set(expected)) > 1, "the inputs must give different answers to prove anything"
    batched = generator.answer_batch(QUERIES, EVIDENCE, max_new_tokens=6)
    assert batched == expected
    assert generator.answer_batch(QUERIES, EVIDENCE, max_new_tokens=6, batch_size=2) == expected
    assert generator.answer(QUERIES[0], EVIDENCE[0], max_new_tokens=6) == expected[0]


def test_answers_keep_their_places_and_a_picture_is_prepared_once(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are decoded in the order of their lengths, in batches that share pictures."""
    generator = Generator.from_pretrained(tiny_model("qwen2_vl"), device="cpu", dtype="float32")
    shared, *others = (Document(picture(i), caption=f"Barn {i}") for i in range(4))
    evidence = [[shared, *others], [], [shared], [others[0], shared], [shared], [others[2]]]
    queries = ["Why?", "When was it built?", "How many?", "Who?", "What color is it?", "Where?"]
    pairs = zip(queries, evidence, strict=True)
    alone = [generator.answer(*pair, max_new_tokens=6) for pair in pairs]
    assert len(set(alone)) > 3, "the inputs must give different answers to prove anything"
    prepared = []
    monkeypatch.setattr(
        "ragvl.generator.generator.encode_picture",
        lambda prompting, one: prepared.append(one) or encode_picture(prompting, one),
    )
    for batch_size in (2, 16):
        answers = generator.answer_batch(queries, evidence, max_new_tokens=6, batch_size=batch_size)
        assert answers == alone
    assert Counter(prepared) == {one.pictures[0]: 2 for one in [shared, *others]}


def test_the_prompt_puts_documents_first_and_works_without_any() -> None:
    template, fields = generator_prompt(
        "Why?",
        [
            Document(b"", caption="A barn"),
            Document(b""),
            Document(text="It burnt."),
            Document(parts=["Seen here:", b""]),
        ],
    )
    assert template.format(**fields) == (
        "<image>\nImage Caption: A barn\n<image>\nText: It burnt.\nText: Seen here:\n<image>\n"
        "Question: Why?\n"
        "Answer the question in one word or a short phrase."
    )
    template, fields = generator_prompt("Why?", [])
    assert template.format(**fields).startswith("Question: Why?")
    # braces in user text are text
    template, fields = generator_prompt("{text_0_0}?", [Document(b"", caption="{query}")])
    assert "Image Caption: {query}\nQuestion: {text_0_0}?" in template.format(**fields)


def test_what_does_not_fit_is_named(tiny_model: Callable[[str], Path]) -> None:
    """With the query's place, not the one in a batch that is decoded together."""
    generator = Generator.from_pretrained(tiny_model("qwen2_vl"), device="cpu")
    short, long = (
        Document(picture(0), caption=caption, id=id)
        for id, caption in (("short", "A barn"), ("long", "word " * 2000))
    )
    with pytest.raises(PromptTooLongError, match=r"'short' .*'long' .* query 'Why") as caught:
        generator.answer_batch(["Who?", "Why?"], [[short], [short, long]], batch_size=1)
    assert caught.value.index == 1
    strip = Document(Image.new("RGB", (2000, 4)), id="a strip")
    with pytest.raises(ImageError, match="a strip"):
        generator.answer("Why?", [strip])


def test_captions_are_cut_where_requested(
    tiny_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    generator = Generator.from_pretrained(tiny_model("qwen2_vl"), device="cpu", caption_tokens=5)
    long = Document(picture(1), caption="A mill in Velmora " * 500, id="long")
    cut = Document(long.image, caption=CaptionLimit(generator.mllm.prompting, 5)(long.caption))
    answers = generator.answer_batch(["Why?"] * 2, [[long, cut], [long]], max_new_tokens=6)
    assert "1 captions were cut, the first that of document 'long'" in caplog.text
    plain = Generator(generator.mllm)
    assert answers == plain.answer_batch(["Why?"] * 2, [[cut, cut], [cut]], max_new_tokens=6)
    with pytest.raises(ValueError, match="caption_tokens=-1"):
        Generator(generator.mllm, caption_tokens=-1)


def test_bad_arguments_are_refused(tiny_model: Callable[[str], Path]) -> None:
    generator = Generator.from_pretrained(tiny_model(ARCHITECTURES[0]), device="cpu")
    with pytest.raises(ValueError, match="2 queries, but documents for 1"):
        generator.answer_batch(["a", "b"], [[]])
    with pytest.raises(ValueError, match=r"queries\[1\]: the query is empty"):
        generator.answer_batch(["a", " "], [[], []])
    with pytest.raises(TypeError, match=r"queries\[0\]: a query must be a string"):
        generator.answer_batch([None], [[]])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="queries is one query"):
        generator.answer_batch("ab", [[], []])
    for one in ("a.png", picture(0), None):
        with pytest.raises(TypeError, match="documents"):
            generator.answer("a", one)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'d'.*its caption holds half a character"):
        generator.answer("a", [Document(picture(0), caption="\ud800", id="d")])
    for count in (0, -1):
        with pytest.raises(ValueError, match="max_new_tokens"):
            generator.answer("a", max_new_tokens=count)
    with pytest.raises(ValueError, match="batch_size=0"):
        generator.answer_batch(["a"], [[]], batch_size=0)
    assert generator.answer_batch([], []) == []
