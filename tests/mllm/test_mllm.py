"""The adapter against the models' own processors and forward passes, one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plain import plain_inputs, plain_relevance
from tiny_models import ARCHITECTURES

from ragvl.data.images import count_kept_pixels
from ragvl.mllm import MLLM, Prompt, PromptTooLongError
from ragvl.mllm.inputs import common_prefix_length

ALL = pytest.mark.parametrize("architecture", [*ARCHITECTURES, "paligemma"])
EIGHT = pytest.mark.parametrize("architecture", ARCHITECTURES)

CAPTION = (
    "<image>\nImage Caption: {caption}\nQuestion: {query}\nBased on the image and its caption, is "
    "the image relevant to the question? Answer 'Yes' or 'No'."
)


def picture(seed: int, width: int = 48, height: int = 48) -> Image.Image:
    """Flat colours in a few blocks: unlike noise, they differ after any resizing."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


# Square, wide, tall, extreme, smaller than a patch; texts short, long and outside the vocabulary
CASES = [
    (picture(0), "The red tower of Velmora", "What color is the tower?"),
    (picture(1, 120, 30), "", "?"),
    (picture(2, 30, 120), "Türme — 塔 🗼 “quoted”", "Which  has   more windows,\n\n A or B?"),
    (picture(3, 200, 90), "photographed in 1987. " * 8, "Is it relevant? " * 5),
    (picture(4, 5, 7), " leading and trailing ", "Yes or No"),
    (picture(5, 64, 48), "The red tower of Velmora", "What color is the tower?"),
]


