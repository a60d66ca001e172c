"""Documents as a person names them in one line: files, folders, patterns, lists."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ragvl.data.caption_file import CaptionFile
from ragvl.data.document import Document
from ragvl.data.image_sources import PlainSource, plain_source
from ragvl.data.images import ImageError
from ragvl.data.reading import place
from ragvl.data.sources import Documents
from ragvl.messages import quoted

_LISTS = (".jsonl", ".json", ".txt", ".csv")  # suffixes of what lists documents


@dataclass(frozen=True)
class Gathered:
    """A document, and what a person knows it by.

    Attributes:
        document: the document.
        name: its path or URL as it was named, or its id, or how its texts begin.
    """

    document: Document
    name: str


class Gathering:
    """The documents that names stand for, in their order; each file is looked at.

    Args:
        names: each a picture's file or data: URL; a folder, or a pattern such as `photos/*.jpg`
            where the shell has left it; or a file of documents or a data set: see `Documents`.
        captions: captions of pictures that have none of their own.

    Attributes:
        documents: the documents.
        sources: the folders and lists that they are from, which know what is wrong with them. Of
            these a picture that is none is left out.

    Raises:
        FileNotFoundError: there is no such file, or none that fits a pattern.
        ImageError: a file that is named as a picture is none.
        DataError, OSError, ValueError: see `Documents`.
    """

    def __init__(self, names: Iterable[str], captions: CaptionFile | None = None) -> None:
        self.sources: list[Documents] = []
        self._captions = captions
        self.documents = [one for name in names for one in self._named(name)]

    def _named(self, name: str) -> Iterator[Gathered]:
        source = plain_source(name)
        if self._lists_captions(source):
            return  # as `photos/*` names it
        if not isinstance(source, str):  # a data: URL, or one that is none
            yield self._picture(name)
        elif os.path.isdir(source) or source.removesuffix(".gz").endswith(_LISTS):
            yield from self._listed(Path(source))
        elif os.path.lexists(source):
            yield self._picture(name)
        elif glob.has_magic(source):
            paths = sorted(glob.glob(source, recursive=True))
            if not paths:
                raise FileNotFoundError(f"no file fits the pattern {quoted(name)}")
            for path in paths:
                yield from self._named(path)
        else:
            raise FileNotFoundError(f"there is no {place(name)}")

    def _lists_captions(self, source: PlainSource) -> bool:
        if self._captions is None or not isinstance(source, str):
            return False
        return os.path.abspath(source) == os.path.abspath(self._captions.file)

    def _picture(self, name: str) -> Gathered:
        document = Document(name)
        document.pictures[0].check_header()
        if self._captions is not None:
            document = self._captions.captioned(document)
        return Gathered(document, name)

    def _listed(self, path: Path) -> Iterator[Gathered]:
        source = Documents(path, captions=self._captions)
        self.sources.append(source)
        for document in source:
            try:
                for picture in document.pictures:
                    picture.check_header()
            except ImageError as error:
                source.problems.add("broken picture", str(error))
            else:
                yield Gathered(document, _name_of(document, path))


def _name_of(document: Document, source: Path) -> str:
    if document.id is not None and document.path != str(source / document.id):
        return document.id
    if document.image is not None:
        return document.path or "a picture"
    return "; ".join(
        quoted(part) if isinstance(part, str) else part.path or "a picture"
        for part in document.parts
    )
