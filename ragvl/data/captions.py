"""Flickr30K and MSCOCO, where a caption is the query and its picture the one document to find.

Two layouts: Karpathy and Li's JSON ("Deep Visual-Semantic Alignments", CVPR 2015), and lines of
`image,caption`, as Kaggle's Flickr30K and RagVL's release have them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from ragvl.data.document import Document
from ragvl.data.files import existing, read_json_entries, read_lines
from ragvl.data.problems import DataError, Problems
from ragvl.data.questions import Pool, Question, QuestionSet, Search

Protocol = Literal["1k", "5k"]
_PROTOCOL_SIZES: dict[Protocol, int] = {"1k": 1000, "5k": 5000}
# Where archives of the data sets have their pictures, beside the file of captions
_PICTURE_FOLDERS = ("", "images", "Images", "flickr30k-images", "flickr30k_images", "val2014")


class Captions(QuestionSet):
    """Captions as queries; each one's picture is the only gold document.

    Args:
        file: Karpathy's JSON, or lines of `image,caption` under that header.
        split: of Karpathy's file "train", "val", "test" or, of MSCOCO, "restval". Lines of
            `image,caption` are one split.
        images: the pictures' folder; by default beside the file, under a usual name.
        protocol: "1k" searches folds of 1,000 pictures, five of MSCOCO's test split and the whole
            of Flickr30K's; "5k" all 5,000 of MSCOCO's at once. None searches whatever is there.
        strict: stop at the first problem.

    Raises:
        FileNotFoundError: the file is missing, or none of its pictures is there.
        DataError: the file is broken, no caption is left, the number of pictures does not fit the
            protocol, or `strict` met a problem.
    """

    template = "retrieval"

    def __init__(
        self,
        file: str | Path,
        *,
        split: str = "test",
        images: str | Path | None = None,
        protocol: Protocol | None = None,
        strict: bool = False,
    ) -> None:
        file = existing(Path(file), "expected Karpathy's JSON, or lines of image,caption")
        is_json = file.suffix == ".json"
        self.problems = Problems(strict)
        self.name = ", ".join(
            [file.stem, *([split] if is_json else []), *([protocol] if protocol else [])]
        )
        self._captions = (
            _read_karpathy(file, split, self.problems)
            if is_json
            else _read_lines(file, self.problems)
        )
        if not self._captions:
            raise DataError(f"{self.name} has no usable caption; {self.problems}")
        self._folder = _picture_folder(file, images, self._captions)
        for picture in list(self._captions):
            if not (self._folder / picture).is_file():
                self.problems.add("missing picture", f"{self._folder / picture}")
                del self._captions[picture]
        self._fold_size = len(self._captions)
        if protocol is not None:
            self._fold_size = _PROTOCOL_SIZES[protocol]
            if not self._captions or len(self._captions) % self._fold_size:
                raise DataError(
                    f"{self.name} has {len(self._captions)} pictures, which are no folds of "
                    f"{self._fold_size}: leave the protocol out, or find the missing pictures"
                )
        self.questions = [
            Question(f"{picture}#{number}", caption, (), "caption", (picture,), ())
            for picture, captions in self._captions.items()
            for number, caption in enumerate(captions)
        ]
        self.check()

    def document_ids(self, pool: Pool = "full") -> list[str]:  # noqa: ARG002  each is gold
        """Every picture of the split: each is gold to its captions."""
        return list(self._captions)

    def document(self, document_id: str) -> Document:
        """One picture, without a caption, since that would be the query; see `QuestionSet`."""
        if document_id not in self._captions:
            raise KeyError(f"{self.name} has no picture {document_id!r}")
        return Document(self._folder / document_id, id=document_id)

    def searches(self, pool: Pool = "full") -> list[Search]:
        """The protocol's folds: a caption is searched for among the pictures of its own."""
        ids = self.document_ids(pool)
        folds = []
        for start in range(0, len(ids), self._fold_size):
            fold = ids[start : start + self._fold_size]
            inside = set(fold)
            folds.append(Search([q for q in self.questions if q.gold[0] in inside], fold))
        return folds


def _read_karpathy(file: Path, split: str, problems: Problems) -> dict[str, list[str]]:
    """Captions by picture."""
    captions: dict[str, list[str]] = {}
    for number, image in read_json_entries(file, problems, key="images"):
        try:
            if image["split"] != split:
                continue
            picture = "/".join(filter(None, (image.get("filepath"), image["filename"])))
            found = [sentence["raw"].strip() for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            problems.add("broken sample", f"{file}: image {number}: {error!r}")
            continue
        _add(captions, picture, found, f"{file}: image {number}", problems)
    return captions


def _read_lines(file: Path, problems: Problems) -> dict[str, list[str]]:
    """Captions by picture."""
    numbered = list(read_lines(file, problems))
    captions: dict[str, list[str]] = {}
    if not numbered or [name.strip() for name in numbered[0][1].split(",")] != ["image", "caption"]:
        raise DataError(f"{file} does not begin with the line image,caption")
    for number, line in numbered[1:]:
        fields = next(csv.reader([line]))
        if len(fields) < 2 or not fields[0].strip():
            problems.add("broken line", f"{file}, line {number} is not image,caption: {line[:60]}")
            continue
        # An unquoted caption may hold commas; Kaggle's Flickr30K has such lines
        caption = ",".join(fields[1:]).strip()
        picture = fields[0].strip()
        if not caption:
            problems.add("empty caption", f"{file}, line {number}: {picture}")
        else:
            captions.setdefault(picture, []).append(caption)
    return captions


def _add(
    captions: dict[str, list[str]],
    picture: str,
    found: Iterable[str],
    where: str,
    problems: Problems,
) -> None:
    if picture in captions:
        problems.add("duplicate id", f"{where}: {picture}")
        return
    kept = [caption for caption in found if caption]
    if kept:
        captions[picture] = kept
    else:
        problems.add("empty caption", f"{where}: {picture}")


def _picture_folder(file: Path, images: str | Path | None, captions: Mapping[str, Any]) -> Path:
    """The folder in which the first picture that is anywhere is found."""
    tried = [file.parent / name for name in _PICTURE_FOLDERS] if images is None else [Path(images)]
    for picture in captions:
        for folder in tried:
            if (folder / picture).is_file():
                return folder
    raise FileNotFoundError(
        f"none of the {len(captions)} pictures that {file} names is in "
        f"{' or '.join(map(str, tried))}: say where they are with images"
    )
