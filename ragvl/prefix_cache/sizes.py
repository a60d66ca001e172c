"""Amounts of memory, as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
_BY_CAPITALS = {unit.upper(): factor for unit, factor in _UNITS.items()}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(size: int | str) -> int:
    """The number of bytes that `size` means.

    "8GiB" is 8 * 1024**3 and "500MB" is 500 * 1000**2; a number without a unit is bytes. Capitals
    and spaces do not matter, and a fraction of a unit, "1.5 GiB", is rounded down to whole bytes.

    Raises:
        TypeError: `size` is neither an int nor a string.
        ValueError: it is negative, or not a number with one of these units.
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise TypeError(
            f"a size is a number of bytes or text such as '8GiB', not {type(size).__name__}"
        )
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"a size cannot be negative: {size}")
        return size
    match = _SIZE.fullmatch(size)
    factor = match and _BY_CAPITALS.get(match[2].upper() or "B")
    if not match or not factor or (factor == 1 and "." in match[1]):
        raise ValueError(
            f"{size!r} is not a size: write a number of bytes, or a number with one of the units "
            f"{', '.join(_UNITS)}, such as '8GiB'"
        )
    return int(Fraction(match[1]) * factor)


def format_bytes(size: float) -> str:
    """`size` bytes for people to read, in powers of 1024: 1610612736 is "1.5 GiB"."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1023.95:  # what is not, would be written as 1024.0
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"
