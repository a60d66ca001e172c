"""Experts compute a token alike in any company, and as they did before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen3VLMoeTextConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from ragvl.mllm.experts import wrap_experts

TOKENS, EXPERTS, CHOSEN, WIDTH = 50, 8, 3, 64


@pytest.fixture
def packed() -> list[bool]:
    """Whether the pass under way is of packed rows; tests set its only item."""
    return [True]


@pytest.fixture
def experts(packed: list[bool]) -> Any:
    config = Qwen3VLMoeTextConfig(
        hidden_size=WIDTH, moe_intermediate_size=96, num_experts=EXPERTS, num_experts_per_tok=CHOSEN
    )
    config._experts_implementation = "eager"
    module = Qwen3VLMoeTextExperts(config)
    rng = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.2, generator=rng)
    for _ in range(2):
        wrap_experts([nn.Sequential(module)], lambda: packed[0])
    return module


def routed(tokens: int = TOKENS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    scores = torch.randn(tokens, EXPERTS, generator=rng).softmax(-1)
    weights, index = scores.topk(CHOSEN)
    return torch.randn(tokens, WIDTH, generator=rng), index, weights


@torch.no_grad()
def test_a_tokens_bits_do_not_depend_on_its_company(experts: Any) -> None:
    inputs = routed()
    together = experts(*inputs)
    for rows in (slice(0, 1), slice(7, 9), slice(20, 50), torch.arange(TOKENS).flip(0)):
        assert torch.equal(experts(*(x[rows] for x in inputs)), together[rows])


@torch.no_grad()
def test_the_result_is_that_of_the_experts_own_code(experts: Any, packed: list[bool]) -> None:
    inputs = routed()
    result = experts(*inputs)
    packed[0] = False
    torch.testing.assert_close(result, type(experts).forward(experts, *inputs))
    assert torch.equal(experts(*inputs), type(experts).forward(experts, *inputs))


@torch.no_grad()
def test_no_tokens(experts: Any) -> None:
    assert experts(*routed(0)).shape == (0, WIDTH)


def test_other_modules_are_left_alone() -> None:
    layer = nn.Linear(4, 4)
    wrap_experts([layer], lambda: True)
    assert "forward" not in vars(layer)
