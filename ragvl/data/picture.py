"""One picture of a document or a query, decoded when it is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from PIL import Image

from ragvl.data.image_sources import (
    MAX_FILE_BYTES,
    ImageSource,
    PlainSource,
    UnusableSource,
    describe,
    plain_source,
)
from ragvl.data.images import ImageError, decoded, encoded_size, load_image, why_unusable
from ragvl.files import check_regular
from ragvl.identity import bytes_name, file_bytes_name, pixels_name

_PATH_SHOWN = 120  # characters of a path in a message


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a document or a query. Compared and hashed by identity.

    Attributes:
        image: anything that `plain_source` takes, as what that makes of it: a file's path, a file's
            bytes, a PIL image, or an array. A file may change; a picture in memory is taken to stay
            as it is once its digest is known.
        name: what to call it in a message, in one line.
        max_pixels: refuse a picture with more; see `load_image`.

    Raises:
        TypeError: `image` is of another type.
    """

    image: PlainSource
    name: str
    max_pixels: int | None = None
    _digest: list[str] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def at(cls, where: str, source: ImageSource, max_pixels: int | None = None) -> Picture:
        """What a caller hands over for a picture, named by where it stands, and what it is.

        Raises:
            TypeError: it is no picture.
        """
        try:
            image = plain_source(source)
        except TypeError as error:
            raise TypeError(f"{where}: {error}") from error
        return cls(image, f"{where} ({describe(image, _PATH_SHOWN)})", max_pixels)

    @property
    def path(self) -> str | None:
        """Where it is kept, or None if that is not a file."""
        return os.fspath(self.image) if isinstance(self.image, str | os.PathLike) else None

    def check_file(self) -> None:
        """Sees whether it is a picture, or the file that it is in is there, without reading it.

        Raises:
            ImageError: there is no such file, or it is none, or what was given is no picture.
        """
        if isinstance(self.image, UnusableSource):
            raise ImageError(why_unusable(self.name, ValueError(self.image.reason)))
        if self.path is not None:
            try:
                check_regular(self.path, max_bytes=MAX_FILE_BYTES)
            except OSError as error:
                raise ImageError(why_unusable(self.name, error)) from error

    def check_header(self) -> None:
        """Sees whether it is a picture by its file's header, without decoding it.

        Raises:
            ImageError: there is no such file, or it holds no picture that can be read here.
        """
        self.check_file()
        if isinstance(self.image, bytes | str | os.PathLike):
            encoded_size(self.image, name=self.name)

    def load(self) -> Image.Image:
        """It, in 8-bit RGB; thread-safe.

        Raises:
            ImageError: it cannot be used.
        """
        return load_image(self.image, max_pixels=self.max_pixels, name=self.name)

    def decoded(
        self, *, kept_pixels: Callable[[], int | None] | None = None
    ) -> AbstractContextManager[Image.Image]:
        """`load` for the time of a block; see `ragvl.data.images.decoded`.

        It is for work in threads: pictures that are large together are worked on one after another.

        Args:
            kept_pixels: how many pixels of it are kept; see `load_image`.
        """
        return decoded(
            self.image, max_pixels=self.max_pixels, name=self.name, kept_pixels=kept_pixels
        )

    def digest(self) -> str:
        """Names its content: its encoded bytes, or else its size and pixels.

        Computed once; of a file, again whenever it was changed or replaced: see
        `identity.file_bytes_name`. Thread-safe.

        Raises:
            ImageError: the file cannot be read, or the picture in memory cannot be used.
        """
        if isinstance(self.image, str | os.PathLike):
            try:
                return file_bytes_name(self.image, max_bytes=MAX_FILE_BYTES)
            except OSError as error:
                raise ImageError(why_unusable(self.name, error)) from error
        if not self._digest:
            self._digest.append(self._hash_content())
        return self._digest[0]

    def _hash_content(self) -> str:
        if isinstance(self.image, bytes):
            return bytes_name(self.image)
        picture = self.load()
        return pixels_name(picture.size, picture.tobytes())
