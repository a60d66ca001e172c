"""What the benchmarks ask: questions, and documents with distinct pictures and captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ragvl import Document

# Each is asked in one round only, so that no method can profit from having seen its question.
QUESTIONS = [
    f"What {asked} of the {thing} that stands {where}?"
    for thing, where in [("old tower", "beside the river"), ("small chapel", "behind the market")]
    for asked in [
        "color is the roof",
        "shape is the main door",
        "is written on the sign",
        "color are the walls",
        "is the highest point",
        "material is the gate",
        "animal is on the flag",
        "is the number on the front",
    ]
]

_THINGS = ["tower", "chapel", "bridge", "library", "station"]
_PLACES = ["beside the river", "behind the market", "on the hill", "near the harbor"]
_DETAILS = [
    "",
    ", photographed in the early morning",
    ", seen from the other side of the road in late autumn",
    ", shortly after it was painted again and its windows were replaced by larger ones",
]
# Of 9 to 24 tokens, so that a batch of them is ragged
CAPTIONS = [
    f"The old {thing} {place} in {1950 + number}{_DETAILS[number % len(_DETAILS)]}."
    for number, (place, thing) in enumerate((p, t) for p in _PLACES for t in _THINGS)
]

_PICTURE_SIZE = (640, 480)


def write_documents(folder: Path, count: int = len(CAPTIONS)) -> list[Document]:
    """Documents whose pictures are JPEG files of 640 x 480 pixels in `folder`."""
    rng = np.random.default_rng(0)
    documents = []
    for number, caption in enumerate(CAPTIONS[:count]):
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        path = folder / f"{number:02}.jpg"
        Image.fromarray(coarse).resize(_PICTURE_SIZE, Image.Resampling.BICUBIC).save(path)
        documents.append(Document(path, caption=caption))
    return documents
