"""WebQA's published files: annotations in JSON, pictures in imgs.tsv with an index.

Layout as released with Chang et al., "WebQA: Multihop and Multimodal QA" (CVPR 2022).
"""

from __future__ import annotations

import base64
import binascii
import json
import mmap
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ragvl.data.document import Document
from ragvl.data.files import existing, read_json_entries, read_lines
from ragvl.data.images import ImageError
from ragvl.data.problems import Problems
from ragvl.data.questions import Pool, Question, QuestionSet

_ROWS_PER_SHARD = 10_000_000  # an image's row in imgs.tsv is its id modulo this
_BESIDE = "a WebQA folder holds it beside the annotations"
ROWS = "imgs.tsv"


class ImageRows:
    """imgs.tsv, read row by row through a memory map: a 34 GB file is never read through.

    Where a row begins is told by imgs.lineidx.new, lines of an image's id, a tab and the byte
    offset of its row; or else by imgs.lineidx, the offsets alone, in the order of the rows.
    """

    def __init__(self, folder: Path, problems: Problems) -> None:
        self._path = existing(folder / ROWS, _BESIDE)
        self._offset_of: dict[str, int] | None = None
        by_id = folder / "imgs.lineidx.new"
        index = by_id if by_id.is_file() else existing(folder / "imgs.lineidx", _BESIDE)
        self._offsets: list[int] = []
        if by_id.is_file():
            self._offset_of = {}
        for number, line in read_lines(index, problems):
            try:
                image_id, _, offset = line.rpartition("\t")
                self._offsets.append(int(offset))
            except ValueError:
                problems.add("broken line", f"{index}, line {number} holds no offset: {line[:40]}")
                self._offsets.append(-1)  # the row is lost, those after it keep their numbers
                continue
            if self._offset_of is not None:
                self._offset_of[image_id.strip()] = self._offsets[-1]
        self._starts = sorted(offset for offset in self._offsets if offset >= 0)
        with self._path.open("rb") as file:
            self._rows = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __contains__(self, image_id: str) -> bool:
        """Whether the index tells where the row of `image_id` begins, within the file."""
        return 0 <= self._offset(image_id) < len(self._rows)

    def __getitem__(self, image_id: str) -> bytes:
        """The encoded picture (PNG or JPEG bytes) of `image_id`.

        Raises:
            KeyError: there is no such row.
            ImageError: the row holds another picture, or is not base64.
        """
        if image_id not in self:
            raise KeyError(f"image {image_id}: {self._path} has no row for it")
        start = self._offset(image_id)
        # No further than where another row begins, whatever the file holds
        following = bisect_right(self._starts, start)
        bound = self._starts[following] if following < len(self._starts) else len(self._rows)
        end = self._rows.find(b"\n", start, bound)
        row = self._rows[start : end if end >= 0 else bound]
        found, _, encoded = row.rstrip(b"\r\n").partition(b"\t")
        if found.decode("ascii", "replace") != image_id:
            raise ImageError(
                f"image {image_id}: at byte {start} of {self._path} stands {found[:20]!r}; "
                "the index does not belong to this imgs.tsv"
            )
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise ImageError(f"image {image_id} of {self._path} is not base64: {error}") from error

    def _offset(self, image_id: str) -> int:
        """Of the row; -1 where the index has none."""
        if self._offset_of is not None:
            return self._offset_of.get(image_id, -1)
        if not image_id.isascii() or not image_id.isdigit():
            return -1
        row = int(image_id) % _ROWS_PER_SHARD
        return self._offsets[row] if row < len(self._offsets) else -1


