"""What a vision tower gives a forward pass can be seen, and replaced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.utils import ModelOutput

from ragvl.mllm import UnsupportedModelError
from ragvl.mllm.vision import vision_pass, wrap_image_features


class Base:
    """A model that asks its vision tower for features, as Hugging Face's do."""

    def __init__(self, output: Any) -> None:
        self.output = output
        self.runs = 0
        wrap_image_features(self)
        wrap_image_features(self)

    def get_image_features(self, pixel_values: torch.Tensor) -> Any:  # noqa: ARG002
        self.runs += 1
        return self.output

    def forward(self) -> Any:
        return self.get_image_features(pixel_values=torch.ones(1))


def output() -> ModelOutput:
    return ModelOutput(
        last_hidden_state=torch.zeros(9),
        pooler_output=[torch.ones(2), torch.ones(3)],
        attentions=None,
        deepstack_features=torch.arange(3),
    )


def test_a_pass_sees_what_decoders_read() -> None:
    base = Base(output())
    with vision_pass() as vision:
        assert not vision.requested
        assert base.forward() is base.output
        assert base.forward() is base.output
    assert vision.requested
    assert base.runs == 1, "wrapped once, and run once"
    features = vision.features
    assert features is not None
    assert list(features) == ["pooler_output/0", "pooler_output/1", "deepstack_features"]
    assert features["pooler_output/1"] is base.output.pooler_output[1]


def test_given_features_take_the_towers_place() -> None:
    base = Base(output())
    with vision_pass() as vision:
        base.forward()
    with vision_pass(vision.features) as again:
        result = base.forward()
    assert base.runs == 1
    assert isinstance(result, SimpleNamespace)
    assert [len(x) for x in result.pooler_output] == [2, 3]
    assert torch.equal(result.deepstack_features, torch.arange(3))
    assert again.features == vision.features


def test_whole_numbers_come_back_as_such() -> None:
    """Granite Vision names with them the layers that its features are added before."""
    base = Base(ModelOutput(deepstack_features=[(3, [torch.ones(2)]), (5, [torch.zeros(2)])]))
    with vision_pass() as vision:
        base.forward()
    with vision_pass(vision.features):
        result = base.forward()
    assert [layer for layer, _ in result.deepstack_features] == [3, 5]
    assert all(type(layer) is int for layer, _ in result.deepstack_features)


def test_each_pass_has_its_own_features() -> None:
    base = Base(output())
    with vision_pass() as outer:
        with vision_pass({"pooler_output": torch.zeros(1)}):
            assert base.forward().pooler_output == 0
        assert not outer.requested and outer.features is None
        assert base.forward() is base.output
    assert base.forward() is base.output, "and outside of one the tower runs"
    assert base.runs == 2


def test_an_output_of_another_form_is_refused() -> None:
    base = Base(ModelOutput(pooler_output=object()))
    with vision_pass() as vision:
        base.forward()
    with pytest.raises(UnsupportedModelError, match="gives a object"):
        _ = vision.features
