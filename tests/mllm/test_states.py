"""Layers that carry a state go on from what they left behind a prefix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from numerics import assert_close_to_truth
from tiny_models import HYBRIDS
from torch import Tensor, nn

from ragvl.mllm import MLLM
from ragvl.mllm.states import LayerState, Mixer, alone, together, wrap_mixers

EACH = pytest.mark.parametrize("architecture", HYBRIDS)


def mixers_of(mllm: MLLM) -> list[Mixer]:
    return wrap_mixers(mllm.decoder.layers, lambda: None)


def random_rows(mllm: MLLM, count: int) -> Tensor:
    width = mllm.model.config.get_text_config().hidden_size
    return torch.randn(1, count, width, generator=torch.Generator().manual_seed(count))


class Suffixes:
    """Sequences of random rows, each cut in two; the second halves are packed, with gaps."""

    def __init__(self, mllm: MLLM, mixer: Mixer) -> None:
        self.lengths = torch.tensor([5, 0, 1, 70, 2], dtype=torch.int32)
        self.starts = torch.tensor([3, 0, 10, 12, 90], dtype=torch.int32)
        self.whole, states = [], []
        rest = []
        for index, length in enumerate(self.lengths.tolist()):
            cut = 20 + index
            rows = random_rows(mllm, cut + length)
            self.whole.append(mixer.prefill(rows)[0][0, cut:])
            states.append(mixer.prefill(rows[:, :cut])[1])
            rest.append(rows[0, cut:])
        self.states = {name: torch.cat([s[name] for s in states]) for name in states[0]}
        self.packed = random_rows(mllm, 96)
        for start, rows in zip(self.starts.tolist(), rest, strict=True):
            self.packed[0, start : start + len(rows)] = rows

    def of(self, slots: slice) -> LayerState:
        return {name: x[slots].clone() for name, x in self.states.items()}

    def parts(self, packed: Tensor) -> list[Tensor]:
        ends = self.starts + self.lengths
        bounds = zip(self.starts.tolist(), ends.tolist(), strict=True)
        return [packed[0, start:end] for start, end in bounds]


@EACH
@pytest.mark.parametrize("grouping", ["alone", "together"])
@torch.inference_mode()
def test_packed_suffixes_go_on_from_their_states(
    architecture: str, grouping: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    for mixer in mixers_of(mllm):
        suffixes = Suffixes(mllm, mixer)
        starts, lengths = suffixes.starts, suffixes.lengths
        groups = (
            alone(starts, lengths) if grouping == "alone" else together(starts, lengths, 96, 128)
        )
        out = mixer.extend(suffixes.packed, groups, suffixes.of)
        assert out.shape == suffixes.packed.shape
        for part, expected in zip(suffixes.parts(out), suffixes.whole, strict=True):
            if len(part):
                assert_close_to_truth(part, expected)


@EACH
@torch.inference_mode()
def test_products_are_computed_once_for_all_rows(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    (mixer, *_) = mixers_of(mllm)
    suffixes = Suffixes(mllm, mixer)
    (module,) = (m for m in mllm.model.modules() if vars(m).get("forward") is mixer)
    products = [m for m in module.children() if isinstance(m, nn.Linear)]
    rows: list[int] = []
    own = torch.nn.functional.linear

    def linear(x: Tensor, *rest: Tensor) -> Tensor:
        rows.append(x.numel() // x.shape[-1])
        return own(x, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", linear)
        mixer.extend(suffixes.packed, alone(suffixes.starts, suffixes.lengths), suffixes.of)
    assert rows == [96] * len(products)


@EACH
def test_a_model_is_what_it_was_outside_of_a_pass(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    """Wrapped modules compute ordinary calls as they did, with a cache and without."""
    mllm = MLLM.from_pretrained(tiny_model(architecture), device="cpu")
    plain = type(mllm.model).from_pretrained(tiny_model(architecture)).eval()
    ids = torch.tensor([[7, 8, 9, 10, 11, 12]])
    with torch.no_grad():
        for use_cache in (False, True):
            ours = mllm.model(input_ids=ids, use_cache=use_cache)
            theirs = plain(input_ids=ids, use_cache=use_cache)
            assert torch.equal(ours.logits, theirs.logits)
        following = torch.tensor([[13]])
        ours = mllm.model(input_ids=following, past_key_values=ours.past_key_values)
        theirs = plain(input_ids=following, past_key_values=theirs.past_key_values)
    assert torch.equal(ours.logits, theirs.logits)


def test_what_is_wrapped_stays_wrapped(tiny_model: Callable[[str], Path]) -> None:
    mllm = MLLM.from_pretrained(tiny_model("qwen3_5"), device="cpu")
    first = mixers_of(mllm)
    again = MLLM(mllm.model, mllm.prompting.processor)
    assert mixers_of(again) == first
    assert [mixer.layer for mixer in first] == [0, 2]


def test_states_must_be_given(tiny_mllm: Callable[[str], MLLM]) -> None:
    mllm = tiny_mllm("qwen3_5")
    with pytest.raises(ValueError, match="`states` must give them"):
        mllm.decoder.extend(torch.tensor([1]), torch.tensor([0]), torch.tensor([0]), [])
