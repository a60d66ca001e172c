"""How long a checkpoint's prompts are, and what is cut from one that is longer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ragvl.arguments import checked_count


@dataclass(frozen=True)
class Lengths:
    """Limits in tokens, as a checkpoint's authors set them; what goes past one is cut off.

    Attributes:
        prompt: of a whole prompt; None cuts none, and one that does not fit the model's context is
            an error.
        last: so many tokens at a prompt's end are kept, whatever is cut before them.
        keep_special: special tokens are kept, too, and others cut in their stead. Pictures consist
            of special tokens in most vocabularies.
        text: of a text document by itself; the rest is room for the query.

    Raises:
        TypeError: a limit is no whole number.
        ValueError: a limit is below 1, or `prompt` holds no more than the `last` tokens.
    """

    prompt: int | None = None
    last: int = 0
    keep_special: bool = False
    text: int | None = None

    def __post_init__(self) -> None:
        for name, unset in (("prompt", None), ("last", 0), ("text", None)):
            value = getattr(self, name)
            if value != unset:
                checked_count(name, value)
        if self.prompt is not None and self.prompt <= self.last:
            raise ValueError(f"prompt={self.prompt}: no room before the last {self.last} tokens")

    def cut(self, ids: Sequence[int], special: Collection[int] = ()) -> list[int]:
        """A prompt's token ids, or as many as it may have.

        Args:
            ids: the prompt's.
            special: the ids that `keep_special` is about. Where there are more of them than there
                is room, all are kept and the prompt stays too long.
        """
        if self.prompt is None or len(ids) <= self.prompt:
            return list(ids)
        end = len(ids) - self.last
        kept = set(special) if self.keep_special else set()
        room = self.prompt - self.last - sum(token in kept for token in ids[:end])
        cut = []
        for token in ids[:end]:
            if token not in kept:
                room -= 1
            if token in kept or room >= 0:
                cut.append(token)
        return [*cut, *ids[end:]]


NO_LIMITS = Lengths()
