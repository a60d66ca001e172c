"""What of a model's work may be reused, by trying it on small prompts."""

from __future__ import annotations

from functools import partial

import torch

from ragvl.messages import reason
from ragvl.mllm import MLLM, Prompt, PromptTooLongError, UnsupportedModelError
from ragvl.mllm.head import same
from ragvl.mllm.inputs import probe_image
from ragvl.mllm.int8 import unrounded
from ragvl.model_files import shown_list
from ragvl.prefix_cache.pages import (
    PagePool,
    num_pages,
    num_state_pages,
    page_table,
    pages_in_turn,
)
from ragvl.runtime import is_out_of_memory
from ragvl.torch_context import default_torch_context

# What a configuration's `layer_types` may name: layers whose tokens see all before them or those
# in a window, or that carry a state. Others, as Llama 4's chunks and attention to tokens that an
# index picks, do the same on a prompt that is small enough.
_KNOWN_KINDS = {"full_attention", "sliding_attention", "linear_attention", "conv"}
# What code of transformers raises that does not go together with ours
_FAILURES = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)


@default_torch_context
@torch.inference_mode()
@unrounded()
def reuse_problem(mllm: MLLM) -> str | None:
    """Why a prefix cannot be computed once and kept, or None where it can.

    Raises:
        UnsupportedModelError: the model fails on a prompt with a picture.
    """
    kinds = getattr(mllm.model.config.get_text_config(), "layer_types", None) or ()
    if unknown := sorted(set(kinds) - _KNOWN_KINDS):
        return f"no small prompt shows what its layers of {shown_list(unknown)} do in a large one"
    prompt = mllm.prompting.probe_prompt()
    try:
        sees_suffix = _prefix_sees_suffix(mllm, prompt)
    except _FAILURES as error:
        if is_out_of_memory(error) or isinstance(error, PromptTooLongError):
            raise
        raise UnsupportedModelError(
            f"{mllm.architecture} fails on a prompt with a picture: {reason(error)}"
        ) from error
    if sees_suffix:
        return "what it computes for a prompt's beginning depends on what comes after"
    try:
        if _halves_agree(mllm, prompt, _image_end(mllm, prompt) + 1):
            return None
        return "a prompt in two halves gives another result than in one piece"
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        return f"its decoder is built in a way of its own: {reason(error)}"


@default_torch_context
@torch.inference_mode()
@unrounded()
def picture_suffix_problem(mllm: MLLM) -> str | None:
    """Why a suffix with a picture cannot go on from a cached prefix, or None where it can.

    Of a model whose prefixes can be reused.
    """
    first = mllm.prompting.probe_prompt()
    second = mllm.prompting.probe_prompt(mllm.prompting.encode_image(probe_image(96, 48)))
    both = Prompt([*first.input_ids, *second.input_ids], (*first.images, *second.images))
    try:
        if _halves_agree(mllm, both, _image_end(mllm, first) + 1):
            return None
        return "what it computes for a picture depends on the picture's later tokens"
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        return f"its decoder is built in a way of its own: {reason(error)}"


@default_torch_context
@torch.inference_mode()
@unrounded()
def features_problem(mllm: MLLM) -> str | None:
    """Why a picture's visual tokens cannot be computed once and kept, or None where they can."""
    prompting = mllm.prompting
    images = [prompting.encode_image(image) for image in (probe_image(), probe_image(96, 48))]
    try:
        kept = [mllm.with_features(image) for image in images]
        given, expected = (
            mllm.hidden_states([prompting.probe_prompt(image) for image in each])
            for each in (kept, images)
        )
    except _FAILURES as error:
        if is_out_of_memory(error):
            raise
        return reason(error)
    if same(given, expected, mllm.rounding):
        return None
    return "a prompt with visual tokens that were kept gives another result"


def _prefix_sees_suffix(mllm: MLLM, prompt: Prompt) -> bool:
    """Whether hidden states depend on later tokens, as in PaliGemma's bidirectional prompts.

    The tokens after the picture are reversed to see.
    """
    ids, split = prompt.input_ids, _image_end(mllm, prompt)
    reversed_end = Prompt([*ids[:split], *ids[: split - 1 : -1]], prompt.images)
    one, other = mllm.hidden_states([prompt, reversed_end])[:, :split]
    # Rows of one batch are rounded alike, so a small difference is one already
    return not same(one, other, tolerance=1e-3)


def _halves_agree(mllm: MLLM, prompt: Prompt, split: int) -> bool:
    """Whether a prompt gives the same in one piece and as a suffix on its cached prefix.

    The first picture is in the prefix, which has `split` tokens.
    """
    whole = mllm.hidden_states([prompt])[0, -1]
    state_pages = num_state_pages(mllm.kv_layout)
    pool = PagePool(mllm.kv_layout, num_pages(split, state_pages), mllm.device)
    (pages,) = pages_in_turn([split], state_pages)
    prefix = Prompt(prompt.input_ids[:split], prompt.images[:1])
    (start,) = mllm.prefill([prefix], pool.writer([pages], [split]))
    suffix = torch.tensor(prompt.input_ids[split:], device=mllm.device)
    zero, prefix_length, suffix_length = (
        torch.tensor([n], dtype=torch.int32, device=mllm.device) for n in (0, split, len(suffix))
    )
    pool.write_states(pages, start.states)
    table = page_table([pages], len(pages)).to(mllm.device)
    prefixes = pool.batches(
        table,
        prefix_length,
        zero,
        suffix_length,
        len(suffix),
    )
    states = partial(pool.states, table)
    last_rows = suffix_length.long() - 1
    if others := prompt.images[1:]:
        rest = Prompt(prompt.input_ids[split:], others)
        halves = mllm.extend_with_pictures(rest, start.next_position, last_rows, prefixes, states)
    else:
        positions = torch.arange(len(suffix), device=mllm.device) + start.next_position
        halves = mllm.decoder.extend(suffix, positions, last_rows, prefixes, states)
    return same(halves[0], whole, mllm.rounding)


def _image_end(mllm: MLLM, prompt: Prompt) -> int:
    """The place after the picture's last token."""
    return len(prompt) - prompt.input_ids[::-1].index(mllm.prompting.image_token_id)
