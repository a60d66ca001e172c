"""What another process is asked to do; it finds functions of this module by their name."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ragvl import Document, Generator, Reranker


def pairs() -> list[tuple[str, Document]]:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (48, 60, 3), np.uint8)) for _ in range(3)]
    return [("What color is it?", Document(p, caption=f"Barn {i}")) for i, p in enumerate(pictures)]


def scored(reranker: Reranker) -> list[float]:
    return reranker.score(pairs()).tolist()


def answered(generator: Generator) -> str:
    query, document = pairs()[0]
    return generator.answer(query, [document], max_new_tokens=6)
