"""The measurement of fewer image tokens compares choices of as many tokens on one ranking."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import bench_image_tokens
import pytest
import torch
from bench_image_tokens import CHOICES, Layer, Pairs, Prefix, measured

SHARES = (0.25,)  # of three, one shows the rest


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("world")
    with patch.object(bench_image_tokens, "SHARES", SHARES):
        return measured(Pairs.drawn(folder, 3, num_places=6), *[bench_image_tokens.SHIPPED] * 2)


@pytest.mark.slow
def test_every_choice_is_compared_with_whole_prefixes(result: dict[str, Any]) -> None:
    rows = result["rows"]
    whole = [row for row in rows if row["share"] == 1 and row["compression"] is None]
    assert [row["reranker"] for row in whole] == ["shipped", "trained", "control"]
    for row in rows:
        assert (row["max_score_difference"] > 0) == (row not in whole)
        assert row["mean_score_difference"] <= row["max_score_difference"]
        assert (row["bytes_per_document"] < whole[0]["bytes_per_document"]) == (row not in whole)
        assert all(0 <= row[name]["value"] <= 1 for name in bench_image_tokens.FIGURES)
    compared = {(row["share"], row["choice"]): row for row in rows if row["share"] < 1}
    assert compared.keys() == {(share, choice) for share in SHARES for choice in CHOICES}
    for share in SHARES:
        sizes = {compared[share, choice]["bytes_per_document"] for choice in ("evenly", "random")}
        assert len(sizes) == 1


@pytest.mark.slow
def test_the_table_has_a_line_for_each(result: dict[str, Any]) -> None:
    measured = {**result, "training_steps": 7}
    text = bench_image_tokens.image_tokens_table({"image_tokens": measured})
    assert "after 7 steps" in text
    assert text.count("| trained |") == 6
    assert "| shipped | 1/4 | random | exact |" in text
    assert "| shipped | all |  | int8 |" in text


@pytest.mark.slow
def test_the_speed_has_a_row_for_each_setting() -> None:
    assert "not measured" in bench_image_tokens.speed_table({})
    measured = bench_image_tokens.measured_speed("tiny", 64, documents=2, rounds=2)
    whole, *_, smallest = measured["rows"]
    assert (whole["share"], whole["compression"]) == (1, None)
    assert (smallest["share"], smallest["compression"]) == (0.25, "int4")
    sizes = [row["smaller_than_bfloat16"] for row in measured["rows"]]
    assert 0.8 < sizes[0] <= 1, "bfloat16, and what is left of the last page"
    assert sizes[0] < sizes[1] < sizes[2] < sizes[5]
    result = {"image_tokens_speed_cpu": {**measured, "machine": {"device": "a CPU"}}}
    text = bench_image_tokens.speed_table(result)
    assert "| all | exact |" in text and "| 1/4 | int4 |" in text
    assert "at least 14" in text


@pytest.mark.parametrize("choice", [name for name, choose in CHOICES.items() if choose is not None])
def test_choices_are_of_different_tokens(choice: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys, values = torch.randn(3, 2, 1, 2, 12, 4, generator=generator).unbind()
    layers = [Layer(query[i], 0.5, keys[i], values[i]) for i in range(2)]
    prefix = Prefix([1, 1, *[0] * 8, 1, 1], 2, 8, layers)
    choose = CHOICES[choice]
    assert choose is not None
    chosen = choose(prefix, 3)
    assert [len(set(places)) for places in chosen.places.tolist()] == [3, 3]
    assert int(chosen.places.min()) >= 0 and int(chosen.places.max()) < 8
    changed = [
        not torch.equal(x, layer.values) for x, layer in zip(chosen.values, layers, strict=True)
    ]
    assert changed == [choice.endswith("merged")] * 2


def test_what_is_attended_to_is_kept() -> None:
    keys = torch.zeros(1, 1, 8, 2)
    keys[0, 0, [3, 5]] = 9.0
    query = torch.ones(1, 1, 8, 2)
    prefix = Prefix([1, *[0] * 6, 1], 1, 6, [Layer(query, 1.0, keys, keys)])
    assert sorted(bench_image_tokens.attended(prefix, 2).places[0].tolist()) == [2, 4]
