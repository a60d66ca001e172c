"""Documents from a folder of pictures, a WebQA folder, or a file with one document a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ragvl.data.document import Document
from ragvl.data.images import FORMATS
from ragvl.data.webqa import WebQA

_WEBQA_ROWS = "imgs.tsv"


class DocumentFileError(ValueError):
    """A line of a document file that is none; the message names the line."""


class Documents:
    """The documents of `source`, read one at a time as they are iterated over.

    Args:
        source: a folder of pictures, searched with its subfolders; a folder in WebQA's format
            (it holds imgs.tsv); or a JSONL file, each line `{"image": path, "caption": text,
            "id": name}`, the last two optional, paths relative to the file.
        split: of a WebQA folder.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is neither, or holds nothing.
        DocumentFileError: while iterating: a line is not such an object.
    """

    def __init__(self, source: str | Path, *, split: str = "val") -> None:
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}")
        self._webqa = None
        if path.is_file():
            self._lines = path
            with path.open(encoding="utf-8") as file:
                self._length = sum(1 for line in file if line.strip())
        elif (path / _WEBQA_ROWS).is_file():
            self._webqa = WebQA(path, split=split)
            self._length = len(self._webqa.document_ids())
        else:
            known = {
                suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS
            }
            self._paths = sorted(p for p in path.rglob("*") if p.suffix.lower() in known)
            self._length = len(self._paths)
        self._source = path
        if not self._length:
            raise ValueError(f"{path} holds no documents")

    def __len__(self) -> int:
        """How many there are."""
        return self._length

    def __iter__(self) -> Iterator[Document]:
        """The documents, in order."""
        if self._webqa is not None:
            yield from self._webqa.documents()
        elif self._source.is_file():
            yield from self._from_lines()
        else:
            for path in self._paths:
                yield Document(path, id=str(path.relative_to(self._source)))

    def _from_lines(self) -> Iterator[Document]:
        with self._source.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    fields = json.loads(line)
                    image = self._source.parent / fields.pop("image")
                    yield Document(image, **fields)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise DocumentFileError(
                        f"{self._source}, line {number} is no document "
                        f'{{"image": path, "caption": text, "id": name}}: {error}'
                    ) from error
