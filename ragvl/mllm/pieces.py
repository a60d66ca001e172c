"""Prompts cut into pieces at the texts that go into them, and joined again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_KNOWN_FORMS = 256
# What a chat template writes, and the name of the text after it; None after the last
Pieces = Sequence[tuple[str, Any]]
# Shows what a chat template does to a text: changes of case, space, markup, characters, escapes
TEXT_OF_ALL_KINDS = "Ab  &amp; <b>'q' \"r\"</b>\\ \\n {{ x }} {% y %} %s {0}\n\n\t#*_~ Éé ﬁ Ⅳ １ ß https://e.x/?a=1&b."


def remembered(forms: dict[K, V], key: K, make: Callable[[], V]) -> V:
    """The form of this key, made where it is not known; the first made are the first to go."""
    form = forms.get(key)
    if form is None:
        form = make()
        while len(forms) >= _KNOWN_FORMS:
            forms.pop(next(iter(forms)), None)
        forms[key] = form
    return form


def unused_words(text: str, number: int) -> list[str]:
    """Words that `text` does not hold, without a common beginning or end."""
    words = []
    for word in ("Probe", "Reply", "Aside")[:number]:
        unused = word
        while unused in text:
            unused += word
        words.append(unused)
    return words


def marks(word: str, number: int) -> list[str]:
    """Texts that a prompt can be cut at, of which none holds another, made of an unused word."""
    return [f"{word}{'i' * i}{word}" for i in range(1, number + 1)]


def cut(whole: str, marks: Sequence[str], names: Sequence[Any]) -> Pieces | None:
    """The pieces around `marks`, in whatever order; None unless each comes once.

    Args:
        whole: a prompt.
        marks: what stands in it for texts.
        names: the texts' names.
    """
    if any(whole.count(mark) != 1 for mark in marks):
        return None
    pieces: list[tuple[str, Any]] = []
    for mark, name in sorted(zip(marks, names, strict=True), key=lambda pair: whole.index(pair[0])):
        piece, _, whole = whole.partition(mark)
        pieces.append((piece, name))
    return [*pieces, (whole, None)]


def joined(
    pieces: Pieces,
    texts: Mapping[Any, str],
    escape: Callable[[str, str, str], str],
    before: Any = None,
) -> str:
    """Pieces and texts in turn.

    Args:
        pieces: the pieces.
        texts: by their names.
        escape: makes of a text, with what stands before and after it, what goes in.
        before: the name of a text, to stop there.
    """
    whole = ""
    for i, (piece, name) in enumerate(pieces):
        whole += piece
        if name is None or name == before:
            break
        whole += escape(texts[name], whole, pieces[i + 1][0])
    return whole
