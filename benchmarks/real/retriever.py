"""Trains the retriever of the real world: first its projection, then its tower."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoTokenizer

from ragvl.files import follow_umask, write_text
from ragvl.identity import name_of
from real.dual_encoder import Pairs, train, zero_shot
from real.layout import Layout
from real.learning import Lesson
from real.maps import maps_of
from real.tuning import Schedule, tune

logger = logging.getLogger(__name__)

_HELD_OUT = 0.1  # the share of texts
_SPOKEN = 2  # wordings that held-out pictures are looked for by: text and question


def make(
    layout: Layout,
    lessons: Sequence[Lesson],
    val: Sequence[Lesson],
    schedule: Schedule | None = None,
) -> Path:
    """Trains the retriever and writes its folder; returns that.

    `val` alone are few things of few kinds: a share of the lessons' texts is held out, too.
    """
    schedule = schedule or Schedule()
    folders = layout.weights / "efficientnet-lite0", layout.weights / "minilm"
    model = zero_shot(*folders)
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
    out = layout.models / "retriever"
    model.save_pretrained(out)
    follow_umask(*out.glob("*.safetensors"))
    AutoTokenizer.from_pretrained(folders[1]).save_pretrained(out)
    processor.save_pretrained(out)
    counts = {"pairs": len(parts["train"]), "held_out": len(unseen.features)}
    write_text(out / "training.json", json.dumps(counts | figures, indent=1) + "\n")
    return out


def _share(text: str) -> float:
    """In [0, 1), by chance, and the same for the same text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32
