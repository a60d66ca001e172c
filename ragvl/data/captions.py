"""Flickr30K and MSCOCO, where a caption is the query and its picture the one document to find.

Two layouts: Karpathy and Li's JSON ("Deep Visual-Semantic Alignments", CVPR 2015), and lines of
`image,caption`, as Kaggle's Flickr30K and RagVL's release have them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field

from ragvl.data.document import Document
from ragvl.data.files import existing, is_file, read_lines
from ragvl.data.json_file import has_list, read_json_entries
from ragvl.data.layouts import String, Text, parsed, plain_path
from ragvl.data.problems import DataError, Problems, no_use, printable
from ragvl.data.questions import Pool, Question, QuestionSet, Search
from ragvl.data.rules import is_of_another_split, pictures_are_there

Protocol = Literal["1k", "5k"]
_PROTOCOL_SIZES: dict[Protocol, int] = {"1k": 1000, "5k": 5000}
_SPLITS = ("train", "val", "test", "restval")
# Where archives of the data sets have their pictures, beside the file of captions
_PICTURE_FOLDERS = ("", "images", "Images", "flickr30k-images", "flickr30k_images", "val2014")
_KARPATHY_NAMES = ("dataset_flickr30k.json", "dataset_coco.json")
_NAMED = 5  # missing pictures that a refusal names
_QUOTED = r'"((?:[^"]|"")*)"'
_LINE = re.compile(rf'\s*(?:{_QUOTED}|([^",]*))\s*,\s*(?:{_QUOTED}|(.*?))\s*', re.DOTALL)


class Captions(QuestionSet):
    """Captions as queries; each one's picture is the only gold document.

    Args:
        file: Karpathy's JSON, or lines of `image,caption` under that header.
        split: of Karpathy's file "train", "val", "test" (by default) or, of MSCOCO, "restval".
            Lines of `image,caption` are one split, which has no name.
        images: the pictures' folder; by default beside the file, under a usual name.
        protocol: "1k" searches folds of 1,000 pictures, five of MSCOCO's test split and the whole
            of Flickr30K's; "5k" all 5,000 of MSCOCO's at once. None searches whatever is there.
        strict: stop at the first problem.

    Raises:
        FileNotFoundError: the file is missing, or none of its pictures is there.
        DataError: the file is broken, no caption is left, the number of pictures does not fit the
            protocol, or `strict` met a problem.
        ValueError: `split` of a file that is one.
    """

    template = "retrieval"

    def __init__(
        self,
        file: str | Path,
        *,
        split: str | None = None,
        images: str | Path | None = None,
        protocol: Protocol | None = None,
        strict: bool = False,
    ) -> None:
        file = existing(Path(file), "expected Karpathy's JSON, or lines of image,caption")
        is_json = file.suffix == ".json"
        if split is not None and not is_json:
            raise ValueError(f"split={split!r}: {file} is one split; name another file")
        taken = [*([split or "test"] if is_json else []), *([protocol] if protocol else [])]
        self.name = ", ".join([file.stem, *taken])
        self.problems = Problems(strict)
        found = (
            _read_karpathy(file, split or "test", self.problems)
            if is_json
            else _read_lines(file, self.problems)
        )
        of_picture: dict[str, list[_Caption]] = {}
        for caption in found:
            of_picture.setdefault(caption.picture, []).append(caption)
        if not of_picture:
            raise no_use(f"{self.name} has no usable caption", self.problems)
        self._folder = _picture_folder(file, images, of_picture)
        self._pictures: dict[str, None] = {}  # ordered set
        self.questions: list[Question] = []
        gone = [picture for picture, captions in of_picture.items() if not self._add(captions)]
        self._fold_size = len(self._pictures)
        if protocol is not None:
            self._fold_size = _PROTOCOL_SIZES[protocol]
            self._check_folds(gone)
        self.check()

    def _add(self, captions: list[_Caption]) -> bool:
        """Takes a picture's captions, if the picture is there."""
        picture = captions[0].picture
        path = self._folder / picture
        missing = () if is_file(path) else (picture,)
        if missing:
            self.problems.add("missing picture", f"{captions[0].where}: {path}")
        for number, caption in enumerate(captions):
            if pictures_are_there([picture], missing, caption.where, self.problems):
                id = f"{picture}#{number}"
                self.questions.append(Question(id, caption.text, (), "caption", (picture,), ()))
                self._pictures[picture] = None
        return not missing

    def _check_folds(self, gone: Sequence[str]) -> None:
        number = len(self._pictures)
        if number and not number % self._fold_size:
            return
        named = ", ".join(gone[:_NAMED])
        more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
        missing = f"find the missing {named}{more}" if named else "look for missing pictures"
        message = f"{self.name} has {number} pictures, which are no folds of {self._fold_size}"
        raise DataError(
            printable(f"{message}: leave the protocol out, or {missing}"), self.problems
        )

    def document_ids(self, pool: Pool = "full") -> list[str]:  # noqa: ARG002  each is gold
        """Every picture of the split: each is gold to its captions."""
        return list(self._pictures)

    def document(self, document_id: str) -> Document:
        """One picture, without a caption, since that would be the query; see `QuestionSet`."""
        if document_id not in self._pictures:
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


