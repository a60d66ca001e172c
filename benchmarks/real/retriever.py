"""The retriever of the real world: first its projection is trained, then its tower.

Training takes hours, so what came out is kept in `trained/`: other machines start from that.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderModel

from ragvl.files import follow_umask, write_text
from ragvl.identity import name_of
from real.dual_encoder import Pairs, train, zero_shot
from real.layout import Layout
from real.learning import Lesson
from real.maps import maps_of
from real.tuning import Schedule, tune

logger = logging.getLogger(__name__)

TRAINED = Path(__file__).parent / "trained" / "retriever.safetensors"

_HELD_OUT = 0.1  # the share of texts
_SPOKEN = 2  # wordings that held-out pictures are looked for by: text and question


def make(
    layout: Layout,
    lessons: Sequence[Lesson],
    val: Sequence[Lesson],
    trained: Path | None = TRAINED,
    schedule: Schedule | None = None,
) -> Path:
    """Writes the retriever's folder; returns that.

    Args:
        trained: weights of an earlier training; None trains anew, and writes such a file
            (`trained.safetensors`) and its figures (`training.json`) beside the model.
        schedule: of training anew.
    """
    folders = layout.weights / "efficientnet-lite0", layout.weights / "minilm"
    out = layout.models / "retriever"
    model = zero_shot(*folders)
    figures = None
    if trained is None:
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        figures = train_both(model, layout, lessons, val, schedule or Schedule())
        weights = changed(before, model.state_dict())
    else:
        weights = load_file(trained)
    model.load_state_dict(model.state_dict() | weights)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folders[1]).save_pretrained(out)
    AutoImageProcessor.from_pretrained(folders[0], backend="pil").save_pretrained(out)
    if figures is not None:
        save_file(weights, out / "trained.safetensors")
        write_text(out / "training.json", json.dumps(figures, indent=1) + "\n")
    follow_umask(*out.glob("*.safetensors"))
    return out


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that training has changed, rounded to float16, which halves their bytes."""
    return {
        name: weight.half()
        for name, weight in after.items()
        if not torch.equal(weight, before[name])
    }


def train_both(
    model: VisionTextDualEncoderModel,
    layout: Layout,
    lessons: Sequence[Lesson],
    val: Sequence[Lesson],
    schedule: Schedule,
) -> dict[str, float]:
    """Trains projection and tower, in place; returns how many held-out pictures each step finds.

    `val` alone are few things of few kinds: a share of the lessons' texts is held out, too.
    """
    folders = layout.weights / "efficientnet-lite0", layout.weights / "minilm"
    parts = {
        "train": [one for one in lessons if _share(one.text) >= _HELD_OUT],
        "unseen": [one for one in lessons if _share(one.text) < _HELD_OUT],
        "val": list(val),
    }
    work = layout.root / "work"
    pairs = {
        name: Pairs.read(part, model, *folders, work / "features") for name, part in parts.items()
    }
    spoken = {name: pairs[name].texts[:, :_SPOKEN] for name in ("unseen", "val")}
    unseen = Pairs(
        torch.cat([pairs[name].features for name in spoken]), torch.cat([*spoken.values()])
    )
    figures = train(model, pairs["train"], unseen)
    logger.info("projection: %s", figures)

    processor = AutoImageProcessor.from_pretrained(folders[0], backend="pil")
    maps = {
        name: maps_of(
            part,
            model.vision_model,
            processor,
            work / "maps",
            views=schedule.views if name == "train" else 1,
            blocks=schedule.blocks,
        )
        for name, part in parts.items()
    }
    named = name_of("tuning", str(schedule), *(one.id for part in parts.values() for one in part))
    figures |= tune(
        model,
        (maps["train"], pairs["train"].texts),
        {name: (maps[name], texts) for name, texts in spoken.items()},
        work / "tuning" / f"{named}.pt",
        schedule,
    )
    logger.info("tower: %s", figures)
    counts = {"pairs": len(parts["train"]), "held_out": len(unseen.features)}
    return counts | figures


def _share(text: str) -> float:
    """In [0, 1), by chance, and the same for the same text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32
