"""A document in a prompt: its picture made ready, and what is said of a prompt too long."""

from __future__ import annotations

from collections.abc import Sequence

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.messages import quoted
from ragvl.mllm.inputs import ImageInputs, PromptTooLongError, UnusableImageError
from ragvl.mllm.prompting import Prompting

_TEXT_SHOWN = 60  # characters of a query or an answer in a message


def encode_document(prompting: Prompting, document: Document) -> ImageInputs:
    """Reads a document's picture and prepares it; thread-safe.

    Raises:
        ImageError: it cannot be used; the message names the document.
    """
    with document.decoded(kept_pixels=lambda: prompting.kept_pixels) as image:
        try:
            return prompting.encode_image(image)
        except UnusableImageError as error:
            raise ImageError(f"{document.name}: {error}") from error


def too_long(
    prompting: Prompting,
    length: int,
    documents: Sequence[Document],
    *,
    index: int,
    question: str | None = None,
    answer: str | None = None,
) -> PromptTooLongError:
    """The error about a prompt, named by its documents and its question or answer.

    With neither it is about the beginning that all questions' prompts share.
    """
    rest = ", up to its question,"
    for kind, text in (("question", question), ("answer", answer)):
        if text is not None:
            rest = f" and the {kind} {quoted(text, _TEXT_SHOWN)}"
    names = ", ".join(document.name for document in documents) or "no document"
    what = f"the prompt about {names}{rest}"
    return PromptTooLongError.of(what, index, length, prompting.max_length)
