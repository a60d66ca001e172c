"""The benchmarks' workload: questions of any length, and documents with pictures and captions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ragvl import Document, Reranker

# Each word is one token of the benchmark models, so that a question's length can be chosen
_VOCABULARY = """
old small red tall tower chapel bridge library station museum river market hill harbor road
roof door sign wall gate flag window number color shape material animal letter statue clock
stands shows has holds faces beside behind above near under the a this that which other painted
wooden stone iron first last next open closed north south front back side town
"""
WORDS = _VOCABULARY.split()

_THINGS = ["tower", "chapel", "bridge", "library", "station"]
_PLACES = ["beside the river", "behind the market", "on the hill", "near the harbor"]
_DETAILS = [
    "",
    ", photographed in the early morning",
    ", seen from the other side of the road in late autumn",
    ", shortly after it was painted again and its windows were replaced by larger ones",
]
# Square, so that a Qwen-VL, which keeps a picture's shape, makes a square of tokens of it
_PICTURE_SIZE = (560, 560)


def questions(count: int, num_words: int) -> list[str]:
    """So many different questions of `num_words` words, the same ones each time.

    In one round a question comes once, so that no method can profit from having seen it.
    """
    rng = random.Random(num_words)
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[f"What {' '.join(rng.choices(WORDS, k=num_words - 1))}?"] = None
    return list(drawn)


def fitting_questions(
    reranker: Reranker, document: Document, count: int, suffix_tokens: int
) -> list[str]:
    """Questions that leave about so many tokens to be computed in a prompt about `document`.

    About: the instruction and the turn's end are part of it and cannot be shortened.
    """
    shortest = 3  # words, of which there are enough for thousands of different questions
    _, suffix = reranker.split_prompt(questions(1, shortest)[0], document)
    return questions(count, shortest + max(0, suffix_tokens - len(suffix)))


def caption(number: int) -> str:
    """One of any number of captions; 9 to 24 tokens, so that a batch of them is ragged."""
    thing = _THINGS[number % len(_THINGS)]
    place = _PLACES[number // len(_THINGS) % len(_PLACES)]
    return f"The old {thing} {place} in {1950 + number}{_DETAILS[number % len(_DETAILS)]}."


def write_documents(folder: Path, count: int) -> list[Document]:
    """Documents whose pictures are JPEG files of 560 x 560 pixels in `folder`."""
    rng = np.random.default_rng(0)
    documents = []
    for number in range(count):
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        path = folder / f"{number:03}.jpg"
        Image.fromarray(coarse).resize(_PICTURE_SIZE, Image.Resampling.BICUBIC).save(path)
        documents.append(Document(path, caption=caption(number)))
    return documents


def unseen(documents: Sequence[Document], number: int) -> list[Document]:
    """The same pictures under captions of their own for each `number`: nothing cached fits them."""
    return [Document(d.image, caption=f"{d.caption} View {number:04}.") for d in documents]


def unseen_pictures(documents: Sequence[Document], number: int) -> list[Document]:
    """The same documents with pictures of other bytes for each `number`, and the same pixels."""
    return [
        # What comes after the end of a JPEG file is nobody's
        Document(Path(d.image).read_bytes() + b" %d" % number, caption=d.caption)
        for d in documents
    ]