def is_karpathy(file: Path) -> bool:
    """Whether a file is Karpathy's: by its published name, or its list of images."""
    return file.name in _KARPATHY_NAMES or has_list(file, "images")


class _Caption(NamedTuple):
    picture: str
    text: str
    where: str


class _KarpathyImage(BaseModel):
    filename: Text
    filepath: String = ""
    sentences: Annotated[list[Any], Field(min_length=1)]

    @property
    def path(self) -> str:
        """In the folder of the pictures."""
        return plain_path("/".join(filter(None, (self.filepath, self.filename))))


class _KarpathySentence(BaseModel):
    raw: String


def _read_karpathy(file: Path, split: str, problems: Problems) -> Iterator[_Caption]:
    seen: set[str] = set()
    for number, entry in read_json_entries(file, problems, key="images"):
        where = f"{file}: image {number}"
        if is_of_another_split(entry, split, _SPLITS, where, problems):
            continue
        image = parsed(_KarpathyImage.model_validate, entry, "broken sample", where, problems)
        if image is None:
            continue
        if image.path in seen:
            problems.add("duplicate id", f"{where}: {image.path}")
            continue
        seen.add(image.path)
        for index, sentence in enumerate(image.sentences):
            place = f"{where}, sentence {index}"
            parse = _KarpathySentence.model_validate
            found = parsed(parse, sentence, "broken caption", place, problems)
            if found is None:
                continue
            if text := found.raw.strip():
                yield _Caption(image.path, text, place)
            else:
                problems.add("empty caption", f"{place}: {image.path}")


def _read_lines(file: Path, problems: Problems) -> Iterator[_Caption]:
    lines = read_lines(file, problems)
    _, header = next(lines, (0, ""))
    if [name.strip() for name in header.split(",")] != ["image", "caption"]:
        problems.add("broken file", f"{file} does not begin with the line image,caption")
        return
    seen: set[tuple[str, str]] = set()
    for number, line in lines:
        where = f"{file}, line {number}"
        fields = _fields(line)
        if fields is None:
            problems.add("broken line", f"{where} is not image,caption: {line[:60]!r}")
        elif not fields[1]:
            problems.add("empty caption", f"{where}: {fields[0]}")
        elif fields in seen:
            problems.add("duplicate caption", f"{where}: {fields[0]}")
        else:
            seen.add(fields)
            yield _Caption(*fields, where)


def _fields(line: str) -> tuple[str, str] | None:
    """A line's picture and caption; None if it has no picture, or a quotation mark stays open.

    A caption that is not quoted as a whole may hold commas and quotation marks; Kaggle's Flickr30K
    has such lines.
    """
    found = _LINE.fullmatch(line)
    if found is None or "\r" in line:  # two lines of an old Macintosh's
        return None
    quoted_picture, picture, quoted_caption, caption = found.groups()
    picture = picture.strip() if quoted_picture is None else quoted_picture.replace('""', '"')
    if not picture:
        return None
    if quoted_caption is not None:
        return plain_path(picture), quoted_caption.replace('""', '"').strip()
    is_open = caption.startswith('"') and caption.count('"') % 2
    return None if is_open else (plain_path(picture), caption)


def _picture_folder(file: Path, images: str | Path | None, captions: Collection[str]) -> Path:
    """The folder in which the first picture that is anywhere is found."""
    tried = [file.parent / name for name in _PICTURE_FOLDERS] if images is None else [Path(images)]
    for picture in captions:
        for folder in tried:
            if is_file(folder / picture):
                return folder
    raise FileNotFoundError(
        f"none of the {len(captions)} pictures that {file} names is in "
        f"{' or '.join(map(str, tried))}: say where they are with images"
    )
