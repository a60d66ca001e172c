"""Prefixes are reused where a prompt in two halves gives what it gives in one piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES

from ragvl.mllm import MLLM
from ragvl.prefix_cache import reuse_problem


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "paligemma"])
def test_only_a_prefix_that_sees_its_suffix_is_a_problem(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    problem = reuse_problem(tiny_mllm(architecture))
    if architecture == "paligemma":
        assert problem is not None and "depends on what comes after" in problem
    else:
        assert problem is None


def test_attention_that_adds_to_the_scores_is_a_problem(tiny_model: Callable[[str], Path]) -> None:
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    attention = mllm.model.get_decoder().layers[0].self_attn
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: forward(*args, **kwargs, s_aux=torch.zeros(4))
    assert "s_aux" in str(reuse_problem(mllm))


def test_an_attention_scale_is_passed_on(tiny_model: Callable[[str], Path]) -> None:
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    mllm.model.get_decoder().layers[0].self_attn.scaling *= 2
    assert reuse_problem(mllm) is None


@pytest.mark.parametrize("kind", ["chunked_attention", "indexed_attention"])
def test_attention_that_differs_on_long_prompts_alone_is_a_problem(
    kind: str, tiny_model: Callable[[str], Path]
) -> None:
    """A chunk of Llama 4's is 8,192 tokens; an index picks a few thousand."""
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    mllm.model.config.get_text_config().layer_types = [kind, "full_attention"]
    assert f"what its layers of {kind} do in a large one" in str(reuse_problem(mllm))


def test_code_that_fails_is_a_problem_and_no_error(tiny_model: Callable[[str], Path]) -> None:
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    layer = mllm.model.get_decoder().layers[-1]
    forward = layer.forward

    def in_a_way_of_its_own(*args: Any, **kwargs: Any) -> Any:
        if args[0].shape[1] == 1:
            raise AttributeError("takes a prompt's tokens, not the last alone")
        return forward(*args, **kwargs)

    layer.forward = in_a_way_of_its_own
    assert "takes a prompt's tokens, not the last alone" in str(reuse_problem(mllm))
