"""Captions cut to a number of tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ARCHITECTURES

from ragvl.mllm import MLLM, CaptionLimit


def test_a_long_caption_is_cut_and_not_kept(tiny_mllm: Callable[[str], MLLM]) -> None:
    limit = CaptionLimit(tiny_mllm("llava").prompting, 5)
    for caption in ("A mill by a river, " * 3, "A mill by a river, " * 2000):
        assert limit(caption) == limit(caption) != caption
    assert limit._cut_known.cache_info().currsize == 1


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "paligemma"])
@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=60), max_tokens=st.integers(1, 30))
def test_a_text_is_cut_at_a_token(
    architecture: str, text: str, max_tokens: int, tiny_mllm: Callable[[str], MLLM]
) -> None:
    prompting = tiny_mllm(architecture).prompting

    def size(part: str) -> int:
        return len(prompting.tokenizer(prompting.escape(part), add_special_tokens=False).input_ids)

    cut = CaptionLimit(prompting, max_tokens)(text)
    assert text.startswith(cut)
    assert size(cut) <= max_tokens
    if size(text) <= max_tokens:
        assert cut == text
    elif text.isascii() and text.isalnum():
        # LLaVA's tokenizer puts a token without characters before the first
        assert size(cut) == max_tokens or size(text[:1]) > max_tokens, "as much as fits"
