"""Flickr30K and MSCOCO, where a caption is the query and its picture the one document to find.

Three layouts: Karpathy and Li's JSON ("Deep Visual-Semantic Alignments", CVPR 2015), MSCOCO's own
captions (captions_val2017.json), and lines of `image,caption`, as Kaggle's Flickr30K and RagVL's
release have them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, StringConstraints

from ragvl.data.document import Document
from ragvl.data.json_file import read_json_entries
from ragvl.data.problems import DataError, Problems, brief, brief_quoted, no_use
from ragvl.data.questions import Pool, Question, QuestionSet, Search
from ragvl.data.reading import existing, is_file, place, read_lines, why_missing
from ragvl.data.schemas import String, StringOrNumber, Text, parsed, plain_path
from ragvl.data.validation import is_of_another_split, pictures_are_there
from ragvl.files import open_regular

Protocol = Literal["1k", "5k"]
_PROTOCOL_SIZES: dict[Protocol, int] = {"1k": 1000, "5k": 5000}
KARPATHY_SPLITS = ("train", "val", "test", "restval")
# Where archives of the data sets have their pictures, beside the file of captions
_PICTURE_FOLDERS = ("images", "Images", "flickr30k-images", "flickr30k_images")
_COCO_FOLDERS = ("val2017", "train2017", "val2014", "train2014")
_KARPATHY_NAMES = ("dataset_flickr30k.json", "dataset_coco.json")
# Names in the beginning of a JSON file that tell its layout; within a text they would be escaped
_HEAD = 2**20  # bytes
_COCO = re.compile(rb'"(?:file_name|annotations)"\s*:')
_KARPATHY = re.compile(rb'"sentences"\s*:')
_NAMED = 5  # missing pictures that a refusal names
_QUOTED = r'"((?:[^"]|"")*)"'
_LINE = re.compile(rf'\s*(?:{_QUOTED}|([^",]*))\s*,\s*(?:{_QUOTED}|(.*?))\s*', re.DOTALL)


class Captions(QuestionSet):
    """Captions as queries; each one's picture is the only gold document.

    Args:
        file: Karpathy's JSON, MSCOCO's own captions, or lines of `image,caption` under that header.
        split: of Karpathy's file "train", "val", "test" (by default) or, of MSCOCO, "restval".
            The others are one split, which has no name.
        images: the pictures' folder; by default beside the file, under a usual name (of MSCOCO's
            own captions also a folder further up).
        protocol: "1k" searches folds of 1,000 pictures, five of MSCOCO's test split and the whole
            of Flickr30K's; "5k" all 5,000 of MSCOCO's at once. None searches whatever is there.
        strict: stop at the first problem.

    Raises:
        FileNotFoundError: the file is missing, or none of its pictures is there.
        DataError: the file is broken, no caption is left, the number of pictures does not fit the
            protocol, or `strict` met a problem.
        OSError: the file is a folder, a pipe, ..., or cannot be opened.
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
        file = existing(Path(file), "expected captions in JSON, or lines of image,caption")
        layout = _layout(file)
        if layout == "karpathy":
            split = split or "test"
        elif split is not None:
            raise ValueError(f"split={split!r}: {place(file)} is one split; name another file")
        # Published files have names of their own; others are called captions.txt, and tell nothing
        folder = file.resolve().parent.name if layout == "lines" else None
        self.name = ", ".join(filter(None, (folder, file.stem, split, protocol)))
        self.problems = Problems(strict)
        of_picture: dict[str, list[PictureCaption]] = {}
        for caption in _read(file, layout, split, self.problems):
            of_picture.setdefault(caption.picture, []).append(caption)
        if not of_picture:
            raise no_use(f"{self.name} has no usable caption", self.problems)
        folders = _usual_folders(file, layout) if images is None else [Path(images)]
        self._folder = _picture_folder(file, folders, of_picture)
        self._pictures: dict[str, None] = {}  # ordered set
        self.questions: list[Question] = []
        gone = [picture for picture, captions in of_picture.items() if not self._add(captions)]
        self._fold_size = len(self._pictures)
        if protocol is not None:
            self._fold_size = _PROTOCOL_SIZES[protocol]
            self._check_folds(gone)
        self.check()

    def _add(self, captions: list[PictureCaption]) -> bool:
        """Takes a picture's captions, if the picture is there."""
        picture = captions[0].picture
        why = why_missing(self._folder, picture)
        missing = () if why is None else (picture,)
        if why is not None:
            self.problems.add("missing picture", f"{captions[0].where}: {why}")
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
        named = ", ".join(map(brief, gone[:_NAMED]))
        more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
        missing = f"find the missing {named}{more}" if named else "look for missing pictures"
        message = f"{self.name} has {number} pictures, which are no folds of {self._fold_size}"
        raise DataError(f"{message}: leave the protocol out, or {missing}", self.problems)

    def document_ids(self, pool: Pool = "full") -> list[str]:  # noqa: ARG002  each is gold
        """Every picture of the split: each is gold to its captions."""
        return list(self._pictures)

    def document(self, document_id: str) -> Document:
        """One picture, without a caption, since that would be the query; see `QuestionSet`."""
        if document_id not in self._pictures:
            raise KeyError(f"{self.name} has no picture {brief_quoted(document_id)}")
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


