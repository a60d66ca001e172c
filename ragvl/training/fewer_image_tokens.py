"""Training for prefixes that keep a share of their pictures' tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ragvl.mllm import MLLM, LookAtAttention, UnsupportedModelError, looking_at_attention
from ragvl.prefix_cache.image_tokens import kept_tokens

PREFIX_LENGTHS, PICTURE_SIZES = "prefix_lengths", "picture_sizes"
"""Of a batch: (B,) where each prompt's rest begins, and (B, P) its prefix's pictures' tokens."""

_MASKS = ("sdpa", "eager")  # attention whose masks are tensors that can be added to


# What a block of `through_backward` ends
_step: ContextVar[contextlib.ExitStack | None] = ContextVar("step", default=None)


def check_trainable(mllm: MLLM) -> None:
    """Refuses a model in which tokens cannot be hidden.

    Raises:
        UnsupportedModelError: the message says why.
    """
    attention = mllm.decoder.attention
    if attention not in _MASKS:
        raise UnsupportedModelError(
            f"image_tokens hides tokens by a mask, which attn_implementation={attention!r} does "
            "not take: use 'sdpa' or 'eager'"
        )


@contextlib.contextmanager
def through_backward() -> Iterator[None]:
    """A block around a forward and its backward pass, in which hidden tokens stay hidden.

    Activation checkpointing computes layers again in the backward pass, which is kept in this
    thread for it.
    """
    with contextlib.ExitStack() as stack, torch.autograd.set_multithreading_enabled(False):
        token = _step.set(stack)
        try:
            yield
        finally:
            _step.reset(token)


@contextlib.contextmanager
def fewer_image_tokens(
    mllm: MLLM, inputs: Mapping[str, Any], lengths: Tensor, sizes: Tensor, share: float
) -> Iterator[None]:
    """A block in which the rest of each prompt sees only the tokens that its prefix would keep.

    They are chosen in a pass of their own, without dropout and gradients. In a block of
    `through_backward` they stay hidden until that ends.

    Args:
        mllm: the model.
        inputs: of its forward, prompts filled up on the right.
        lengths: see `PREFIX_LENGTHS`.
        sizes: see `PICTURE_SIZES`.
        share: of each picture's tokens, those that are kept.
    """
    hidden = _hidden(mllm, inputs, lengths.tolist(), sizes.tolist(), share)
    if hidden is None:
        yield
        return
    with contextlib.ExitStack() as block:
        (_step.get() or block).enter_context(looking_at_attention(_hiding(hidden)))
        yield


@torch.no_grad()
def _hidden(
    mllm: MLLM,
    inputs: Mapping[str, Any],
    lengths: Sequence[int],
    sizes: Sequence[Sequence[int]],
    share: float,
) -> Tensor | None:
    """(B, 1, T, T) bool: which tokens may not see which; None if there is nothing to hide."""
    ids, token = inputs["input_ids"], mllm.prompting.image_token_id
    rows = [row for row, own in enumerate(sizes) if any(own)]
    if not rows:
        return None
    every: list[Tensor] = []
    owners = set(mllm.kv_layout.owners)

    def watch(layer: int, keys: Tensor, mask: Any) -> Any:
        if layer in owners:
            every.append(keys)
        return mask

    with looking_at_attention(watch), _without_dropout(mllm.model):
        mllm.model.base_model(**inputs)
    dropped = torch.zeros_like(ids, dtype=torch.bool)
    for row in rows:
        own = [size for size in sizes[row] if size]
        prefix = ids[row, : lengths[row]].tolist()
        dropped[row, : lengths[row]] = True
        dropped[row, kept_tokens(prefix, token, own, [keys[row] for keys in every], share)] = False
    places = torch.arange(ids.shape[1], device=ids.device)
    is_rest = places >= torch.tensor(lengths, device=ids.device)[:, None]
    return is_rest[:, None, :, None] & dropped[:, None, None]


def _hiding(hidden: Tensor) -> LookAtAttention:
    """Adds to every mask what is hidden."""

    def hide(_: int, keys: Tensor, mask: Any) -> Tensor:
        if mask is None:  # what that means to Hugging Face, where there is more than one query
            length = keys.shape[2]
            mask = torch.ones(length, length, dtype=torch.bool, device=keys.device).tril()
        if mask.dtype == torch.bool:
            return mask & ~hidden
        return mask.masked_fill(hidden, torch.finfo(mask.dtype).min)

    return hide


@contextlib.contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
