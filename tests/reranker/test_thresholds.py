"""Thresholds by number and by name, and the file that keeps them with their model."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ragvl
from ragvl import fast_rerank
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.mllm import MLLM
from ragvl.reranker import (
    THRESHOLDS_FILE,
    Reranker,
    SavedThresholds,
    ThresholdError,
    resolve_threshold,
    thresholds_file,
)

SAVED = SavedThresholds(
    model="m",
    template="auto",
    prompts="p",
    encoder="e",
    pool="full",
    num_candidates=20,
    top_k=2,
    data="places, val",
    questions=("q1", "q2"),
    values={"adaptive": 0.25, "precision>=0.9": 0.75},
    refused={"f1": "too few"},
)


def test_a_search_among_many_more_documents_or_fewer_is_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    saved = replace(SAVED, retriever_weight=1.5, num_documents=100)
    assert saved.weight_of("e") == 1.5
    assert saved.weight_of("another") == 0
    assert saved.named(0.75) == ["precision>=0.9"]
    assert saved.named(0.5) == []
    for alike in (50, 100, 200, 0):
        saved.warn_of_another_search(alike, names=["f1"], weight=1.5)
    SAVED.warn_of_another_search(5, names=["f1"])  # of an earlier version, which did not know
    saved.warn_of_another_search(1000, weight=0.4)  # another weight than was estimated
    assert not caplog.messages
    saved.warn_of_another_search(49, names=["f1"], weight=0.4)
    saved.warn_of_another_search(1000, weight=1.5)
    few, many = caplog.messages
    assert few.startswith("threshold 'f1': estimated on places, val in a search among 100 doc")
    assert "the retriever's weight: estimated" in many and "here 1,000 are searched" in many


def test_what_was_estimated_before_sizes_were_known_stays(tmp_path: Path) -> None:
    path = tmp_path / THRESHOLDS_FILE
    SAVED.save(path)
    replace(SAVED, values={"f1": 0.5}, refused={}, num_documents=100).save(path)
    joined = SavedThresholds.load(path)
    assert joined is not None and joined.num_documents == 100
    assert joined.values == SAVED.values | {"f1": 0.5}


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0])
def test_a_weight_that_could_not_be_read_again_is_not_saved(weight: float, tmp_path: Path) -> None:
    path = tmp_path / THRESHOLDS_FILE
    with pytest.raises(ValueError, match="expected a number from 0"):
        replace(SAVED, retriever_weight=weight).save(path)
    assert not path.exists()


def test_numbers_and_names() -> None:
    assert resolve_threshold("natural") == resolve_threshold("natural", SAVED) == 0.5
    assert resolve_threshold(0) == 0.0
    assert resolve_threshold(0.73, SAVED) == 0.73
    assert resolve_threshold("adaptive", SAVED) == 0.25
    assert resolve_threshold("precision>=0.9", SAVED) == 0.75
    with pytest.raises(ThresholdError, match=r"not known.*natural, adaptive.*ragvl calibrate"):
        resolve_threshold("other", SAVED)
    with pytest.raises(ThresholdError, match="could not be estimated: too few"):
        resolve_threshold("f1", SAVED)
    assert resolve_threshold(np.float32(0.25)) == resolve_threshold(np.float64(0.25)) == 0.25
    assert resolve_threshold(np.int64(1)) == 1.0
    for wrong in (None, True, np.bool_(True), [0.5], np.zeros(2)):
        with pytest.raises(ValueError, match="expected a name or a number"):
            resolve_threshold(wrong)  # type: ignore[arg-type]
    for outside in (-0.1, 1.1, float("nan"), float("inf"), 1e9, 10**400, np.float32("nan")):
        with pytest.raises(ValueError, match="not a probability"):
            resolve_threshold(outside)


def test_the_file_comes_back_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / THRESHOLDS_FILE
    SAVED.save(path)
    assert SavedThresholds.load(path) == SAVED
    assert SavedThresholds.load(path, "retrieval") is None
    assert [file.name for file in tmp_path.iterdir()] == [THRESHOLDS_FILE]
    path.write_text('{"model": 3}')
    with pytest.raises(ThresholdError, match=r"holds no thresholds.*ragvl calibrate"):
        SavedThresholds.load(path)
    with pytest.raises(ThresholdError, match="holds no thresholds"):
        SAVED.save(path)


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        *(({"values": {"a": wrong}}, "values.a") for wrong in (float("nan"), 1e9, -0.1, True, "1")),
        ({"values": {"\x1b[31m": float("inf")}}, r"values.\x1b[31m"),
        ({"top_k": 0}, "top_k"),
        ({"num_candidates": True}, "num_candidates"),
    ],
    ids=str,
)
def test_what_a_file_says_is_checked(changed: dict[str, Any], place: str, tmp_path: Path) -> None:
    path = tmp_path / THRESHOLDS_FILE
    path.write_text(json.dumps({"auto": asdict(SAVED) | changed}))
    with pytest.raises(ThresholdError) as error:
        SavedThresholds.load(path)
    assert f"(auto.{place}: " in str(error.value)
    assert str(error.value).isprintable()


def test_a_value_that_is_no_probability_is_neither_used_nor_saved(tmp_path: Path) -> None:
    for wrong in (float("nan"), 1e9):
        saved = replace(SAVED, values={"adaptive": wrong})
        with pytest.raises(ValueError, match=r"the saved threshold 'adaptive'=.*not a probability"):
            resolve_threshold("adaptive", saved)
        with pytest.raises(ValueError, match="not a probability"):
            saved.save(tmp_path / THRESHOLDS_FILE)
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / THRESHOLDS_FILE)
    with pytest.raises(OSError, match="a pipe, not a file"):
        SavedThresholds.load(tmp_path / THRESHOLDS_FILE)


def test_a_number_is_checked_before_a_model_is_loaded() -> None:
    for wrong in (float("nan"), 1e9, -1, True):
        with pytest.raises(ValueError, match="threshold="):
            Reranker.from_pretrained("no/such-model", threshold=wrong)
        with pytest.raises(ValueError, match="threshold="):
            fast_rerank("Is it red?", ["a.png"], model="no/such-model", threshold=wrong)
        with pytest.raises(ValueError, match="threshold="):
            EvaluationSettings(thresholds=("natural", wrong))


def test_what_was_estimated_before_stays_if_it_still_holds(tmp_path: Path) -> None:
    path = tmp_path / THRESHOLDS_FILE
    SAVED.save(path)
    captions = replace(SAVED, template="retrieval", values={}, refused={"f1": "one-sided"})
    captions.save(path)
    assert SavedThresholds.load(path) == SAVED, "another template's are beside it"
    replace(SAVED, values={"f1": 0.5, "adaptive": 0.3}, refused={}).save(path)
    result = SavedThresholds.load(path)
    assert result is not None
    assert result.values == {"adaptive": 0.3, "f1": 0.5, "precision>=0.9": 0.75}
    assert result.refused == {}
    # of other questions, another pool or other weights, none of the old ones is true
    for changed in ({"questions": ("q3",)}, {"pool": "gold"}, {"model": "n"}, {"top_k": 1}):
        SAVED.save(path)
        replace(SAVED, values={"f1": 0.5}, refused={}, **changed).save(path)
        result = SavedThresholds.load(path)
        assert result is not None and result.values == {"f1": 0.5}


def test_conditions_that_differ_are_named() -> None:
    assert SAVED.differs(pool="full", top_k=2, num_candidates=20, encoder="e") == []
    assert SAVED.differs(pool="gold", top_k=2, num_candidates=5) == ["pool", "num_candidates"]


def test_a_reranker_finds_its_thresholds_beside_its_weights(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model("llava"), tmp_path / "model")
    with pytest.raises(ThresholdError, match="ragvl calibrate"):
        Reranker.from_pretrained(folder, device="cpu", threshold="adaptive")
    plain = Reranker.from_pretrained(folder, device="cpu")
    picture = Image.new("RGB", (32, 32), "red")
    (ranked,) = plain.rank("Is it red?", [picture])
    values = {"low": ranked.score / 2, "high": (1 + ranked.score) / 2}
    saved = replace(SAVED, model=plain.weights, prompts=plain.prompts_name, values=values)
    saved.save(folder / THRESHOLDS_FILE)
    for name, kept in (("low", True), ("high", False)):
        reranker = Reranker.from_pretrained(folder, device="cpu", threshold=name)
        assert reranker.threshold == values[name]
        assert reranker.rank("Is it red?", [picture])[0].kept is kept
        assert reranker.rank("Is it red?", [picture], threshold="low")[0].kept is True


def test_they_are_saved_where_the_model_is(tmp_path: Path) -> None:
    for name in ("models/one", "adapters"):
        (tmp_path / name).mkdir(parents=True)
    models, adapters = tmp_path / "models", tmp_path / "adapters"
    assert thresholds_file(models, subfolder="one") == models / "one" / THRESHOLDS_FILE
    assert thresholds_file(models, adapters=adapters) == adapters / THRESHOLDS_FILE
    assert thresholds_file("owner/name", revision="main") is None
    assert thresholds_file(models, adapters="owner/name") is None
    SAVED.save(models / "one" / THRESHOLDS_FILE)
    assert SavedThresholds.of_model(models, SAVED.template, subfolder="one") == SAVED
    assert SavedThresholds.of_model(models, SAVED.template) is None


def test_the_shipped_thresholds_are_the_shipped_rerankers() -> None:
    folder = Path(ragvl.__file__).parent / "assets" / "tiny-reranker"
    reranker = Reranker.from_pretrained(folder, device="cpu", dtype="float32", threshold="adaptive")
    demo = json.loads((folder.parents[2] / "benchmarks" / "results" / "demo.json").read_text())
    assert reranker.threshold == demo["thresholds"]["adaptive"] != 0.5


def test_thresholds_of_other_weights_or_prompts_are_refused(
    tiny_mllm: Callable[[str], MLLM],
) -> None:
    mllm = tiny_mllm("llava")
    plain = Reranker(mllm)
    own = replace(SAVED, model=plain.weights, prompts=plain.prompts_name)
    assert Reranker(mllm, thresholds=own, threshold="adaptive").threshold == 0.25
    with pytest.raises(ThresholdError, match="other weights"):
        Reranker(mllm, thresholds=SAVED)
    with pytest.raises(ThresholdError, match=r"other prompts \(auto\)"):
        Reranker(mllm, template="plain", thresholds=own)