class PictureCaption(NamedTuple):
    """A caption.

    Attributes:
        picture: its picture's path, in the one spelling of `plain_path`.
        text: the caption, not empty.
        where: the place in its file.
    """

    picture: str
    text: str
    where: str


def read_caption_lines(file: Path, problems: Problems) -> Iterator[PictureCaption]:
    """Captions in lines of `image,caption`, under that header.

    Raises:
        OSError: it is no regular file, or cannot be opened.
    """
    lines = read_lines(file, problems)
    _, header = next(lines, (0, ""))
    if [name.strip() for name in header.split(",")] != ["image", "caption"]:
        problems.add("broken file", f"{place(file)} does not begin with the line image,caption")
        return
    seen: set[tuple[str, str]] = set()
    for number, line in lines:
        where = place(file, number)
        fields = _fields(line)
        if fields is None:
            problems.add("broken line", f"{where} is not image,caption: {brief_quoted(line)}")
        elif not fields[1]:
            problems.add("empty caption", f"{where}: {brief(fields[0])}")
        elif fields in seen:
            problems.add("duplicate caption", f"{where}: {brief(fields[0])}")
        else:
            seen.add(fields)
            yield PictureCaption(*fields, where)


_Layout = Literal["karpathy", "coco", "lines"]


def is_karpathy(file: Path) -> bool:
    """Whether a JSON file is Karpathy's: by its published name, or its sentences.

    Raises:
        OSError: it is no regular file, or cannot be opened.
    """
    return _json_layout(file) == "karpathy"


def has_splits(file: Path) -> bool:
    """Whether a file of captions holds several splits; False if it is not there."""
    return is_file(file) and _layout(file) == "karpathy"


def _layout(file: Path) -> _Layout:
    return (_json_layout(file) or "karpathy") if file.suffix == ".json" else "lines"


def _json_layout(file: Path) -> _Layout | None:
    if file.name in _KARPATHY_NAMES:
        return "karpathy"
    with open_regular(file) as opened:
        head = opened.read(_HEAD)
    if _COCO.search(head):
        return "coco"
    return "karpathy" if _KARPATHY.search(head) else None


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


def _read(
    file: Path, layout: _Layout, split: str | None, problems: Problems
) -> Iterator[PictureCaption]:
    if split is not None:
        return _read_karpathy(file, split, problems)
    return _read_coco(file, problems) if layout == "coco" else read_caption_lines(file, problems)


