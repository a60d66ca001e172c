"""Prompts cut to a number of tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragvl.reranker.lengths import Cuts, Lengths

PICTURE = 92
SPECIAL = {90, 91, PICTURE}
TOKENS = st.lists(st.integers(80, 95), max_size=40)


@given(ids=TOKENS)
def test_a_prompt_that_fits_is_left_alone(ids: list[int]) -> None:
    for lengths in (Lengths(), Lengths(prompt=40, last=3, keep_special=True)):
        assert lengths.cut(ids, SPECIAL, PICTURE) == ids


@given(ids=TOKENS, prompt=st.integers(4, 30), last=st.integers(0, 3))
def test_the_end_is_cut_before_the_last_tokens(ids: list[int], prompt: int, last: int) -> None:
    cut = Lengths(prompt, last).cut(ids, SPECIAL, PICTURE)
    end = len(ids) - last
    if PICTURE in ids[prompt - last : end] and len(ids) > prompt:
        assert cut == ids, "no part of a picture is cut off"
    elif len(ids) > prompt:
        assert cut == ids[: prompt - last] + ids[end:]


@given(ids=TOKENS, prompt=st.integers(4, 30), last=st.integers(0, 3))
def test_special_tokens_are_kept(ids: list[int], prompt: int, last: int) -> None:
    cut = Lengths(prompt, last, keep_special=True).cut(ids, SPECIAL, PICTURE)
    assert [token for token in cut if token in SPECIAL] == [x for x in ids if x in SPECIAL]
    end = len(ids) - last
    assert cut[len(cut) - last :] == ids[end:]
    others = [token for token in cut[: len(cut) - last] if token not in SPECIAL]
    # others are those from the start, as many as there is room for
    assert others == [x for x in ids[:end] if x not in SPECIAL][: len(others)]
    if len(ids) > prompt:
        assert len(cut) == prompt or sum(x in SPECIAL for x in ids[:end]) >= prompt - last


@pytest.mark.parametrize(
    "limits", [{"prompt": 0}, {"text": 0}, {"last": -1}, {"prompt": 5, "last": 5}]
)
def test_limits_that_leave_no_room_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|no room"):
        Lengths(**limits)


def test_a_limit_is_a_whole_number() -> None:
    with pytest.raises(TypeError, match="prompt"):
        Lengths(prompt="10")  # type: ignore[arg-type]


def test_what_was_cut_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    cuts = Cuts()
    with cuts.reported():
        for name in ("document 'a'", "document 'b'", "document 'a'"):
            cuts.add("prompts", 60, name, key=name)
    with cuts.reported():
        pass
    (record,) = caplog.records
    assert record.getMessage().startswith("prompts cut to 60 tokens")
    assert record.getMessage().endswith("2, the first document 'a'")
