"""Text from outside made fit for a message: one line, short, nothing that a terminal obeys."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_SHOWN = 200  # characters of input in one message
MAX_ERROR = 1000  # characters of an error that a command ends with
_FIELD_SHOWN = 60  # characters of a field's name


def visible(text: object) -> str:
    r"""`text` in full as one line of which a terminal obeys nothing.

    Control characters, line ends and half characters are written as their escapes (`\x1b`, `\n`,
    `\ud800`). For output that must not lose anything, such as a table's cells; `shown` is for
    messages.

    Examples:
        >>> visible("a\x1b[31m.png")
        'a\\x1b[31m.png'
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def shown(text: object, limit: int = MAX_SHOWN) -> str:
    r"""`text` as a message may hold it: `visible`, and at most `limit` characters.

    Of a longer text the middle is left out: both ends of a path tell more than its beginning.

    Examples:
        >>> shown("a\x1b[31m.png")
        'a\\x1b[31m.png'
    """
    whole = str(text)
    if len(whole) > limit:
        head = (limit - 1) // 2
        whole = f"{whole[:head]}…{whole[head + 1 - limit :]}"
    printable = visible(whole)
    return printable if len(printable) <= limit else f"{printable[: limit - 1]}…"


def quoted(text: object, limit: int = MAX_SHOWN) -> str:
    """`shown` in quotation marks, for a name among other words."""
    return f"'{shown(text, limit)}'"


def reason(error: BaseException, limit: int = MAX_SHOWN) -> str:
    """What an error says in one line, as a message may hold it; its type where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return shown(" ".join(filter(None, lines)) or type(error).__name__, limit)


def validation_reason(error: ValidationError, max_errors: int | None = 1) -> str:
    """What is wrong by a schema of pydantic, each error after the field that it is in.

    Args:
        error: pydantic's.
        max_errors: so many of its errors; None for all.
    """
    reasons = []
    for one in error.errors(include_url=False, include_input=False)[:max_errors]:
        field = shown(".".join(map(str, one["loc"])), _FIELD_SHOWN)
        message = shown(one["msg"].removeprefix("Value error, "))
        reasons.append(": ".join(filter(None, (field, message))))
    return "; ".join(reasons)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
