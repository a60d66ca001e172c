"""Tries an installed ragvl: `python wheels/smoke.py`, in an environment that holds nothing else.

In seconds: the extension's kernels against their references, and the shipped reranker on two drawn
pictures, both by the library and by the command. Where there is no torch, the extension alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import ragvl
from ragvl import _C

_SOURCE = Path(__file__).resolve().parent.parent
_QUESTION = "What color is the circle?"


def main() -> None:
    package = Path(ragvl.__file__).resolve().parent
    _check(not package.is_relative_to(_SOURCE / "ragvl"), f"{package} is the source, not the wheel")
    version = importlib.metadata.version("ragvl")
    _check(ragvl.__version__ == version, f"{ragvl.__version__} calls itself {version}")
    isa, architectures = _C.cpu_isa(), _C.cuda_architectures or "none"
    print(f"ragvl {version}: CPU kernels for {isa}, CUDA kernels for {architectures}")
    if importlib.util.find_spec("torch") is None:
        print("there is no torch here: the extension alone was tried")
        return
    _kernels()
    _rerank(package / "assets" / "tiny-reranker")


def _kernels() -> None:
    import torch

    from ragvl import ops

    generator = torch.Generator().manual_seed(0)
    hidden, rows = (torch.randn(3, 64, generator=generator) for _ in range(2))
    last = torch.tensor([0, 2])
    scores = [
        ops.relevance_head(hidden, last, None, rows[:2], backend=backend)[0]
        for backend in ("cpu", "reference")
    ]
    difference = (scores[0] - scores[1]).abs().max().item()
    _check(difference < 1e-5, f"relevance_head differs from its reference by {difference}")


def _rerank(model: Path) -> None:
    from PIL import Image, ImageDraw

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{color}.png" for color in ("red", "blue")]
        for path in paths:
            picture = Image.new("RGB", (96, 96), "white")
            ImageDraw.Draw(picture).ellipse((20, 20, 76, 76), fill=path.stem)
            picture.save(path)
        documents = [ragvl.Document(image=path) for path in paths]
        ranked = ragvl.fast_rerank(_QUESTION, documents, model=model, top_k=2)
        command = [sys.executable, "-m", "ragvl.cli", "rerank", _QUESTION, *map(str, paths)]
        printed = subprocess.run(
            [*command, "--model", str(model), "--json"], check=True, capture_output=True, text=True
        ).stdout
    _check(sorted(one.index for one in ranked) == [0, 1], "a document was lost")
    _check(all(0 < one.score < 1 for one in ranked), "a score is no probability")
    print(f"reranked: {[round(one.score, 4) for one in ranked]}; the command printed")
    print(json.dumps(json.loads(printed))[:200])


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise SystemExit(f"smoke test: {otherwise}")


if __name__ == "__main__":
    main()
