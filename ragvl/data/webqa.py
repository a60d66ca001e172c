"""WebQA's published files: annotations in JSON, pictures in imgs.tsv with imgs.lineidx.

Layout as released with Chang et al., "WebQA: Multihop and Multimodal QA" (CVPR 2022).
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragvl.data.document import Document
from ragvl.data.questions import Pool, Question

logger = logging.getLogger(__name__)

_ROWS_PER_SHARD = 10_000_000  # an image's row in imgs.tsv is its id modulo this


class WebQAFormatError(ValueError):
    """A WebQA file that does not have the published layout."""


class ImageRows:
    """imgs.tsv, read row by row through a memory map: a 34 GB file is never read through."""

    def __init__(self, folder: Path) -> None:
        index = _existing(folder / "imgs.lineidx")
        self._offsets = [int(line) for line in index.read_text().split()]
        self._path = _existing(folder / "imgs.tsv")
        with self._path.open("rb") as file:
            self._rows = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, image_id: str) -> bytes:
        """The encoded picture (PNG or JPEG bytes) of `image_id`.

        Raises:
            KeyError: there is no such row.
            WebQAFormatError: the row holds another picture, or is not base64.
        """
        row = int(image_id) % _ROWS_PER_SHARD
        if row >= len(self._offsets):
            raise KeyError(
                f"image {image_id}: {self._path} has {len(self._offsets)} rows, none {row}"
            )
        start = self._offsets[row]
        end = self._rows.find(b"\n", start)
        found, _, encoded = self._rows[start : end if end >= 0 else None].partition(b"\t")
        if found.decode("ascii", "replace") != image_id:
            raise WebQAFormatError(
                f"image {image_id}: row {row} of {self._path} holds {found[:20]!r}; "
                "imgs.lineidx does not belong to this imgs.tsv"
            )
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise WebQAFormatError(f"image {image_id}: row {row} is not base64: {error}") from error


class WebQA:
    """One split of a WebQA folder: its questions, its documents, and which document is gold.

    Args:
        folder: holds the annotations, imgs.tsv and imgs.lineidx.
        split: "train", "val" or "test", as the annotations name it.
        annotations: the name of the JSON file.
        strict: stop at the first broken sample; otherwise it is left out, counted and named in
            `problems`.

    Raises:
        FileNotFoundError: a file is missing.
        WebQAFormatError: the JSON is broken, the split is empty, or `strict` met a broken sample.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        split: str,
        annotations: str = "WebQA_train_val.json",
        strict: bool = False,
    ) -> None:
        folder = Path(folder)
        path = _existing(folder / annotations)
        try:
            samples = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise WebQAFormatError(f"{path} is not JSON: {error}") from error
        if not isinstance(samples, dict):
            raise WebQAFormatError(f"{path} holds a {type(samples).__name__}, not {{guid: sample}}")
        self._images = ImageRows(folder)
        self._captions: dict[str, str] = {}
        self._gold: dict[str, None] = {}  # ordered set
        self.questions: list[Question] = []
        self.problems: list[str] = []
        for guid, sample in samples.items():
            try:
                self._add(guid, sample, split)
            except WebQAFormatError as problem:
                if strict:
                    raise
                self.problems.append(str(problem))
        if self.problems:
            logger.warning("%s: left out %d broken samples", path, len(self.problems))
        if not self.questions:
            raise WebQAFormatError(f"{path} has no usable question of split {split!r}")

    def _add(self, guid: str, sample: Any, split: str) -> None:
        if not isinstance(sample, dict):
            raise WebQAFormatError(f"sample {guid} is a {type(sample).__name__}, not an object")
        try:
            if sample["split"] != split:
                return
            gold = {str(fact["image_id"]): fact["caption"] for fact in sample["img_posFacts"]}
            distractors = {
                str(fact["image_id"]): fact["caption"] for fact in sample["img_negFacts"]
            }
            question = Question(
                id=guid,
                text=_unquoted(sample["Q"]),
                answers=tuple(_unquoted(answer) for answer in sample["A"]),
                category=sample["Qcate"],
                gold=tuple(gold),
                negatives=tuple(distractors),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise WebQAFormatError(f"sample {guid} lacks or garbles a field: {error}") from error
        self.questions.append(question)
        self._captions |= gold | distractors
        self._gold |= dict.fromkeys(gold)

    def document_ids(self, pool: Pool = "full") -> list[str]:
        """Ids of the retrieval pool: every picture the split names, or gold ones only.

        The release of RagVL fills its pool with gold pictures only; both are reported here.
        """
        return list(self._gold if pool == "gold" else self._captions)

    def document(self, document_id: str) -> Document:
        """One document, its picture read from disk now.

        Raises:
            KeyError: this split names no such document, or the picture is missing.
        """
        return Document(
            image=self._images[document_id], caption=self._captions[document_id], id=document_id
        )

    def documents(self, pool: Pool = "full") -> Iterator[Document]:
        """The documents of a pool, one at a time."""
        return map(self.document, self.document_ids(pool))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; a WebQA folder holds it beside the annotations"
        )
    return path


def _unquoted(text: str) -> str:
    """WebQA's strings carry a pair of quotation marks of their own."""
    return text.strip().removeprefix('"').removesuffix('"').strip()
