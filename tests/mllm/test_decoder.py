"""A prompt in two halves gives what it gives in one piece, and computes no more than it must."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import assert_close_to_truth
from PIL import Image
from tiny_models import ARCHITECTURES, HYBRIDS

from ragvl.mllm import MLLM, Prompt
from ragvl.ops import prefix_attention
from ragvl.prefix_cache import PagePool, page_table, pages_in_turn
from ragvl.prefix_cache.pages import num_pages, num_state_pages

EIGHT = pytest.mark.parametrize("architecture", ARCHITECTURES)
WITH_HYBRIDS = pytest.mark.parametrize("architecture", [*ARCHITECTURES, *HYBRIDS])
TEMPLATE = "<image>\nImage Caption: {caption}\nQuestion: {query}\nAnswer 'Yes' or 'No'."


def prompts(mllm: MLLM) -> list[Prompt]:
    """Three prompts with pictures of several shapes."""
    rng = np.random.default_rng(0)
    made = []
    for width, height, caption, query in [
        (48, 48, "A barn", "Is it red?"),
        (120, 30, "", "?"),
        (30, 90, "The lighthouse of Velmora, 1987", "Which has more windows, A or B? " * 3),
    ]:
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        text = mllm.prompting.render(TEMPLATE, caption=caption, query=query)
        made.append(mllm.prompting.encode_prompt(text, [mllm.prompting.encode_image(picture)]))
    return made


def after_image(mllm: MLLM, prompt: Prompt) -> int:
    """How many tokens up to a few after the picture."""
    image_token = mllm.model.config.image_token_id
    return len(prompt) - prompt.input_ids[::-1].index(image_token) + 3


class Halves:
    """Prefixes prefilled into a pool, and suffixes run over them in one packed pass."""

    def __init__(self, mllm: MLLM, whole: list[Prompt], splits: list[int]) -> None:
        self.mllm, self.whole, self.splits = mllm, whole, splits
        state_pages = num_state_pages(mllm.kv_layout)
        total = sum(num_pages(split, state_pages) for split in splits)
        self.pool = PagePool(mllm.kv_layout, total, mllm.device)
        self.pages, self.prefilled = pages_in_turn(splits, state_pages), []
        for prompt, split, pages in zip(whole, splits, self.pages, strict=True):
            prefix = Prompt(prompt.input_ids[:split], prompt.images)
            self.prefilled += mllm.prefill([prefix], self.pool.writer([pages], [split]))
            self.pool.write_states(pages, self.prefilled[-1].states)

    def run(self, crops: list[int] | None = None) -> torch.Tensor:
        """(B, D): with `crops`, so many tokens of each prefix are run again as suffix."""
        crops = crops or [0] * len(self.whole)
        ids, positions, starts, lengths = [], [], [], []
        for prompt, split, done, crop in zip(
            self.whole, self.splits, self.prefilled, crops, strict=True
        ):
            suffix = prompt.input_ids[split - crop :]
            starts.append(len(ids))
            lengths.append(len(suffix))
            ids += suffix
            first = done.next_position - crop
            positions += range(first, first + len(suffix))
        table = page_table(self.pages, max(map(len, self.pages)))
        prefixes = self.pool.batches(
            table,
            torch.tensor(self.splits, dtype=torch.int32) - torch.tensor(crops, dtype=torch.int32),
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(lengths, dtype=torch.int32),
            max(lengths),
        )
        last_rows = torch.tensor(starts) + torch.tensor(lengths) - 1
        return self.mllm.decoder.extend(
            torch.tensor(ids),
            torch.tensor(positions),
            last_rows,
            prefixes,
            partial(self.pool.states, table),
        )


@torch.inference_mode()
def last_hidden(mllm: MLLM, whole: list[Prompt]) -> torch.Tensor:
    return torch.stack([mllm.hidden_states([p])[0, -1] for p in whole])


@WITH_HYBRIDS
def test_two_halves_are_the_whole(architecture: str, tiny_mllm: Callable[[str], MLLM]) -> None:
    mllm = tiny_mllm(architecture)
    whole = prompts(mllm)
    expected = last_hidden(mllm, whole)
    splits = [after_image(mllm, prompt) for prompt in whole]
    halves = Halves(mllm, whole, splits)
    assert_close_to_truth(halves.run(), expected)
    # the cut may lie anywhere behind the picture: between tokens that were prefilled, too
    if not mllm.kv_layout.states:  # of which the last one's is known alone
        assert_close_to_truth(halves.run(crops=[1, 2, 0]), expected)
    almost = Halves(mllm, whole, [len(prompt) - 1 for prompt in whole])
    assert_close_to_truth(almost.run(), expected)


@WITH_HYBRIDS
def test_a_prefix_comes_back_from_its_visual_tokens(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    prompt = prompts(mllm)[2]
    split = after_image(mllm, prompt)
    halves = Halves(mllm, [prompt], [split])
    before = halves.pool.read(halves.pages[0])
    blind = [
        # the model only checks that there are pixels
        type(image)(
            {n: x[:0] if x.is_floating_point() else x for n, x in image.tensors.items()},
            image.expansion,
            image.num_tokens,
        )
        for image in prompt.images
    ]
    write = halves.pool.writer(halves.pages, [split])
    for place, (heads, dim) in enumerate(mllm.kv_layout.shapes):
        write(place, *torch.zeros(2, 1, heads, split, dim).unbind())
    cleared = [{n: torch.zeros_like(x) for n, x in s.items()} for s in halves.prefilled[0].states]
    halves.pool.write_states(halves.pages[0], cleared)
    (done,) = mllm.prefill(
        [Prompt(prompt.input_ids[:split], tuple(blind))], write, halves.prefilled[0].features
    )
    halves.pool.write_states(halves.pages[0], done.states)
    after = halves.pool.read(halves.pages[0])
    assert all(torch.equal(before[name], after[name]) for name in before)


@EIGHT
def test_the_last_layer_works_on_last_tokens_only(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    whole = prompts(mllm)
    splits = [after_image(mllm, prompt) for prompt in whole]
    Halves(mllm, whole, splits)  # what is learned of a model, by passes over it, is learned once
    layer = mllm.model.get_decoder().layers[-1]
    rows: dict[str, list[int]] = {"q_proj": [], "k_proj": [], "o_proj": [], "mlp": []}
    modules = {name: getattr(layer.self_attn, name) for name in rows if name != "mlp"}
    hooks = [
        module.register_forward_hook(
            lambda _m, _args, out, name=name: rows[name].append(out.shape[-2])
        )
        for name, module in {**modules, "mlp": layer.mlp}.items()
    ]
    try:
        halves = Halves(mllm, whole, splits)
        assert rows["o_proj"] == [], "a prefix needs no more of the last layer than its keys"
        assert rows["mlp"] == []
        for counts in rows.values():
            counts.clear()
        halves.run()
    finally:
        for hook in hooks:
            hook.remove()
    assert rows["mlp"] == rows["o_proj"] == [3]
    assert rows["k_proj"][0] > 3  # keys of every row


def test_the_query_product_is_left_out_where_only_keys_are_wanted(
    tiny_model: Callable[[str], Path],
) -> None:
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    whole = prompts(mllm)
    splits = [after_image(mllm, prompt) for prompt in whole]
    expected = last_hidden(mllm, whole)
    weight = mllm.model.get_decoder().layers[-1].self_attn.q_proj.weight
    with torch.no_grad():
        kept = weight.clone()
        weight.fill_(torch.nan)  # to use it would show
    halves = Halves(mllm, whole, splits)
    with torch.no_grad():
        weight.copy_(kept)
    assert_close_to_truth(halves.run(), expected)


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl", "gemma3"])
def test_eager_attention_works_as_well(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    mllm = MLLM.from_pretrained(tiny_model(architecture), device="cpu", attn_implementation="eager")
    whole = prompts(mllm)
    halves = Halves(mllm, whole, [after_image(mllm, prompt) for prompt in whole])
    assert_close_to_truth(halves.run(), last_hidden(mllm, whole))


def test_two_adapters_may_share_a_model(tiny_model: Callable[[str], Path]) -> None:
    first = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    second = MLLM(first.model, first.prompting.processor)
    for mllm in (first, second):
        whole = prompts(mllm)
        halves = Halves(mllm, whole, [after_image(mllm, prompt) for prompt in whole])
        assert_close_to_truth(halves.run(), last_hidden(mllm, whole))


@EIGHT
def test_prefixes_of_several_lengths_are_what_torchs_attention_makes_of_them(
    architecture: str, tiny_mllm: Callable[[str], MLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all that a mask says is that tokens come one after the other, the CPU's kernel runs."""
    mllm, calls = tiny_mllm(architecture), []

    def attend(*args: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append(args)
        return prefix_attention(*args, **options)  # type: ignore[arg-type]

    def prefilled() -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        mllm.prefill(whole, lambda _, keys, values: kept.extend((keys, values)))
        return [x[row, :, : len(one)] for x in kept for row, one in enumerate(whole)]

    monkeypatch.setattr("ragvl.mllm.decoder.prefix_attention", attend)
    whole = [prompts(mllm)[0], Prompt(prompts(mllm)[0].input_ids[:-5], prompts(mllm)[0].images)]
    ours, count = prefilled(), len(calls)
    monkeypatch.setenv("RAGVL_BACKEND", "reference")
    for given, expected in zip(ours, prefilled(), strict=True):
        assert_close_to_truth(given, expected)
    # The last layer's keys and values need none. Gemma's tokens of a picture see each other
    layers = len(mllm.decoder.layers) - 1
    assert count == (0 if architecture.startswith("gemma") else layers)
    assert len(calls) == count, "by torch"


def test_an_error_in_a_pass_leaves_the_model_as_it_was(
    tiny_model: Callable[[str], Path],
) -> None:
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    whole = prompts(mllm)
    expected = last_hidden(mllm, whole)

    def fail(*_: object) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        mllm.prefill(whole[:1], fail)
    assert torch.equal(last_hidden(mllm, whole), expected)


@pytest.mark.parametrize("architecture", ["llava", "qwen3_vl"])
def test_the_fingerprint_follows_the_weights(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    mllm = MLLM.from_pretrained(tiny_model(architecture), device="cpu")
    before = mllm.fingerprint
    assert mllm.fingerprint == before
    with torch.no_grad():
        next(mllm.model.parameters()).mul_(1.5)
    assert mllm.fingerprint != before
