"""Documents in a prompt: their pictures made ready, and what is said of a prompt too long."""

from __future__ import annotations

from collections.abc import Sequence

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.data.picture import Picture
from ragvl.data.query import Query
from ragvl.messages import quoted
from ragvl.mllm.inputs import ImageInputs, PromptTooLongError, UnusableImageError
from ragvl.mllm.prompting import Prompting

_TEXT_SHOWN = 60  # characters of an answer in a message


def encode_picture(prompting: Prompting, picture: Picture) -> ImageInputs:
    """Reads a picture and prepares it; thread-safe.

    Raises:
        ImageError: it cannot be used; the message names it.
    """
    with picture.decoded(kept_pixels=lambda: prompting.kept_pixels) as image:
        try:
            return prompting.encode_image(image)
        except UnusableImageError as error:
            raise ImageError(f"{picture.name}: {error}") from error


def too_long(
    max_length: int,
    length: int,
    documents: Sequence[Document],
    *,
    index: int,
    query: Query | None = None,
    answer: str | None = None,
) -> PromptTooLongError:
    """The error about a prompt, named by its documents and its query or answer.

    With neither it is about the beginning that all queries' prompts share.
    """
    rest = ", up to its query,"
    if query is not None:
        rest = f" and the {query.name}"
    if answer is not None:
        rest = f" and the answer {quoted(answer, _TEXT_SHOWN)}"
    names = ", ".join(document.name for document in documents) or "no document"
    what = f"the prompt about {names}{rest}"
    return PromptTooLongError.of(what, index, length, max_length)
