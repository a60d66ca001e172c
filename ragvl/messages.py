"""Text from outside made fit for a message: one line, short, nothing that a terminal obeys."""

from __future__ import annotations

MAX_SHOWN = 200  # characters of input in one message


def visible(text: object) -> str:
    r"""`text` in full as one line of which a terminal obeys nothing.

    Control characters, line ends and half characters are written as their escapes (`\x1b`, `\n`,
    `\ud800`). For output that must not lose anything, such as a table's cells; `shown` is for
    messages.

    Example:
        >>> visible("a\x1b[31m.png")
        'a\\x1b[31m.png'
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def shown(text: object, limit: int = MAX_SHOWN) -> str:
    r"""`text` as a message may hold it: `visible`, and at most `limit` characters.

    Of a longer text the middle is left out: both ends of a path tell more than its beginning.

    Example:
        >>> shown("a\x1b[31m.png")
        'a\\x1b[31m.png'
    """
    whole = str(text)
    if len(whole) > limit:
        head = (limit - 1) // 2
        whole = f"{whole[:head]}…{whole[head + 1 - limit :]}"
    printable = visible(whole)
    return printable if len(printable) <= limit else f"{printable[: limit - 1]}…"


def reason(error: BaseException, limit: int = MAX_SHOWN) -> str:
    """What an error says, as a message may hold it; its type where it says nothing."""
    return shown(str(error).strip() or type(error).__name__, limit)


def one_line(error: BaseException) -> str:
    """What an error says with blanks for its line ends; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
