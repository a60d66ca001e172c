"""Opens any data set by what its files are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ragvl.data.captions import KARPATHY_SPLITS, Captions, Protocol, has_splits, is_karpathy
from ragvl.data.jsonl import DOCUMENTS, JsonlQuestions
from ragvl.data.multimodalqa import PICTURES, TEXTS, MultimodalQA
from ragvl.data.problems import brief_quoted
from ragvl.data.questions import Modality, QuestionSet
from ragvl.data.reading import is_file, place
from ragvl.data.webqa import ANNOTATIONS, ROWS, WebQA
from ragvl.messages import shown

Purpose = Literal["train", "evaluate"]
Kind = Literal["captions", "multimodalqa", "webqa", "folder", "file"]
CAPTION_LINES = "captions.txt"  # what Kaggle's Flickr30K calls its lines of image,caption
KNOWN_FORMATS = (
    f"a folder in WebQA's format (it holds {ROWS}) or MultimodalQA's ({PICTURES}); Karpathy's JSON "
    "of Flickr30K or MSCOCO, or a folder that holds it (dataset_*.json); MSCOCO's own captions "
    "(captions_*.json); lines of image,caption (.txt or .csv), or a folder that holds them "
    f"({CAPTION_LINES}); your own questions (.jsonl), or a folder of train.jsonl, test.jsonl, ..., "
    f"which may list what is searched in {DOCUMENTS}"
)


class UnknownFormatError(ValueError):
    """What is there is no data set that is known; the message lists the known ones."""


def open_questions(
    source: str | Path,
    *,
    split: str | None = None,
    purpose: Purpose = "evaluate",
    images: str | Path | None = None,
    protocol: Protocol | None = None,
    modality: Modality | None = None,
    strict: bool = False,
) -> QuestionSet:
    """One split of the data set in `source`.

    Args:
        source: one of `KNOWN_FORMATS`.
        split: as the data set names it; of your own questions the name of a file in the folder.
        purpose: decides which split if none is named: "train" the one of that name, "evaluate" the
            one of most published results: WebQA's val, MultimodalQA's dev, test elsewhere.
        images: the pictures' folder, of formats that keep them apart.
        protocol: of Flickr30K and MSCOCO; see `Captions`.
        modality: of WebQA and MultimodalQA; see there. By default pictures.
        strict: stop at the first problem.

    Raises:
        FileNotFoundError: it does not exist, or a file of it is missing.
        DataError: it cannot be used.
        UnknownFormatError: it is none of the formats.
        ValueError: an argument does not fit its format.
    """
    kind, path = recognised(source)
    if protocol is not None and kind != "captions":
        raise ValueError(
            f"protocol={protocol!r} is of Flickr30K and MSCOCO; {place(path)} is neither"
        )
    if modality is not None and kind not in ("webqa", "multimodalqa"):
        raise ValueError(
            f"modality={modality!r} is of WebQA and MultimodalQA; {place(path)} is neither"
        )
    if images is not None and kind not in ("captions", "multimodalqa"):
        raise ValueError(
            f"images={brief_quoted(images)}: {place(path)} says itself where its pictures are"
        )

    def chosen(usual: str) -> str:
        return split or ("train" if purpose == "train" else usual)

    if kind == "captions":
        if has_splits(path):
            split = chosen("test")
        return Captions(path, split=split, images=images, protocol=protocol, strict=strict)
    if kind == "multimodalqa":
        return MultimodalQA(
            path,
            split=chosen("dev"),
            images=images,
            modality=modality or "image",
            strict=strict,
        )
    if kind == "webqa":
        return WebQA(path, split=chosen("val"), modality=modality or "image", strict=strict)
    if kind == "folder":
        return JsonlQuestions(_of_split(path, chosen("test")), strict=strict)
    if split is not None:
        raise ValueError(
            f"split={split!r}: {place(path)} is one split; name another file, or put "
            "train.jsonl, test.jsonl, ... into a folder and name that"
        )
    return JsonlQuestions(path, strict=strict)


def _of_split(folder: Path, split: str) -> Path:
    """The file of a split of your own questions.

    Raises:
        FileNotFoundError: there is none; the message names the splits that there are.
    """
    file = folder / f"{split}.jsonl"
    if not is_file(file):
        splits = shown(", ".join(filter(None, possible_splits(folder))))
        there = f"the folder's splits are {splits}" if splits else f"there is {DOCUMENTS} only"
        raise FileNotFoundError(f"{place(file)} is missing: {there}")
    return file


def recognised(source: str | Path) -> tuple[Kind, Path]:
    """The format of the data set in `source`, and the file or folder that its class reads.

    Raises:
        FileNotFoundError: it does not exist.
        UnknownFormatError: it is none of the formats.
        ValueError: it holds several data sets.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no {place(path)}")
    if path.is_dir():
        karpathy = sorted(filter(is_karpathy, path.glob("dataset_*.json")))
        if len(karpathy) > 1:
            names = ", ".join(file.name for file in karpathy)
            raise ValueError(f"{place(path)} holds several data sets: name one of {shown(names)}")
        if karpathy:
            return "captions", karpathy[0]
        if is_file(path / PICTURES) or is_file(path / TEXTS):
            return "multimodalqa", path
        if is_file(path / ROWS) or is_file(path / ANNOTATIONS):
            return "webqa", path
        if any(path.glob("*.jsonl")):
            return "folder", path
        if is_file(path / CAPTION_LINES):
            return "captions", path / CAPTION_LINES
    elif path.suffix in (".json", ".txt", ".csv"):
        return "captions", path
    elif ".jsonl" in path.suffixes:
        return "file", path
    raise UnknownFormatError(f"{place(path)} is no data set that is known: {KNOWN_FORMATS}")


def possible_splits(source: str | Path) -> list[str | None]:
    """The splits that the data set in `source` may have; None is the one that has no name.

    Those of a folder of your own questions are there; another format's may have no questions.

    Raises:
        FileNotFoundError, UnknownFormatError, ValueError: see `recognised`.
    """
    kind, path = recognised(source)
    if kind == "captions":
        return list(KARPATHY_SPLITS) if has_splits(path) else [None]
    if kind == "multimodalqa":
        return ["train", "dev", "test"]
    if kind == "webqa":
        return ["train", "val", "test"]
    files = sorted(path.glob("*.jsonl")) if kind == "folder" else []
    return [file.stem for file in files if file.name != DOCUMENTS] or [None]
