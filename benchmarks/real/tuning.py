"""Fine-tunes the later blocks of a dual encoder's tower on pairs of picture and text.

The tower of ImageNet knows photos; drawings, flags or food in outline it learns here. Of the text
encoder only the projection is trained. Weights are averaged over steps, and those that find most
held-out pictures are kept; where none finds more than at first, the model stays as it was.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import VisionTextDualEncoderModel

from ragvl.files import whole_file
from real.dual_encoder import Pairs, contrast, recall
from real.maps import EARLY, VIEWS, Maps, late

logger = logging.getLogger(__name__)

_SAVED = 300  # seconds of work between saves
_BATCH = 64  # pictures, where nothing is learned


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Args:
        steps: of training.
        batch_size: pairs a step; the others of a step are what a picture is not.
        tower_rate: the learning rate of the tower's blocks; it rises for a twentieth of the steps
            and goes down to zero.
        projection_rate: that of the projections.
        average: the weight of the past in the average of a step's weights.
        tested: steps between tests on held-out pairs.
        seed: of the order of pairs.
        views: of each picture.
        blocks: the first that are trained, by number.
    """

    steps: int = 500
    batch_size: int = 128
    tower_rate: float = 1e-4
    projection_rate: float = 3e-4
    average: float = 0.99
    tested: int = 100
    seed: int = 0
    views: int = VIEWS
    blocks: int = EARLY


def tune(
    model: VisionTextDualEncoderModel,
    pairs: tuple[Maps, Tensor],
    held_out: Mapping[str, tuple[Maps, Tensor]],
    state: Path,
    schedule: Schedule,
) -> dict[str, float]:
    """Trains the tower's blocks from `schedule.blocks` on, and both projections.

    Args:
        model: changed in place.
        pairs: maps of pictures, and vectors (pictures, wordings, width) of their texts.
        held_out: sets of such, with texts that `pairs` has none of. What finds most, by the mean
            over the sets, is kept.
        state: the file that keeps all that is needed to go on; it is saved every few minutes.
        schedule: how long and how fast.

    Returns:
        the share of pictures of each held-out set that are found, at first (`NAME_first`) and with
        what was kept (`NAME`); and the step of the latter.
    """
    training = _Training(model, schedule)
    if state.exists():
        training.load(torch.load(state, weights_only=True))
        logger.info("goes on at step %d of %d", training.step, schedule.steps)
    else:
        training.test(held_out)
    saved = time.monotonic()
    while training.step < schedule.steps:
        loss = training.learn(*pairs)
        if training.step % 10 == 0:
            logger.info("step %d loss %.3f", training.step, loss)
        if training.step % schedule.tested == 0 or training.step == schedule.steps:
            training.test(held_out)
        if time.monotonic() - saved > _SAVED or training.step == schedule.steps:
            with whole_file(state) as draft:
                torch.save(training.state(), draft)
            saved = time.monotonic()
    return training.keep()


class _Training:
    def __init__(self, model: VisionTextDualEncoderModel, schedule: Schedule) -> None:
        self._model, self._schedule = model, schedule
        self._average = copy.deepcopy(model).eval()
        tower = model.vision_model
        groups = [
            {"params": list(_trained_of(tower, schedule.blocks)), "lr": schedule.tower_rate},
            {
                "params": [
                    *model.visual_projection.parameters(),
                    *model.text_projection.parameters(),
                ],
                "lr": schedule.projection_rate,
            },
        ]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        warmup = max(schedule.steps // 20, 1)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: min(
                (step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
            ),
        )
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._learned = [names[id(one)] for group in groups for one in group["params"]]
        self.step = 0
        self._first: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._kept: dict[str, Tensor] = {}

    def learn(self, maps: Maps, texts: Tensor) -> float:
        """A step; its loss."""
        schedule = self._schedule
        rng = np.random.default_rng((schedule.seed, self.step))
        rows = rng.choice(len(texts), min(schedule.batch_size, len(texts)), replace=False)
        seen = maps.read(rows, rng.integers(schedule.views, size=len(rows)))
        said = texts[rows, rng.integers(texts.shape[1], size=len(rows))]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = late(self._model.vision_model, seen, schedule.blocks)
        pictures = F.normalize(self._model.visual_projection(features.float()), dim=-1)
        loss = contrast(pictures, F.normalize(self._model.text_projection(said), dim=-1), said)
        loss.backward()
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        self.step += 1
        past = min(schedule.average, self.step / (self.step + 10))
        with torch.no_grad():
            average = dict(self._average.named_parameters())
            for name, parameter in self._model.named_parameters():
                if name in self._learned:
                    average[name].lerp_(parameter, 1 - past)
        return loss.item()

    @torch.inference_mode()
    def test(self, held_out: Mapping[str, tuple[Maps, Tensor]]) -> None:
        """Measures the average of weights, and keeps it if it is the best so far."""
        model = self._average
        found = {"step": float(self.step)}
        for name, (maps, texts) in held_out.items():
            features = []
            for start in range(0, len(texts), _BATCH):
                rows = np.arange(start, min(start + _BATCH, len(texts)))
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    seen = maps.read(rows, np.zeros_like(rows))
                    features.append(late(model.vision_model, seen, self._schedule.blocks).float())
            vectors = F.normalize(model.text_projection(texts), dim=-1)
            found[name] = recall(
                model.visual_projection, Pairs(torch.cat(features), vectors), texts
            )
        logger.info("found at step %d: %s", self.step, found)
        if not self._first:
            self._first = found
        if not self._best or _mean(found) > _mean(self._best):
            self._best = found
            learned = model.state_dict()
            self._kept = {name: learned[name].clone() for name in self._learned}

    def keep(self) -> dict[str, float]:
        """Gives the model the weights that found most; how many."""
        self._model.load_state_dict(self._model.state_dict() | self._kept)
        first = {f"{name}_first": share for name, share in self._first.items() if name != "step"}
        return first | self._best

    def state(self) -> dict[str, object]:
        """All that goes on from here needs."""
        return {
            "step": self.step,
            "first": self._first,
            "best": self._best,
            "kept": self._kept,
            "learned": self._parts(self._model),
            "average": self._parts(self._average),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }

    def load(self, state: Mapping) -> None:
        """Goes on from a state."""
        self.step, self._first, self._best = state["step"], state["first"], state["best"]
        self._kept = state["kept"]
        for model, part in ((self._model, "learned"), (self._average, "average")):
            model.load_state_dict(model.state_dict() | state[part])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])

    def _parts(self, model: nn.Module) -> dict[str, Tensor]:
        weights = model.state_dict()
        return {name: weights[name] for name in self._learned}


def _trained_of(tower: nn.Module, blocks: int) -> Iterator[nn.Parameter]:
    yield from tower.blocks[blocks:].parameters()
    yield from tower.head.parameters()


def _mean(found: Mapping[str, float]) -> float:
    shares = [share for name, share in found.items() if name != "step"]
    return sum(shares) / len(shares)
