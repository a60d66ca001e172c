"""What a vision tower gives a forward pass can be seen, and replaced."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain import picture
from transformers.utils import ModelOutput

from ragvl.mllm import MLLM, UnsupportedModelError
from ragvl.mllm.vision import join_features, learn_join, vision_pass, wrap_image_features


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


# --- several pictures ---------------------------------------------------------------------------


def random_features(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {path: torch.randn(shape) for path, shape in shapes.items()}


def test_how_features_join_is_learned_from_an_example() -> None:
    shapes = {
        "pooler_output/0": (3, 4),  # an item a picture
        "stack/0": (3, 4),  # an item a layer, the pictures' rows in each
        "stack/1": (3, 4),
        "tiles/0/0": (2, 4),  # an item a layer, with an item a picture
    }
    parts = [random_features(shapes) | {"layer": torch.tensor(5)} for _ in range(3)]

    def together(*pictures: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        joined = {f"pooler_output/{i}": one["pooler_output/0"] for i, one in enumerate(pictures)}
        for path in ("stack/0", "stack/1"):
            joined[path] = torch.cat([one[path] for one in pictures])
        joined |= {f"tiles/0/{i}": one["tiles/0/0"] for i, one in enumerate(pictures)}
        return joined | {"layer": torch.tensor(5)}

    join = learn_join(parts[0], parts[1], together(*parts[:2]), 1e-3)
    assert join is not None
    for pictures in (parts, parts[::-1], parts[:1]):
        result, expected = join_features(join, pictures), together(*pictures)
        assert result.keys() == expected.keys()
        assert all(torch.equal(result[path], expected[path]) for path in expected)


@pytest.mark.parametrize("change", ["values", "order", "shape", "names", "number"])
def test_features_that_depend_on_their_company_join_in_no_way(change: str) -> None:
    first, second = (random_features({"pooler_output": (2, 3)}) for _ in range(2))
    rows = torch.cat([first["pooler_output"], second["pooler_output"]])
    both = {
        "values": {"pooler_output": rows + 1},
        "order": {"pooler_output": rows.flip(0)},
        "shape": {"pooler_output": rows[:3]},
        "names": {"other": rows},
        "number": {"pooler_output/0": rows, "pooler_output/1": rows, "pooler_output/2": rows},
    }[change]
    assert learn_join(first, second, both, 1e-3) is None


def test_a_pass_may_end_with_the_tower() -> None:
    base = Base(output())
    with vision_pass(only=True) as vision:
        base.forward()
        pytest.fail("the pass goes on")
    assert vision.features is not None and base.runs == 1


@pytest.mark.parametrize(
    ("architecture", "unread", "read"),
    [("idefics3", "pixel_attention_mask", None), ("qwen2_vl", None, "image_grid_thw")],
)
def test_what_only_the_tower_reads_is_not_kept_beside_features(
    architecture: str,
    unread: str | None,
    read: str | None,
    tiny_mllm: Callable[[str], MLLM],
) -> None:
    mllm = tiny_mllm(architecture)
    inputs = mllm.prompting.encode_image(picture(0, 90, 60))
    tensors = mllm.with_features(inputs).tensors
    assert tensors.keys() == inputs.tensors.keys()
    assert tensors["pixel_values"].numel() == 1
    if unread is not None:
        assert tensors[unread].numel() == 1 < inputs.tensors[unread].numel()
    if read is not None:
        assert torch.equal(tensors[read], inputs.tensors[read])
