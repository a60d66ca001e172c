"""What reranking adds to a query, and noise to a training step: time and peak memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ragvl.data.document import Document
from ragvl.data.query import Query
from ragvl.data.questions import QuestionSet, refuse_pictures
from ragvl.mllm import MLLM
from ragvl.prefix_cache import PictureSupply, PrefixCache, reuse_problem
from ragvl.profiling.timing import Timing, compare, peak_mib, time_in_turn
from ragvl.reranker import Reranker, resolve_template
from ragvl.reranker.heads import AnswerHead, relevance
from ragvl.reranker.prompts import Prompts
from ragvl.reranker.scorer import raise_error
from ragvl.reranker.whole_prompts import WholePrompts
from ragvl.training.adapters import LoraSettings, trainable
from ragvl.training.examples import AnswerExamples, Collator
from ragvl.training.noise import ARMS, NoiseSettings, install_loss, uninstall_loss


class RerankingCost(Timing):
    """What a method of reranking takes.

    `peak_mib` is above what is held between queries, None where the system does not report it;
    `difference` is the largest between a relevance and the serial one.
    """

    peak_mib: float | None
    difference: float


class TrainingCost(Timing):
    """What a training step takes.

    `tokens` is the batch's size, padding included; `peak_mib` is above the model, its gradients and
    the optimizer's state, None where the system does not report it.
    """

    tokens: int
    peak_mib: float | None


OVERHEAD_ARMS: dict[str, NoiseSettings] = {
    **ARMS,
    "token, pixels": replace(ARMS["token"], token_level="pixels"),
}


def reranking_overhead(
    mllm: MLLM, source: QuestionSet, *, num_candidates: int = 20, rounds: int = 5
) -> dict[str, RerankingCost]:
    """Time and memory of reranking one question's candidates, method by method.

    "serial" runs each whole prompt by itself, "batched" all of them at once; "cold" caches prefixes
    of documents never seen before, "warm" has them cached. Methods take turns, each round with
    another question. Of a model whose prefixes cannot be reused, only the first two.

    Args:
        mllm: the reranker's model, on the device to measure.
        source: its first documents are the candidates of its first questions.
        num_candidates: how many.
        rounds: timed queries of each method, at least two.

    Returns:
        By method, with speedups over "serial".

    Raises:
        ValueError: the data set has no documents, or fewer than two rounds.
    """
    if rounds < 2:
        raise ValueError(f"rounds={rounds}: expected at least 2")
    template = resolve_template(source.template)
    documents = list(source.documents(ids=source.document_ids()[:num_candidates]))
    if not documents:
        raise ValueError(f"{source.name} has no documents to rerank")
    refuse_pictures(source.questions)
    texts = [question.text for question in source.questions]
    head = AnswerHead(mllm, *mllm.prompting.answer_token_ids("Yes", "No"))
    pictures = PictureSupply(mllm, PrefixCache("scratch"), model="")  # and so keeps none
    whole = WholePrompts(
        mllm, Prompts(mllm.prompting, template), head, pictures, deterministic=False
    )

    def score_whole(text: str, batch_size: int) -> Tensor:
        scores = torch.empty(len(documents))
        pairs = [(Query(text), document) for document in documents]
        for scored in whole.score(pairs, batch_size, raise_error):
            scores[list(scored.indices)] = scored.raw
        return relevance(scores)

    methods: dict[str, Callable[[str], Tensor]] = {
        "serial": lambda text: score_whole(text, 1),
        "batched": lambda text: score_whole(text, len(documents)),
    }
    if reuse_problem(mllm) is None:
        for name, cache in (("cold", None), ("warm", "auto")):
            reranker = Reranker(mllm, template=template, prefix_cache=cache)
            methods[name] = partial(_score_all, reranker, documents)
            if cache is not None:
                reranker.warm(documents, progress=False)
    differences = {
        name: float((method(texts[0]) - methods["serial"](texts[0])).abs().max())
        for name, method in methods.items()
    }
    calls = {
        name: partial(_score_next, method, itertools.cycle(texts))
        for name, method in methods.items()
    }
    samples = time_in_turn(calls, rounds=rounds, device=mllm.device)
    return {
        name: {
            **timing,
            "peak_mib": peak_mib(calls[name], mllm.device),
            "difference": differences[name],
        }
        for name, timing in compare(samples, "serial").items()
    }


def _score_all(reranker: Reranker, documents: Sequence[Document], text: str) -> Tensor:
    return reranker.score([(text, document) for document in documents], progress=False)


def _score_next(method: Callable[[str], Tensor], texts: Iterator[str]) -> Tensor:
    return method(next(texts))


def training_overhead(
    mllm: MLLM,
    source: QuestionSet,
    *,
    arms: Mapping[str, NoiseSettings] | None = None,
    batch_size: int = 4,
    lora: LoraSettings | None = None,
    gradient_checkpointing: bool = False,
    rounds: int = 5,
) -> dict[str, TrainingCost]:
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
        By arm, with speedups over the first one.
    """
    collate = Collator(mllm)
    batches = {}
    arms = OVERHEAD_ARMS if arms is None else arms
    for name, noise in arms.items():
        examples = AnswerExamples(
            source, mllm.prompting, num_pictures=noise.data_level, hard=noise.hard_negatives
        )
        # Those with the fewest pictures of their own, to which the data level adds the most
        fewest = sorted(range(min(len(examples), 16 * batch_size)), key=examples.num_own_pictures)
        batches[name] = collate([examples[fewest[i % len(fewest)]] for i in range(batch_size)])
    return step_overhead(
        mllm,
        arms,
        batches,
        lora=lora,
        gradient_checkpointing=gradient_checkpointing,
        rounds=rounds,
    )


def step_overhead(
    mllm: MLLM,
    arms: Mapping[str, NoiseSettings],
    batches: Mapping[str, Mapping[str, Tensor]],
    *,
    lora: LoraSettings | None = None,
    gradient_checkpointing: bool = False,
    rounds: int = 5,
) -> dict[str, TrainingCost]:
    """`training_overhead` on batches that are given, one for each arm."""
    model: Any = trainable(mllm, lora or LoraSettings(), freeze_vision=True)
    device = mllm.device
    if gradient_checkpointing:
        # Older versions of transformers have it by the second name, newer ones warn of that
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        next(getattr(mllm.model, name) for name in names if hasattr(mllm.model, name))()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    placed = {
        name: {key: tensor.to(device) for key, tensor in batch.items()}
        for name, batch in batches.items()
    }

    def step(name: str, noise: NoiseSettings) -> None:
        install_loss(mllm, noise)
        model(**placed[name]).loss.backward()
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
        name: {**timing, "tokens": placed[name]["input_ids"].numel(), "peak_mib": peaks[name]}
        for name, timing in compare(samples, next(iter(arms))).items()
    }
