"""Small data sets in their published layouts, written for tests."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def write_picture(path: Path, color: str = "red") -> Path:
    """A picture of eight by eight pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)
    return path


# --- WebQA

WEBQA_IMAGES = {30000000: b"first picture", 30000001: b"second", 30000002: b"third picture"}


def webqa_fact(image_id: int) -> dict:
    return {
        "image_id": image_id,
        "title": f"t{image_id}",
        "caption": f"c{image_id}",
        "url": "",
        "imgUrl": "",
    }


def webqa_text_fact(snippet_id: str, **changes: object) -> dict:
    return {
        "title": f"t{snippet_id}",
        "fact": f"Fact {snippet_id}.",
        "url": "",
        "snippet_id": snippet_id,
        **changes,
    }


def webqa_sample(
    split: str = "test", gold: int = 30000000, negative: int = 30000001, **changes: object
) -> dict:
    return {
        "Q": '"What color is it?"',
        "A": ['"red"', '"crimson"'],
        "topic": "",
        "split": split,
        "Qcate": "color",
        "Guid": "g",
        "img_posFacts": [webqa_fact(gold)],
        "img_negFacts": [webqa_fact(negative)],
        "txt_posFacts": [],
        "txt_negFacts": [],
        **changes,
    }  # fmt: skip


def write_webqa(folder: Path, samples: object, images: dict[int, bytes] = WEBQA_IMAGES) -> Path:
    offsets, rows = [], b""
    for image_id, content in images.items():
        offsets.append(len(rows))
        rows += b"%d\t%s\n" % (image_id, base64.b64encode(content))
    (folder / "imgs.tsv").write_bytes(rows)
    (folder / "imgs.lineidx").write_text("".join(f"{offset}\n" for offset in offsets))
    (folder / "WebQA_train_val.json").write_text(json.dumps(samples))
    return folder


# --- MultimodalQA

MMQA_PICTURES = ("p0", "p1", "p2")


def mmqa_picture(id: str, **changes: object) -> dict[str, Any]:
    return {"title": f"Title {id}", "url": "", "id": id, "path": f"{id}.png", **changes}


def mmqa_text(id: str, **changes: object) -> dict[str, Any]:
    return {"title": f"Title {id}", "url": "", "id": id, "text": f"Text {id}.", **changes}


def mmqa_question(qid: str = "q0", type: str = "ImageQ", **changes: object) -> dict[str, Any]:
    answer = {"answer": "red", "type": "string", "modality": "image", "image_instances": []}
    metadata = {"type": type, "modalities": ["image"], "image_doc_ids": ["p0", "p1"]}
    return {
        "qid": qid,
        "question": "What color is the roof?",
        "answers": [answer],
        "metadata": metadata,
        "supporting_context": [{"doc_id": "p1", "doc_part": "image"}],
        **changes,
    }


def write_lines(path: Path, lines: Sequence[object], end: str = "\n") -> None:
    text = "".join(json.dumps(line) + end for line in lines)
    path.write_bytes(gzip.compress(text.encode()))


def write_mmqa(
    folder: Path, questions: Sequence[object], pictures: Sequence[object] | None = None
) -> Path:
    write_lines(folder / "MMQA_dev.jsonl.gz", questions)
    write_lines(
        folder / "MMQA_images.jsonl.gz", pictures or [mmqa_picture(id) for id in MMQA_PICTURES]
    )
    for id in MMQA_PICTURES:
        write_picture(folder / "final_dataset_images" / f"{id}.png")
    return folder


# --- Flickr30K and MSCOCO


def karpathy_image(
    name: str, *captions: str, split: str = "test", **more: object
) -> dict[str, Any]:
    sentences = [
        {"tokens": caption.split(), "raw": caption, "imgid": 0, "sentid": number}
        for number, caption in enumerate(captions)
    ]
    return {
        "sentids": [],
        "imgid": 0,
        "sentences": sentences,
        "split": split,
        "filename": name,
        **more,
    }


def write_karpathy(path: Path, images: list[object]) -> Path:
    path.write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    return path
