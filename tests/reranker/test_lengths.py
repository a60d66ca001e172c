"""Prompts cut to a number of tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragvl.reranker.lengths import Lengths

SPECIAL = {90, 91}
TOKENS = st.lists(st.integers(80, 95), max_size=40)


@given(ids=TOKENS)
def test_a_prompt_that_fits_is_left_alone(ids: list[int]) -> None:
    for lengths in (Lengths(), Lengths(prompt=40, last=3, keep_special=True)):
        assert lengths.cut(ids, SPECIAL) == ids


@given(ids=TOKENS, prompt=st.integers(4, 30), last=st.integers(0, 3))
def test_the_end_is_cut_before_the_last_tokens(ids: list[int], prompt: int, last: int) -> None:
    cut = Lengths(prompt, last).cut(ids, SPECIAL)
    if len(ids) > prompt:
        assert cut == ids[: prompt - last] + ids[len(ids) - last :]


@given(ids=TOKENS, prompt=st.integers(4, 30), last=st.integers(0, 3))
def test_special_tokens_are_kept(ids: list[int], prompt: int, last: int) -> None:
    cut = Lengths(prompt, last, keep_special=True).cut(ids, SPECIAL)
    assert [token for token in cut if token in SPECIAL] == [x for x in ids if x in SPECIAL]
    assert cut[len(cut) - last :] == ids[len(ids) - last :]
    head = [token for token in cut[: len(cut) - last] if token not in SPECIAL]
    # others are those from the start, as many as there is room for
    assert head == [x for x in ids[: len(ids) - last] if x not in SPECIAL][: len(head)]
    if len(ids) > prompt:
        assert len(cut) == prompt or (len(cut) > prompt and not head)


@pytest.mark.parametrize(
    "limits", [{"prompt": 0}, {"text": 0}, {"last": -1}, {"prompt": 5, "last": 5}]
)
def test_limits_that_leave_no_room_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|no room"):
        Lengths(**limits)


def test_a_limit_is_a_whole_number() -> None:
    with pytest.raises(TypeError, match="prompt"):
        Lengths(prompt="10")  # type: ignore[arg-type]
