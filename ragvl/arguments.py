"""Checks of arguments that several public functions take."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from ragvl.messages import shown


def checked_count(name: str, value: object) -> int:
    """`value` as an int, if it is a whole number of at least 1; numpy's are whole numbers too.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={shown(repr(value))}: it must be a whole number")
    if value < 1:
        raise ValueError(f"{name}={value}: it must be at least 1")
    return int(value)


def checked_weight(weight: object) -> float:
    """How much a retriever's score counts beside a reranker's.

    Raises:
        ValueError: it is no number, below 0, or not finite.
    """
    number: Any = weight  # to a type checker a Real has no order
    if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= number < math.inf:
        raise ValueError(f"retriever_weight={shown(repr(weight))}: expected a number from 0")
    return float(number)


def check_characters(text: str) -> None:
    """Refuses a text that no tokenizer takes.

    Raises:
        ValueError: it holds half a character (a lone surrogate); the message says where.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"half a character (a lone surrogate) at position {error.start} of "
            f"{text[:80]!a}: clean the text with text.encode('utf-8', 'replace').decode()"
        ) from None


def checked_image_tokens(share: float) -> float:
    """The share of pictures' tokens whose keys and values a prefix keeps.

    Raises:
        ValueError: it is none.
    """
    if not 0 < share <= 1:
        raise ValueError(f"image_tokens={share}: expected a share, more than 0 and at most 1")
    return float(share)