class WebQA(QuestionSet):
    """One split of a WebQA folder: its questions, its documents, and which document is gold.

    Facts in words, and questions that are answered from them alone, are left aside. Of a file
    whose samples have `img_Facts` in the place of `img_posFacts` and `img_negFacts`, as the
    published test file has, neither gold documents nor answers are known.

    Args:
        folder: holds the annotations, imgs.tsv, and imgs.lineidx or imgs.lineidx.new.
        split: "train", "val" or "test", as the annotations name it.
        annotations: the name of the JSON file; by default WebQA_test.json for "test" where there
            is one, else WebQA_train_val.json.
        strict: stop at the first problem.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: the JSON is broken, no question is left, or `strict` met a problem.
    """

    answer_metric = "webqa"

    def __init__(
        self,
        folder: str | Path,
        *,
        split: str = "val",
        annotations: str | None = None,
        strict: bool = False,
    ) -> None:
        folder = Path(folder)
        if annotations is None:
            has_test_file = split == "test" and (folder / "WebQA_test.json").is_file()
            annotations = "WebQA_test.json" if has_test_file else "WebQA_train_val.json"
        path = existing(folder / annotations, _BESIDE)
        self.name = f"{folder.resolve().name}, {split}"
        self.problems = Problems(strict)
        self.questions: list[Question] = []
        self._images = ImageRows(folder, self.problems)
        self._captions: dict[str, str] = {}
        self._gold: dict[str, None] = {}  # ordered set
        self._split = split
        seen: set[str] = set()
        for guid, sample in read_json_entries(path, self.problems):
            if guid in seen:
                self.problems.add("duplicate id", f"{path}: sample {guid}")
                continue
            seen.add(guid)
            try:
                if sample["split"] == split:
                    self._add(guid, sample)
            except (KeyError, TypeError, AttributeError) as error:
                self.problems.add("broken sample", f"{path}: sample {guid}: {error!r}")
        self.check()

    def _add(self, guid: str, sample: Mapping[str, Any]) -> None:
        known = "img_Facts" not in sample
        gold = _captions(sample["img_posFacts"]) if known else {}
        others = _captions(sample["img_negFacts" if known else "img_Facts"])
        if not gold and sample.get("txt_posFacts"):
            return  # a question about words
        answers = tuple(_unquoted(answer) for answer in sample["A"]) if known else ()
        text = _unquoted(sample["Q"])
        for image_id in [*gold, *others]:
            if image_id not in self._images:
                self.problems.add("missing picture", f"image {image_id} of sample {guid}")
                others.pop(image_id, None)
        if any(image_id not in self._images for image_id in gold):
            return
        self.questions.append(
            Question(
                id=guid,
                text=text,
                answers=answers,
                category=sample["Qcate"],
                gold=tuple(gold),
                negatives=tuple(others) if known else (),
            )
        )
        self._captions |= gold | others
        self._gold |= dict.fromkeys(gold)

    def document_ids(self, pool: Pool = "full") -> list[str]:
        """Every picture that the split names, or gold ones only; see `QuestionSet`."""
        return list(self._gold if pool == "gold" else self._captions)

    def document(self, document_id: str) -> Document:
        """One document, its picture read from disk now; see `QuestionSet`."""
        return Document(
            image=self._images[document_id], caption=self._captions[document_id], id=document_id
        )


def write_submission(path: str | Path, found: Iterable[tuple[str, Iterable[str], str]]) -> None:
    """WebQA's submission file, {guid: {"sources": [image ids], "answer": text}}.

    Args:
        path: where to write.
        found: of each question its guid, the ids of the documents it was answered from, the answer.
    """
    entries = {
        guid: {"sources": [int(id) if id.isdigit() else id for id in sources], "answer": answer}
        for guid, sources, answer in found
    }
    Path(path).write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def _captions(facts: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    captions = {str(fact["image_id"]): fact["caption"] for fact in facts}
    for image_id, caption in captions.items():
        if not isinstance(caption, str):
            raise TypeError(f"the caption of image {image_id} is a {type(caption).__name__}")
    return captions


def _unquoted(text: str) -> str:
    """WebQA's strings carry a pair of quotation marks of their own."""
    return text.strip().removeprefix('"').removesuffix('"').strip()
