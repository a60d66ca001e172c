"""Training the later blocks of a tower behind what the early ones made of pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from real.dual_encoder import Pairs, recall
from real.learning import Lesson
from real.maps import Maps, early, late, maps_of
from real.tuning import Schedule, tune
from real.weights import image_processor
from torch import Tensor
from torch.nn import functional as F
from transformers import VisionTextDualEncoderModel

from ragvl.mllm import ConvolutionalVisionConfig, ConvolutionalVisionModel

SIZE, WIDTH, BLOCKS = 32, 16, 1
SCHEDULE = Schedule(
    steps=60,
    batch_size=20,
    tower_rate=3e-3,
    projection_rate=1e-2,
    average=0.8,
    tested=10,
    views=2,
    blocks=BLOCKS,
)


def model_of(seed: int = 0) -> VisionTextDualEncoderModel:
    torch.manual_seed(seed)
    vision = ConvolutionalVisionConfig(
        stages=[(8, 3, 2, 1, 1), (8, 3, 2, 2, 1)],
        stem_channels=8,
        hidden_size=12 + 3,
        image_size=SIZE,
        norm="group",
        num_classes=3,
    )
    text = transformers.BertConfig(
        vocab_size=9,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model = VisionTextDualEncoderModel(
        transformers.VisionTextDualEncoderConfig(
            vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=WIDTH
        )
    )
    with torch.no_grad():
        model.text_projection.weight.copy_(torch.eye(WIDTH))
    return model.eval()


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> list[Lesson]:
    """Pictures of four colors, above one that says nothing."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    colors = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 255], [255, 255, 0]], dtype=np.uint8)
    written = []
    for number in range(70):
        path = folder / f"{number}.png"
        pixels = np.stack([colors[number % 4], rng.integers(0, 256, 3, dtype=np.uint8)])[:, None]
        Image.fromarray(pixels).resize((40, 30), Image.Resampling.NEAREST).save(path)
        written.append(Lesson(str(number), path, f"A {number}.", "Numbers."))
    return written


def test_early_and_late_blocks_make_what_the_tower_does() -> None:
    tower = model_of().vision_model
    pixels = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = tower(pixels).pooler_output
        for blocks in range(3):
            found = late(tower, early(tower, pixels, blocks), blocks)
            torch.testing.assert_close(found, expected)


def test_maps_are_kept_by_view(lessons: list[Lesson], tmp_path: Path) -> None:
    tower, processor = model_of().vision_model, image_processor(SIZE)
    maps = maps_of(lessons, tower, processor, tmp_path, views=3, blocks=BLOCKS)
    assert len(maps) == 70
    rows = np.array([69, 0, 64])
    whole = maps.read(rows, np.zeros_like(rows))
    images = [Image.open(lessons[row].picture) for row in rows]
    with torch.no_grad():
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        expected = early(tower, pixels, BLOCKS)
    torch.testing.assert_close(whole, expected, atol=0.05, rtol=0.05)
    other = maps.read(rows, np.array([1, 1, 1])), maps.read(rows, np.array([2, 2, 2]))
    assert not torch.equal(whole, other[0]) and not torch.equal(*other)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(kept) == 2, "of 70 pictures, 64 in a shard"
    again = maps_of(lessons, tower, processor, tmp_path, views=3, blocks=BLOCKS)
    assert torch.equal(again.read(rows, np.array([1, 1, 1])), other[0])
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}


@pytest.fixture(scope="module")
def seen(lessons: list[Lesson], tmp_path_factory: pytest.TempPathFactory) -> Maps:
    folder = tmp_path_factory.mktemp("maps")
    tower: ConvolutionalVisionModel = model_of().vision_model
    return maps_of(lessons, tower, image_processor(SIZE), folder, views=2, blocks=BLOCKS)


@pytest.fixture
def texts() -> Tensor:
    """Four texts, of the colors."""
    return torch.eye(WIDTH)[torch.arange(70) % 4][:, None]


def share_of(model: VisionTextDualEncoderModel, maps: Maps, texts: Tensor) -> float:
    rows = np.arange(len(texts))
    with torch.no_grad():
        # As it was computed, in bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = late(model.vision_model, maps.read(rows, 0 * rows), BLOCKS).float()
        vectors = F.normalize(model.text_projection(texts), dim=-1)
    return recall(model.visual_projection, Pairs(features, vectors), texts)


def test_what_finds_most_is_kept(seen: Maps, texts: Tensor, tmp_path: Path) -> None:
    model = model_of()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = tune(model, (seen, texts), {"same": (seen, texts)}, tmp_path / "state.pt", SCHEDULE)
    assert found["same_first"] < 0.5 < 0.7 < found["same"]
    assert share_of(model, seen, texts) == pytest.approx(found["same"], abs=0.03)
    changed = {name for name, weight in model.state_dict().items() if weight.ne(before[name]).any()}
    assert {name.split(".")[0] for name in changed} == {
        *("vision_model", "visual_projection", "text_projection")
    }
    assert not any(".stem." in name or ".blocks.0." in name for name in changed)
    assert any(".blocks.1." in name for name in changed)


def test_training_that_was_stopped_goes_on(
    seen: Maps, texts: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = {"same": (seen, texts)}
    short = replace(SCHEDULE, steps=12, tested=4)
    whole, stopped = model_of(), model_of()
    expected = tune(whole, (seen, texts), held_out, tmp_path / "whole.pt", short)

    monkeypatch.setattr("real.tuning._SAVED", -1.0)  # after each step
    read, state = Maps.read, tmp_path / "state.pt"
    calls = iter(range(100))

    def failing(*args: object) -> Tensor:
        if next(calls) == 2 + 7:  # two batches of a test, then steps
            raise KeyboardInterrupt
        return read(*args)

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(Maps, "read", failing)
        tune(stopped, (seen, texts), held_out, state, short)
    assert state.exists()
    again = model_of()
    assert tune(again, (seen, texts), held_out, state, short) == expected
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight)


def test_what_finds_less_is_not_kept(seen: Maps, texts: Tensor, tmp_path: Path) -> None:
    """Nothing is learned of texts that say the same for all pictures, and are found as it is."""
    model = model_of()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    same = texts[:1].repeat(70, 1, 1)
    found = tune(
        model,
        (seen, texts),
        {"same": (seen, same)},
        tmp_path / "state.pt",
        replace(SCHEDULE, steps=4, tested=2),
    )
    assert (found["same_first"], found["same"], found["step"]) == (1.0, 1.0, 0.0)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
