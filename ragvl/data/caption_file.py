"""Captions that a file of their own has for pictures, which become documents' captions."""

from __future__ import annotations

import os
from pathlib import Path

from ragvl.data.captions import read_caption_lines
from ragvl.data.document import Document
from ragvl.data.problems import DataError, Problems, no_use
from ragvl.data.reading import existing, is_file, place
from ragvl.data.validation import TextTable


class CaptionFile:
    """Lines of `image,caption` under that header; of several captions of a picture the first.

    A picture is named by its path from the file's folder, or, if there is no such, from the current
    one.

    Args:
        file: the file.

    Attributes:
        problems: what is wrong with it.
        num_found: how many pictures were given their captions.
        num_without: how many were named in no line, and had no caption of their own.

    Raises:
        FileNotFoundError: it is missing.
        DataError: it holds no usable caption.
        OSError: it is no regular file, or cannot be opened.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = existing(Path(file), "expected lines of image,caption")
        self.problems = Problems()
        self.num_found = self.num_without = 0
        self._captions = TextTable(self.problems)
        for caption in read_caption_lines(self.file, self.problems):
            self._captions.add(caption.picture, caption.text, caption.where)
        if not any(self._captions):
            raise no_use(f"{place(self.file)} has no usable caption", self.problems)
        self._named = {self._path_of(name): name for name in self._captions}

    def _path_of(self, name: str) -> str:
        beside = self.file.parent / name
        return os.path.abspath(beside if is_file(beside) else name)

    def captioned(self, document: Document) -> Document:
        """A picture with the caption that the file has for it; any other document as it is.

        A caption of its own stays.
        """
        if document.image is None or document.path is None or document.caption is not None:
            return document
        name = self._named.get(os.path.abspath(document.path))
        if name is None:
            self.num_without += 1
            return document
        self.num_found += 1
        return Document(
            document.image,
            self._captions[name],
            document.id,
            max_pixels=document.max_pixels,
            tags=document.tags,
        )

    def check_found(self) -> None:
        """Refuses a file of other pictures' captions, once all documents have been looked up.

        Raises:
            DataError: there were pictures, and it had a caption for none.
        """
        if self.num_without and not self.num_found:
            raise DataError(
                f"{place(self.file)} has a caption for none of the {self.num_without} pictures: "
                "it names them by their paths from its folder, or from the current one"
            )