@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl"])
def test_how_much_of_a_large_picture_is_kept(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    pixels = mllm.prompting.encode_image(picture(0, 300, 300)).tensors["pixel_values"]
    assert mllm.prompting.kept_pixels == pixels.numel() // 3
    assert count_kept_pixels(lambda image: {"all": torch.zeros(3, *image.size)}) is None


def encode(mllm: MLLM, cases: list[tuple[Image.Image, str, str]]) -> tuple[list[str], list[Prompt]]:
    texts = [
        mllm.prompting.render(CAPTION, caption=caption, query=query) for _, caption, query in cases
    ]
    images = [mllm.prompting.encode_image(image) for image, _, _ in cases]
    return texts, [mllm.prompting.encode_prompt(t, [i]) for t, i in zip(texts, images, strict=True)]


@torch.inference_mode()
def relevance(mllm: MLLM, prompts: list[Prompt], yes: list[int], no: list[int]) -> torch.Tensor:
    """(B,): what the reranker computes, in plain torch."""
    hidden = mllm.hidden_states(prompts)
    last = hidden[torch.arange(len(prompts)), torch.tensor([len(p) - 1 for p in prompts])]
    rows, bias = mllm.head.rows([*yes, *no])
    logits = mllm.final_norm(last) @ rows.T + (0 if bias is None else bias)
    if mllm.head.softcap is not None:
        logits = mllm.head.softcap * torch.tanh(logits / mllm.head.softcap)
    return torch.sigmoid(logits[:, 0] - logits[:, 1])


# --- prompts ------------------------------------------------------------------------------------


@ALL
def test_ids_are_those_of_the_models_own_processor(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    texts, prompts = encode(mllm, CASES)
    for text, prompt, (image, _, _) in zip(texts, prompts, CASES, strict=True):
        assert prompt.input_ids == plain_inputs(mllm, image, text)["input_ids"][0].tolist()


@EIGHT
@pytest.mark.parametrize("count", [0, 2, 3])
def test_ids_with_any_number_of_pictures(architecture, count, tiny_mllm):
    mllm = tiny_mllm(architecture)
    images = [image for image, _, _ in CASES[:count]]
    text = mllm.prompting.render(
        "<image>\nA tower.\n" * count + "Question: {query}", query="What is it?"
    )
    prompt = mllm.prompting.encode_prompt(
        text, [mllm.prompting.encode_image(image) for image in images]
    )
    assert prompt.input_ids == plain_inputs(mllm, images, text)["input_ids"][0].tolist()


@EIGHT
def test_rendered_prompt_is_the_chat_templates_own(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    content = [{"type": "image"}, {"type": "text", "text": "\nIs it a tower?"}]
    theirs = mllm.prompting.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    # Up to white space, of which each template puts its own between a picture and the text
    ours = mllm.prompting.render("<image>\nIs it a tower?")
    assert "".join(ours.split()) == "".join(theirs.split())


@EIGHT
def test_batch_has_what_the_models_own_processor_gives(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    for text, prompt, (image, _, _) in zip(*encode(mllm, CASES[:4]), CASES, strict=False):
        theirs = plain_inputs(mllm, image, text)
        ours = mllm.model_inputs([prompt])
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0, check_dtype=False)


def test_number_of_pictures_must_fit_the_prompt(tiny_mllm):
    mllm = tiny_mllm("llava")
    image = mllm.prompting.encode_image(picture(0))
    with pytest.raises(ValueError, match="has 1 places for images and 2 came"):
        mllm.prompting.encode_prompt(mllm.prompting.render("<image>\nWhat is it?"), [image, image])
    with pytest.raises(ValueError, match="has 1 places for images and 0 came"):
        mllm.prompting.encode_prompt(mllm.prompting.render("<image>\nWhat is it?"))


def test_image_tokens_smuggled_past_the_fields_are_refused(tiny_mllm):
    mllm = tiny_mllm("gemma3")
    image = mllm.prompting.encode_image(picture(0))
    with pytest.raises(ValueError, match="17 image tokens and its images have 16"):
        mllm.prompting.encode_prompt(mllm.prompting.render("<image> <image_soft_token>"), [image])


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding(padding_side, tiny_mllm):
    mllm = tiny_mllm("qwen2_vl")
    _, prompts = encode(mllm, CASES[:2])
    batch = mllm.model_inputs(prompts, padding_side=padding_side)
    assert len(prompts[0]) != len(prompts[1])
    for row, prompt in enumerate(prompts):
        kept = batch["attention_mask"][row].bool()
        edge = 0 if padding_side == "right" else -1
        assert kept[edge]
        assert kept.sum() == len(prompt)
        assert batch["input_ids"][row, kept].tolist() == prompt.input_ids
        assert batch["mm_token_type_ids"][row].sum() == prompt.images[0].num_tokens
        assert not batch["mm_token_type_ids"][row, ~kept].any()


def test_too_long_a_prompt_is_named(tiny_mllm):
    mllm = tiny_mllm("llava")
    prompts = [
        mllm.prompting.encode_prompt(mllm.prompting.render("word " * count)) for count in (3, 2000)
    ]
    with pytest.raises(PromptTooLongError, match=r"prompt 1 has .* takes at most 1024") as caught:
        mllm.model_inputs(prompts)
    assert (caught.value.index, caught.value.length) == (1, len(prompts[1]))


def test_an_empty_batch_is_refused(tiny_mllm):
    with pytest.raises(ValueError, match="at least one prompt"):
        tiny_mllm("llava").model_inputs([])


# --- scores -------------------------------------------------------------------------------------


@ALL
def test_ragged_batch_scores_as_computed_plainly(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    yes, no = mllm.prompting.answer_token_ids("Yes", "No")
    texts, prompts = encode(mllm, CASES)
    expected = [
        plain_relevance(mllm, image, text, yes, no)
        for text, (image, _, _) in zip(texts, CASES, strict=True)
    ]
    assert np.std(expected) > 0.02, "the scores must differ, or they prove nothing"
    assert len({len(prompt) for prompt in prompts}) > 3
    assert relevance(mllm, prompts, yes, no).tolist() == pytest.approx(expected, abs=1e-5)
    assert relevance(mllm, prompts[::-1], yes, no).tolist() == pytest.approx(
        expected[::-1], abs=1e-5
    )


@ALL
def test_the_picture_and_the_text_matter(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    yes, no = mllm.prompting.answer_token_ids("Yes", "No")
    cases = [
        (picture(seed), caption, "What is it?") for seed in (10, 11) for caption in ("red", "tower")
    ]
    log_odds = relevance(mllm, encode(mllm, cases)[1], yes, no).logit().view(2, 2)
    assert (log_odds[0] - log_odds[1]).abs().max() > 1e-2, "another picture, another score"
    assert (log_odds[:, 0] - log_odds[:, 1]).abs().max() > 1e-2, "another caption, another score"


@EIGHT
def test_batch_mixing_numbers_of_pictures_scores_as_computed_plainly(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    yes, no = mllm.prompting.answer_token_ids("Yes", "No")
    images = [image for image, _, _ in CASES]
    groups = [images[:1], [], images[1:4], images[3:5], []]
    texts = [
        mllm.prompting.render(
            "<image>\n" * len(group) + "Question: {query}", query="What is it? " * (i + 1)
        )
        for i, group in enumerate(groups)
    ]
    prompts = [
        mllm.prompting.encode_prompt(text, [mllm.prompting.encode_image(image) for image in group])
        for text, group in zip(texts, groups, strict=True)
    ]
    expected = [
        plain_relevance(mllm, group, text, yes, no)
        for text, group in zip(texts, groups, strict=True)
    ]
    assert relevance(mllm, prompts, yes, no).tolist() == pytest.approx(expected, abs=1e-5)


@EIGHT
def test_common_prefix_of_two_prompts_has_the_same_hidden_states(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    image = picture(6, 60, 40)
    _, prompts = encode(mllm, [(image, "A tower", "What color is it?"), (image, "A tower", "Why?")])
    shared = common_prefix_length(prompts[0].input_ids, prompts[1].input_ids)
    assert shared > prompts[0].images[0].num_tokens + 10
    first, second = (mllm.hidden_states([p])[0, :shared] for p in prompts)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


# --- inside the model ---------------------------------------------------------------------------


@EIGHT
def test_norm_sees_one_row_for_hidden_states_and_all_rows_otherwise(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    _, prompts = encode(mllm, CASES[:2])
    batch = mllm.model_inputs(prompts)
    shapes = []
    handle = mllm.norm.module.register_forward_hook(
        lambda _module, _args, output: shapes.append(tuple(output.shape[:2]))
    )
    try:
        with torch.inference_mode():
            hidden = mllm.hidden_states(prompts)
            normed = mllm.model.base_model(**batch, use_cache=False).last_hidden_state
    finally:
        handle.remove()
    assert shapes == [(1, 1), tuple(batch["input_ids"].shape)]
    torch.testing.assert_close(mllm.final_norm(hidden), normed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llava_onevision", "qwen3_vl", "idefics3"])
def test_threads_do_not_disturb_each_other(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    images = [picture(seed, 30 + 7 * seed, 90 - 5 * seed) for seed in range(12)]
    texts = [
        mllm.prompting.render(CAPTION, caption="A tower " * i, query="What?") for i in range(12)
    ]
    serial = [mllm.prompting.encode_image(image) for image in images]

    def score(item: tuple[Image.Image, str]) -> torch.Tensor:
        prompt = mllm.prompting.encode_prompt(item[1], [mllm.prompting.encode_image(item[0])])
        return mllm.hidden_states([prompt])[0, -1]

    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(score, zip(images, texts, strict=True)))
    for text, image, result in zip(texts, serial, threaded, strict=True):
        expected = mllm.hidden_states([mllm.prompting.encode_prompt(text, [image])])[0, -1]
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_two_adapters_over_one_model_do_not_disturb_each_other(tiny_model):
    first = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    second = MLLM(first.model, first.prompting.processor)
    prompts = [first.prompting.encode_prompt(first.prompting.render("What is it?"))]
    assert torch.equal(first.hidden_states(prompts), second.hidden_states(prompts))


# --- generation ---------------------------------------------------------------------------------


@EIGHT
def test_batch_generates_what_each_prompt_generates_alone(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    images = [image for image, _, _ in CASES]
    groups = [images[:1], [], images[1:3], images[3:4]]
    texts = [
        mllm.prompting.render(
            "<image>\n" * len(group) + "Question: {query}", query="Why? " * (2 * i + 1)
        )
        for i, group in enumerate(groups)
    ]
    expected = []
    for text, group in zip(texts, groups, strict=True):
        inputs = plain_inputs(mllm, group, text)
        output = mllm.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        expected.append(mllm.prompting.tokenizer.decode(new, skip_special_tokens=True).strip())
    prompts = [
        mllm.prompting.encode_prompt(text, [mllm.prompting.encode_image(image) for image in group])
        for text, group in zip(texts, groups, strict=True)
    ]
    assert len(set(expected)) > 1, "the answers must differ, or they prove nothing"
    assert mllm.generate(prompts, max_new_tokens=6) == expected
    assert mllm.generate(prompts[1:2], max_new_tokens=6) == expected[1:2], "after pictures, none"


# --- identity -----------------------------------------------------------------------------------


def test_fingerprint_names_weights_dtype_and_settings(tiny_model):
    def load(dtype: str = "float32") -> MLLM:
        return MLLM.from_pretrained(tiny_model("qwen2_vl"), device="cpu", dtype=dtype)

    original = load().fingerprint
    assert load().fingerprint == original
    assert load("bfloat16").fingerprint != original

    other_weights = load()
    with torch.no_grad():
        other_weights.model.get_input_embeddings().weight.add_(0.01)
    assert other_weights.fingerprint != original

    other_pictures = load()
    other_pictures.prompting.processor.image_processor.size["longest_edge"] *= 2
    assert other_pictures.fingerprint != original

    other_chat = load()
    other_chat.prompting.processor.chat_template = (
        other_chat.prompting.processor.chat_template.replace("help", "gruff")
    )
    assert MLLM(other_chat.model, other_chat.prompting.processor).fingerprint != original


def test_bfloat16(tiny_model: Callable[[str], Path], tiny_mllm: Callable[[str], MLLM]):
    reference = tiny_mllm("gemma3")
    mllm = MLLM.from_pretrained(tiny_model("gemma3"), device="cpu", dtype="bfloat16")
    yes, no = mllm.prompting.answer_token_ids("Yes", "No")
    prompts = encode(mllm, CASES)[1]
    assert mllm.model_inputs(prompts)["pixel_values"].dtype == torch.bfloat16
    assert mllm.hidden_states(prompts).dtype == torch.bfloat16
    # bfloat16 keeps 8 bits, and the tiny models amplify: worst seen 0.06
    expected = relevance(reference, prompts, yes, no)
    torch.testing.assert_close(relevance(mllm, prompts, yes, no), expected, rtol=0, atol=0.15)


@pytest.mark.gpu
@EIGHT
def test_pictures_on_a_gpu_are_the_same_bits(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    on_cpu = MLLM.from_pretrained(tiny_model(architecture), device="cpu")
    on_gpu = MLLM.from_pretrained(tiny_model(architecture), device="cuda", dtype="float32")
    for image, _, _ in CASES:
        expected = on_cpu.prompting.encode_image(image).tensors
        actual = on_gpu.prompting.encode_image(image).tensors
        assert all(torch.equal(expected[name], actual[name].cpu()) for name in expected)


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizers_step_gives_another_fingerprint(fused: bool, tiny_model) -> None:
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    before = mllm.fingerprint
    weight = mllm.model.get_output_embeddings().weight
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, fused=fused).step()
    assert mllm.fingerprint != before
