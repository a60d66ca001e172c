from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragvl.prefix_cache import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0),
        (123, 123),
        ("123", 123),
        ("7B", 7),
        ("1KiB", 1024),
        ("8GiB", 8 * 1024**3),
        ("2TiB", 2 * 1024**4),
        ("3KB", 3000),
        ("500MB", 500_000_000),
        ("1.1GB", 1_100_000_000),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("0.3KiB", 307),
        (" 64 mib ", 64 * 1024**2),
    ],
)
def test_parse(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1", "-1GiB", "nan", "inf", "1e9", "1,5GB", "8G"])
def test_nonsense(text):
    with pytest.raises(ValueError, match="is not a size: write a number of bytes"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["8 GiB free", "1.5", "1.5B", "1..5GB", "٣GB", "8GiB\n8"])
def test_more_nonsense(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


def test_other_types():
    with pytest.raises(ValueError, match="negative: -1"):
        parse_bytes(-1)
    for size in (1.5, float("nan"), None, True):
        with pytest.raises(TypeError, match=f"not {type(size).__name__}"):
            parse_bytes(size)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1610612736, "1.5 GiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_format(size, expected):
    assert format_bytes(size) == expected


@given(st.integers(0, 2**60))
def test_what_is_written_can_be_read(size):
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.05)
