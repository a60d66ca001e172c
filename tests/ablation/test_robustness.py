"""What a generator is given in each condition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ragvl.ablation.robustness import (
    CONDITIONS,
    TEST_NOISE,
    accuracy_by_condition,
    evidence,
    noised,
)
from ragvl.data.document import Document
from ragvl.data.webqa import WebQA
from ragvl.evaluation.answers import webqa_accuracy
from ragvl.generator import Generator
from ragvl.ops.diffusion_noise import alphas_cumprod

ASSETS = Path(__file__).parents[2] / "ragvl" / "assets"


@pytest.fixture(scope="module")
def source(world: Path) -> WebQA:
    return WebQA(world, split="test")


def test_each_condition_has_its_evidence(source: WebQA) -> None:
    for number, question in enumerate(source.questions):
        by_condition = {
            condition: evidence(source, question, condition, number) for condition in CONDITIONS
        }
        ids = {name: {document.id for document in row} for name, row in by_condition.items()}
        assert ids["gold"] == ids["noised"] == set(question.gold)
        assert len(ids["irrelevant"]) == len(question.gold) + 1
        assert ids["irrelevant"] - ids["gold"] <= set(question.negatives)
        again = evidence(source, question, "noised", number)
        for clean, noisy, same in zip(
            by_condition["gold"], by_condition["noised"], again, strict=True
        ):
            pixels = [np.asarray(document.load()) / 127.5 - 1.0 for document in (clean, noisy)]
            # x_t = 0.863 x + 0.505 eps, cut off at the ends of the range
            inside = (np.abs(pixels[0]) < 0.2) & (np.abs(pixels[1]) < 0.9)
            assert (np.abs(pixels[1] - pixels[0])[inside]).mean() > 0.2
            assert clean.caption == noisy.caption
            assert same.digest() == noisy.digest(), "the same noise for every model"


def test_answers_are_judged_question_by_question(source: WebQA) -> None:
    generator = Generator.from_pretrained(ASSETS / "tiny-generator", device="cpu")
    accuracy = accuracy_by_condition(generator, source, source.questions, max_new_tokens=6)
    assert list(accuracy) == ["gold", "irrelevant", "noised"]
    for number, question in enumerate(source.questions):
        shown = evidence(source, question, "irrelevant", number)
        answer = generator.answer(question.text, shown, max_new_tokens=6)
        expected = webqa_accuracy(answer, question.answers, question.category)
        assert accuracy["irrelevant"][number] == expected


def test_the_noise_is_as_strong_as_results_say() -> None:
    """On a grey picture, whose pixels are in the middle of their range."""
    grey = Document(Image.new("RGB", (64, 64), (128, 128, 128)))
    pixels = np.asarray(noised(grey, 1).load()) / 127.5 - 1.0
    strength = float(1 - alphas_cumprod()[int(TEST_NOISE["timestep"])]) ** 0.5
    inside = np.abs(pixels) < 0.99
    # A normal distribution's share within the range, before it is cut off there
    assert inside.mean() == pytest.approx(math.erf(0.99 / strength / 2**0.5), abs=0.01)
