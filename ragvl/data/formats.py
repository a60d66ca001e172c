"""Opens any data set by what its files are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ragvl.data.captions import Captions, Protocol, has_splits, is_karpathy
from ragvl.data.jsonl import DOCUMENTS, JsonlQuestions
from ragvl.data.multimodalqa import PICTURES, TEXTS, MultimodalQA
from ragvl.data.problems import brief_quoted
from ragvl.data.questions import Modality, QuestionSet
from ragvl.data.reading import is_file, place
from ragvl.data.webqa import ANNOTATIONS, ROWS, WebQA
from ragvl.messages import shown

Purpose = Literal["train", "evaluate"]
KNOWN_FORMATS = (
    f"a folder in WebQA's format (it holds {ROWS}) or MultimodalQA's ({PICTURES}); Karpathy's JSON "
    "of Flickr30K or MSCOCO, or a folder that holds it (dataset_*.json); MSCOCO's own captions "
    "(captions_*.json); lines of image,caption (.txt or .csv); your own questions (.jsonl), or a "
    f"folder of train.jsonl, test.jsonl, ..., which may list what is searched in {DOCUMENTS}"
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
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no {place(path)}")
    karpathy = sorted(filter(is_karpathy, path.glob("dataset_*.json"))) if path.is_dir() else []
    is_captions = bool(karpathy) or path.suffix in (".json", ".txt", ".csv")
    if protocol is not None and not is_captions:
        raise ValueError(
            f"protocol={protocol!r} is of Flickr30K and MSCOCO; {place(path)} is neither"
        )

    is_webqa = is_file(path / ROWS) or is_file(path / ANNOTATIONS)
    is_mmqa = is_file(path / PICTURES) or is_file(path / TEXTS)
    if modality is not None and not (is_webqa or is_mmqa):
        raise ValueError(
            f"modality={modality!r} is of WebQA and MultimodalQA; {place(path)} is neither"
        )

    def chosen(usual: str) -> str:
        return split or ("train" if purpose == "train" else usual)

    if is_captions:
        if len(karpathy) > 1:
            names = ", ".join(file.name for file in karpathy)
            raise ValueError(f"{place(path)} holds several data sets: name one of {shown(names)}")
        file = karpathy[0] if karpathy else path
        if has_splits(file):
            split = chosen("test")
        return Captions(file, split=split, images=images, protocol=protocol, strict=strict)
    if is_mmqa:
        return MultimodalQA(
            path,
            split=chosen("dev"),
            images=images,
            modality=modality or "image",
            strict=strict,
        )
    if images is not None:
        raise ValueError(
            f"images={brief_quoted(images)}: {place(path)} says itself where its pictures are"
        )
    if is_webqa:
        return WebQA(path, split=chosen("val"), modality=modality or "image", strict=strict)
    if path.is_dir() and any(path.glob("*.jsonl")):
        return JsonlQuestions(path / f"{chosen('test')}.jsonl", strict=strict)
    if not path.is_dir() and ".jsonl" in path.suffixes:
        if split is not None:
            raise ValueError(
                f"split={split!r}: {place(path)} is one split; name another file, or put "
                "train.jsonl, test.jsonl, ... into a folder and name that"
            )
        return JsonlQuestions(path, strict=strict)
    raise UnknownFormatError(f"{place(path)} is no data set that is known: {KNOWN_FORMATS}")