def _read_karpathy(file: Path, split: str, problems: Problems) -> Iterator[PictureCaption]:
    seen: set[str] = set()
    for number, entry in read_json_entries(file, problems, key="images"):
        where = f"{place(file)}: image {number}"
        if is_of_another_split(entry, split, KARPATHY_SPLITS, where, problems):
            continue
        image = parsed(_KarpathyImage.model_validate, entry, "broken sample", where, problems)
        if image is None:
            continue
        if image.path in seen:
            problems.add("duplicate id", f"{where}: {brief(image.path)}")
            continue
        seen.add(image.path)
        for index, sentence in enumerate(image.sentences):
            at = f"{where}, sentence {index}"
            parse = _KarpathySentence.model_validate
            caption = parsed(parse, sentence, "broken caption", at, problems)
            if caption is None:
                continue
            if text := caption.raw.strip():
                yield PictureCaption(image.path, text, at)
            else:
                problems.add("empty caption", f"{at}: {brief(image.path)}")


_Id = Annotated[StringOrNumber, StringConstraints(min_length=1)]


class _CocoImage(BaseModel):
    id: _Id
    file_name: Text


class _CocoCaption(BaseModel):
    image_id: _Id
    caption: String


def _read_coco(file: Path, problems: Problems) -> Iterator[PictureCaption]:
    pictures: dict[str, str] = {}
    # What is wrong with the file as a whole is noted by the second reading
    for number, entry in read_json_entries(file, Problems(), key="images"):
        where = f"{place(file)}: image {number}"
        image = parsed(_CocoImage.model_validate, entry, "broken sample", where, problems)
        if image is not None and image.id in pictures:
            problems.add("duplicate id", f"{where}: {brief_quoted(image.id)}")
        elif image is not None:
            pictures[image.id] = plain_path(image.file_name)
    for number, entry in read_json_entries(file, problems, key="annotations"):
        where = f"{place(file)}: annotation {number}"
        caption = parsed(_CocoCaption.model_validate, entry, "broken caption", where, problems)
        if caption is None:
            continue
        if caption.image_id not in pictures:
            problems.add(
                "broken caption", f"{where}: there is no image {brief_quoted(caption.image_id)}"
            )
        elif text := caption.caption.strip():
            yield PictureCaption(pictures[caption.image_id], text, where)
        else:
            problems.add("empty caption", f"{where}: {brief(pictures[caption.image_id])}")


def _fields(line: str) -> tuple[str, str] | None:
    """A line's picture and caption; None if it has no picture, or a quotation mark stays open.

    A caption that is not quoted as a whole may hold commas and quotation marks; Kaggle's Flickr30K
    has such lines.
    """
    match = _LINE.fullmatch(line)
    if match is None or "\r" in line:  # two lines of an old Macintosh's
        return None
    quoted_picture, picture, quoted_caption, caption = match.groups()
    picture = picture.strip() if quoted_picture is None else quoted_picture.replace('""', '"')
    if not picture:
        return None
    if quoted_caption is not None:
        return plain_path(picture), quoted_caption.replace('""', '"').strip()
    is_open = caption.startswith('"') and caption.count('"') % 2
    return None if is_open else (plain_path(picture), caption)


def _usual_folders(file: Path, layout: _Layout) -> list[Path]:
    parents = [file.parent, file.parent.parent] if layout == "coco" else [file.parent]
    names = ("", *_PICTURE_FOLDERS, *_COCO_FOLDERS)
    return [parent / name for parent in parents for name in names]


def _picture_folder(file: Path, folders: Sequence[Path], pictures: Collection[str]) -> Path:
    """The folder that holds the first of the pictures that can be located."""
    for picture in pictures:
        for folder in folders:
            if is_file(folder / picture):
                return folder
    others = " or under a usual name beside it" if len(folders) > 1 else ""
    raise FileNotFoundError(
        f"none of the {len(pictures)} pictures that {place(file)} names is in "
        f"{place(folders[0])}{others}: say where they are with images"
    )
