"""What noise costs in training: time per step and peak memory, arm by arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ragvl.data.questions import QuestionSet
from ragvl.evaluation.measure import compare, peak_mib, time_in_turn
from ragvl.mllm import MLLM
from ragvl.training.examples import AnswerExamples, Collator
from ragvl.training.noise import ARMS, NoiseSettings, install_loss, uninstall_loss
from ragvl.training.trainer import LoraSettings, trainable

OVERHEAD_ARMS: dict[str, NoiseSettings] = {
    **ARMS,
    "token, pixels": replace(ARMS["token"], token_level="pixels"),
}


def training_overhead(
    mllm: MLLM,
    source: QuestionSet,
    *,
    arms: Mapping[str, NoiseSettings] | None = None,
    batch_size: int = 4,
    lora: LoraSettings | None = None,
    gradient_checkpointing: bool = False,
    rounds: int = 5,
) -> dict[str, dict[str, Any]]:
    """Time and memory of a generator's training step with each kind of noise, on the same model.

    A step is forward, backward and AdamW's update; batches are made ahead. Arms take turns, so that
    their ratio is fair on a machine that does other things as well.

    Args:
        mllm: on the device to measure; its weights are changed.
        source: the batch is of its first questions, those with one picture if there are such.
        arms: what is compared, by name; the first is what the others are against. None is
            `OVERHEAD_ARMS`.
        batch_size: examples in a step.
        lora: adapters; None trains the decoder's weights.
        gradient_checkpointing: compute activations again in the backward pass.
        rounds: timed steps of each arm, at least two.

    Returns:
        By arm: `ms` and `speedup` over the first arm, as spreads over rounds; `tokens`, the batch's
        size in tokens, padding included; `peak_mib` above the model, its gradients and the
        optimizer's state, None where the system does not tell.
    """
    model: Any = trainable(mllm, lora or LoraSettings(), freeze_vision=True)
    device = mllm.device
    if gradient_checkpointing:
        mllm.model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    collate = Collator(mllm)
    batches = {}
    arms = OVERHEAD_ARMS if arms is None else arms
    for name, noise in arms.items():
        examples = AnswerExamples(
            source, mllm, num_pictures=noise.data_level, hard=noise.hard_negatives
        )
        # Those with the fewest pictures of their own, to which the data level adds the most
        fewest = sorted(range(min(len(examples), 16 * batch_size)), key=examples.num_own_pictures)
        batch = collate([examples[fewest[i % len(fewest)]] for i in range(batch_size)])
        batches[name] = {key: tensor.to(device) for key, tensor in batch.items()}

    def step(name: str, noise: NoiseSettings) -> None:
        install_loss(mllm, noise)
        model(**batches[name]).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # gradients' memory is no arm's own

    steps = {name: partial(step, name, noise) for name, noise in arms.items()}
    model.train()
    try:
        samples = time_in_turn(steps, rounds=rounds, device=device)
        peaks = {name: peak_mib(steps[name], device) for name in arms}
    finally:
        model.eval()
        uninstall_loss(mllm)
    return {
        name: {**figures, "tokens": batches[name]["input_ids"].numel(), "peak_mib": peaks[name]}
        for name, figures in compare(samples, next(iter(arms))).items()
    }
