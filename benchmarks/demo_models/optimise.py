"""The loop that trains the tower, the retriever and the base model."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import get_cosine_schedule_with_warmup

from ragvl.files import whole_file
from ragvl.runtime import multiplies_bfloat16

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAVES = 120.0


def on(batch: dict[str, Tensor], device: str | torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def optimise(
    model: nn.Module,
    loss_of_step: Callable[[np.random.Generator], Tensor],
    *,
    steps: int,
    seed: int,
    name: str,
    checkpoint: Path,
    learning_rate: float = 1e-3,
    dtype: torch.dtype | None = None,
    report: Callable[[], None] | None = None,
) -> None:
    """AdamW with warm-up and cosine decay; weights stay in float32.

    What was broken off goes on from its last checkpoint, and ends with the weights that it would
    have had: each step draws from a generator of its own.

    Args:
        model: trained in place.
        loss_of_step: given what to draw from.
        steps: how many.
        seed: of what is drawn.
        name: in the log.
        checkpoint: a file that is there while training is under way.
        learning_rate: the largest.
        dtype: of products; None for bfloat16 where the device has it in hardware: elsewhere it is
            many times slower than float32.
        report: called every 250 steps, with the model in eval mode.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    scheduler = get_cosine_schedule_with_warmup(optimizer, min(200, steps // 10), steps)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    done = _load(checkpoint, parts, name)
    model.train()
    started = saved = time.perf_counter()
    running = math.nan
    device = next(model.parameters()).device.type
    if dtype is None:
        in_hardware = device != "cpu" or multiplies_bfloat16()
        dtype = torch.bfloat16 if in_hardware else torch.float32
    for step in range(done + 1, steps + 1):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = loss_of_step(np.random.default_rng([seed, step]))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        value = loss.item()
        running = value if math.isnan(running) else 0.98 * running + 0.02 * value
        now = time.perf_counter()
        if step % 50 == 0 or step == steps:
            logger.info(
                "%s step %d/%d loss %.4f (%.0f s)", name, step, steps, running, now - started
            )
        if report is not None and (step % 250 == 0 or step == steps):
            model.eval()
            report()
            model.train()
        if now - saved > _SECONDS_BETWEEN_SAVES:
            _save(checkpoint, parts, step)
            saved = now
    checkpoint.unlink(missing_ok=True)
    model.eval()


def _save(checkpoint: Path, parts: Mapping[str, Any], step: int) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    with whole_file(checkpoint) as draft:
        torch.save({**state, "step": step}, draft)


def _load(checkpoint: Path, parts: Mapping[str, Any], name: str) -> int:
    """Puts every part where it was, if there is a checkpoint; returns how many steps are done."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    for part, module in parts.items():
        module.load_state_dict(state[part])
    logger.info("%s goes on after step %d", name, state["step"])
    return int(state["step"])
