from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ragvl.messages import MAX_SHOWN, quoted, reason, shown


@given(st.text(st.characters(exclude_categories=()), max_size=600))
def test_what_is_shown_is_one_short_line_that_can_be_printed(text: str) -> None:
    line = shown(text)
    assert len(line) <= MAX_SHOWN
    assert line.isprintable()
    line.encode()


@given(st.text(st.characters(categories=("L", "N", "P")), max_size=MAX_SHOWN))
def test_short_plain_text_stays(text: str) -> None:
    assert shown(text) == text


def test_of_a_long_text_both_ends_are_shown() -> None:
    assert shown("abcdefghij", limit=7) == "abc…hij"
    assert shown("abcdefghij", limit=6) == "ab…hij"


def test_a_terminal_obeys_nothing() -> None:
    assert shown("a\x1b[31m\nb\ud800") == r"a\x1b[31m\nb\ud800"


def test_an_error_without_words_is_called_by_its_type() -> None:
    assert reason(ValueError()) == "ValueError"
    assert reason(ValueError(" why\n")) == "why"


def test_an_error_is_one_line_whatever_it_says() -> None:
    assert reason(ValueError("wrong:\n   a  b.png\r\n\x1b[31m")) == r"wrong: a  b.png \x1b[31m"


def test_a_quoted_name_is_escaped_once() -> None:
    assert quoted("a\x1b.png") == r"'a\x1b.png'"
