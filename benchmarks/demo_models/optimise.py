"""The loop that trains the retriever and the base model."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

logger = logging.getLogger(__name__)


def on(batch: dict[str, Tensor], device: str | torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def optimise(
    model: nn.Module,
    loss_of_step: Callable[[], Tensor],
    *,
    steps: int,
    name: str,
    report: Callable[[], None] | None = None,
) -> None:
    """AdamW with warm-up and cosine decay; bfloat16 products, float32 weights."""
    model.train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
    warmup = min(200, steps // 10)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    started, running = time.perf_counter(), math.nan
    device = next(model.parameters()).device.type
    for step in range(1, steps + 1):
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of_step()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        value = loss.item()
        running = value if math.isnan(running) else 0.98 * running + 0.02 * value
        if step % 50 == 0 or step == steps:
            seconds = time.perf_counter() - started
            logger.info("%s step %d/%d loss %.4f (%.0f s)", name, step, steps, running, seconds)
        if report is not None and step % 250 == 0:
            model.eval()
            report()
            model.train()
    model.eval()
