"""Pictures made ready for the model, in threads that run ahead of it."""

from __future__ import annotations

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.mllm import MLLM, ImageInputs, UnusableImageError

NUM_THREADS = 4


def load_image(mllm: MLLM, document: Document) -> ImageInputs:
    """Reads a document's picture and prepares it; thread-safe.

    Raises:
        ImageError: it cannot be used; the message names the document.
    """
    with document.decoded(kept_pixels=lambda: mllm.kept_pixels) as image:
        try:
            return mllm.encode_image(image)
        except UnusableImageError as error:
            raise ImageError(f"{document.name}: {error}") from error
