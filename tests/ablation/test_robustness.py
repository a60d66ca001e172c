"""What a generator is given in each condition."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ragvl.ablation.robustness import Condition, accuracy, conditions, noised
from ragvl.data.document import Document
from ragvl.data.webqa import WebQA
from ragvl.evaluation.answers import webqa_accuracy
from ragvl.generator import Generator
from ragvl.ops.diffusion_noise import alphas_cumprod

ASSETS = Path(__file__).parents[2] / "ragvl" / "assets"


@pytest.fixture(scope="module")
def source(world: Path) -> WebQA:
    return WebQA(world, split="test")


@pytest.fixture(scope="module")
def by_name(source: WebQA) -> dict[str, Condition]:
    drawn = conditions(source, source.questions, distractors=[1, 2, 4], timesteps=[500])
    return {condition.name: condition for condition in drawn}


def test_distractors_are_added_to_the_gold_pictures(
    source: WebQA, by_name: dict[str, Condition]
) -> None:
    assert list(by_name) == [
        "gold",
        *("random 1", "random 2", "random 4", "hard 1", "hard 2", "hard 4"),
        "noised 500",
    ]
    places = set()
    for number, question in enumerate(source.questions):
        gold = set(question.gold)
        shown = {name: set(condition.documents[number]) for name, condition in by_name.items()}
        assert shown["gold"] == shown["noised 500"] == gold
        for kind in ("random", "hard"):
            for count in (1, 2, 4):
                row = by_name[f"{kind} {count}"].documents[number]
                assert len(row) == len(set(row)) == len(gold) + count
                assert gold < set(row)
            assert shown[f"{kind} 1"] < shown[f"{kind} 2"] < shown[f"{kind} 4"]
        listed = set(question.negatives)
        assert len(shown["hard 4"] & listed) == min(4, len(listed))
        places |= {row.index(id) for row in [by_name["hard 2"].documents[number]] for id in gold}
    assert len(places) > 2, "gold pictures stand anywhere"
    assert any(
        by_name["random 4"].documents[n][0] not in {*q.gold, *q.negatives}
        for n, q in enumerate(source.questions)
    )


def test_without_listed_distractors_there_are_random_ones_only(source: WebQA) -> None:
    unlisted = [dataclasses.replace(question, negatives=()) for question in source.questions]
    drawn = conditions(source, unlisted, distractors=[1, 2])
    assert [condition.name for condition in drawn] == ["gold", "random 1", "random 2"]


def test_the_noise_ratio_is_of_the_documents_shown(
    source: WebQA, by_name: dict[str, Condition]
) -> None:
    assert by_name["gold"].noise_ratio(source.questions) == 0
    golds = sum(len(question.gold) for question in source.questions)
    added = 2 * len(source.questions)
    ratio = by_name["hard 2"].noise_ratio(source.questions)
    assert ratio == pytest.approx(added / (golds + added))
    nothing = Condition("nothing", [()] * len(source.questions))
    assert 0 <= nothing.noise_ratio(source.questions) <= 1


def test_noised_pictures_are_the_same_for_every_model(
    source: WebQA, by_name: dict[str, Condition]
) -> None:
    for number in range(3):
        clean = by_name["gold"].evidence(source.document, number)
        noisy, again = (by_name["noised 500"].evidence(source.document, number) for _ in range(2))
        for one, other, same in zip(clean, noisy, again, strict=True):
            pixels = [np.asarray(document.load()) / 127.5 - 1.0 for document in (one, other)]
            # x_t = 0.863 x + 0.505 eps, cut off at the ends of the range
            inside = (np.abs(pixels[0]) < 0.2) & (np.abs(pixels[1]) < 0.9)
            assert (np.abs(pixels[1] - pixels[0])[inside]).mean() > 0.2
            assert one.caption == other.caption
            assert same.digest() == other.digest()


@pytest.mark.slow
def test_answers_are_judged_question_by_question(
    source: WebQA, by_name: dict[str, Condition], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are asked at once, and where two conditions show the same."""
    monkeypatch.setattr("ragvl.ablation.robustness._ANSWERS_AT_ONCE", 20)
    generator = Generator.from_pretrained(ASSETS / "tiny-generator", device="cpu")
    chosen = [*by_name.values(), Condition("gold again", by_name["gold"].documents)]
    judged = accuracy(generator, source, source.questions, chosen, max_new_tokens=6)
    assert list(judged) == [*by_name, "gold again"]
    assert judged["gold again"] == judged["gold"]
    assert len(set(map(tuple, judged.values()))) > 1, "or nothing is proved"
    for condition in chosen:
        for number, question in enumerate(source.questions):
            shown = condition.evidence(source.document, number)
            answer = generator.answer(question.text, shown, max_new_tokens=6)
            right = webqa_accuracy(answer, question.answers, question.category)
            assert judged[condition.name][number] == right


@pytest.mark.parametrize("timestep", [300, 500])
def test_the_noise_is_as_strong_as_its_timestep_says(timestep: int) -> None:
    """On a grey picture, whose pixels are in the middle of their range."""
    grey = Document(Image.new("RGB", (64, 64), (128, 128, 128)))
    pixels = np.asarray(noised(grey, 1, timestep).load()) / 127.5 - 1.0
    strength = float(1 - alphas_cumprod()[timestep]) ** 0.5
    inside = np.abs(pixels) < 0.99
    # A normal distribution's share within the range, before it is cut off there
    assert inside.mean() == pytest.approx(math.erf(0.99 / strength / 2**0.5), abs=0.01)
