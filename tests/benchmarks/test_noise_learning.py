from __future__ import annotations

import json
from pathlib import Path

import common
import noise_learning
import numpy as np
import pytest
import torch
from tables import TABLES

from ragvl.data.synthetic import write_world
from ragvl.data.webqa import WebQA


@pytest.fixture(scope="module")
def test_split(tmp_path_factory: pytest.TempPathFactory) -> WebQA:
    folder = write_world(tmp_path_factory.mktemp("world"), places={"test": 6}, seed=0)
    return WebQA(folder, split="test")


def test_each_condition_has_its_evidence(test_split: WebQA) -> None:
    for number, question in enumerate(test_split.questions):
        found = {
            condition: noise_learning.evidence(test_split, question, condition, number)
            for condition in noise_learning.CONDITIONS
        }
        ids = {name: {document.id for document in documents} for name, documents in found.items()}
        assert ids["clean"] == ids["noised"] == set(question.gold)
        assert len(ids["irrelevant"]) == len(question.gold) + 1
        assert ids["irrelevant"] - ids["clean"] <= set(question.negatives)
        again = noise_learning.evidence(test_split, question, "noised", number)
        for clean, noised, same in zip(found["clean"], found["noised"], again, strict=True):
            pixels = [np.asarray(document.load()) / 127.5 - 1.0 for document in (clean, noised)]
            # x_t = 0.863 x + 0.505 eps, cut off at the ends of the range
            inside = (np.abs(pixels[0]) < 0.2) & (np.abs(pixels[1]) < 0.9)
            assert (np.abs(pixels[1] - pixels[0])[inside]).mean() > 0.2
            assert clean.caption == noised.caption
            assert same.digest() == noised.digest(), "the same noise for every model"


@pytest.mark.slow
def test_runs_are_kept_and_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(noise_learning, "NUM_PLACES", 4)
    settings = {"work": tmp_path, "seeds": 2, "steps": 1, "places": 4, "num_questions": 2}
    settings["threads"] = torch.get_num_threads()
    tmp_path.joinpath("release-1.json").write_text(
        json.dumps({"arm": "release", "seed": 1, "clean": 0.5, "irrelevant": 0.25, "noised": 0})
    )
    noise_learning.main(arms=["plain", "untrained"], **settings)
    assert not (tmp_path / "results").exists(), "not before all runs are there"
    noise_learning.main(arms=None, **settings)
    result = json.loads((tmp_path / "results" / "noise_learning.json").read_text())
    assert len(result["runs"]) == 1 + 2 * len(noise_learning.ARMS)
    assert result["runs"][-1]["clean"] == 0.5, "a run that is there is not done again"
    table = TABLES["noise_learning"](lambda name: result if name == "noise_learning" else None)
    for arm in noise_learning.ARMS:
        assert f"| {arm} | " in table
