"""The tables say what the result files hold, in the right cells."""

from __future__ import annotations

import json
from typing import Any

import pytest
from common import RESULTS
from render import TABLES


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def cells(text: str, label: str) -> dict[str, str]:
    """The row that begins with `label`, by heading."""
    header = text.splitlines()[0]
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
    names, values = ([cell.strip() for cell in row.split("|")[1:-1]] for row in (header, line))
    return dict(zip(names, values, strict=True))


def percent(figure: dict[str, float]) -> str:
    low, value, high = (f"{100 * figure[key]:.1f}" for key in ("low", "value", "high"))
    return f"{value} ({low} to {high})"


def speed(figures: dict[str, Any]) -> str:
    median, low, high = (f"{figures['speedup'][key]:.2f}" for key in ("median", "min", "max"))
    return f"{median}x ({low} to {high})"


@pytest.mark.parametrize(("name", "world"), [("demo", "places"), ("charts", "charts")])
def test_documents_found(name: str, world: str, results: dict[str, Any]) -> None:
    for pool, order in (("full", "reranked"), ("gold", "retrieved")):
        row = cells(TABLES["documents_found"](results), f"{world} | {pool} | {order}")
        measured = results[name]["pools"][pool][order]
        assert row["recall@2"] == percent(measured["recall@2"])
        assert row["mrr"] == percent(measured["mrr"])


def test_documents_kept_and_answers(results: dict[str, Any]) -> None:
    demo, text = results["demo"], TABLES["documents_kept"](results)
    pool = demo["pools"]["gold"]
    assert cells(text, "gold | adaptive") == {
        "pool": "gold",
        "kept": "adaptive",
        "relevance from": f"{demo['thresholds']['adaptive']:.3f}",
        "precision": percent(pool["kept"]["adaptive"]["precision"]),
        "recall": percent(pool["kept"]["adaptive"]["recall"]),
        "F1": percent(pool["kept"]["adaptive"]["f1"]),
        "answers right": percent(pool["answers"]["adaptive"]["accuracy"]),
    }
    blind = cells(text, "gold | (no picture)")
    assert blind["answers right"] == percent(pool["answers"]["none"]["accuracy"])
    assert blind["precision"] == blind["relevance from"] == ""

    category, count = next(iter(demo["categories"].items()))
    row = cells(TABLES["answers_by_category"](results), f"{category} ({count})")
    natural = demo["pools"]["full"]["answers"]["natural"]["by_category"]
    assert row["natural"] == percent(natural[category])


def test_the_demo_in_percent(results: dict[str, Any]) -> None:
    row = cells(TABLES["demo"](results), "gold | reranked")
    pool = results["demo"]["pools"]["gold"]
    assert row["recall@5"] == f"{100 * pool['reranked']['recall@5']['value']:.1f}"
    assert row["f1"] == f"{100 * pool['kept']['natural']['f1']['value']:.1f}"


def test_the_change_from_one_world_to_another(results: dict[str, Any]) -> None:
    row = cells(TABLES["cross_domain"](results), "answers right, from what is kept")
    places, charts = (
        results[name]["pools"]["full"]["answers"]["natural"]["accuracy"]
        for name in ("demo", "charts")
    )
    assert (row["places"], row["charts"]) == (percent(places), percent(charts))
    assert row["change"].startswith(f"{100 * (charts['value'] - places['value']):+.1f} (")


def test_captions(results: dict[str, Any]) -> None:
    text = TABLES["caption_retrieval"](results)
    for name, label in (
        ("captions", "reranked by one trained on captions"),
        ("captions_zero_shot", "reranked by the demo's reranker, of questions"),
    ):
        measured = results[name]["pools"]["full"]["reranked"]
        assert cells(text, label)["recall@5"] == percent(measured["recall@5"])


def test_fast_rerank_by_model(results: dict[str, Any]) -> None:
    result = results["fast_rerank_cpu"]
    text = TABLES["fast_rerank"](results)
    row = cells(text, "**`ragvl.fast_rerank`, warm**")
    assert list(row.values())[1:-1] == [
        speed(case["methods"]["fast_rerank_warm"]) for case in result["cases"]
    ]
    peak = result["cases"][0]["methods"]["fast_rerank_warm"]["peak_mib"]
    assert row["memory"] == f"{peak:,.0f} MiB"
    others = cells(text, "sentence-transformers `CrossEncoder`")
    assert list(others.values())[-2] == "", "it was not measured with InternVL"


def test_an_evaluation_and_its_costs(results: dict[str, Any]) -> None:
    row = cells(TABLES["evaluate_speed"](results), "**`ragvl evaluate`**")
    result = results["evaluate_cpu"]
    assert row["and answered"] == speed(result["whole"]["evaluate"])
    row = cells(TABLES["overhead"](results), "a query: warm")
    warm = results["overhead_cpu"]["rerank"]["warm"]
    assert row["time"] == f"{1 / warm['speedup']['median']:.2f}x"


def test_the_loss_counts_memory_above_the_gradients(results: dict[str, Any]) -> None:
    case = results["visual_weighted_cross_entropy_cpu"]["cases"][0]
    text = TABLES["visual_weighted_cross_entropy"](results)
    row = cells(text, f"{case['labelled']} | {case['head']}")
    peak = max(0, case["methods"]["eager"]["peak_mib"] - case["gradients_mib"])
    assert row["eager"] == f"1.0x, {peak:,.0f} MiB"


def test_the_prefix_cache(results: dict[str, Any]) -> None:
    result = results["prefix_cache_cpu"]
    slopes = result["scaling"]["candidates"]["ms_per_one_more"]
    row = cells(TABLES["prefix_cache_costs"](results), "candidate")
    assert row["CPU: cold"] == "100 %"
    assert row["CPU: warm"] == f"{100 * slopes['warm'] / slopes['cold']:.3g} %"
    assert row["GPU: warm"] == "not measured"
    tier = result["tiers"][-1]
    row = cells(TABLES["prefix_cache_tiers"](results), tier["tier"])
    assert row["CPU: known"] == f"{tier['hit']['median']:.2f}x"
    row = cells(TABLES["prefix_cache_compression"](results), "CPU: exact")
    assert row["bytes of a document"] == "100 %"


@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("gpu_")])
def test_nothing_measured_on_a_gpu_yet(name: str) -> None:
    table = TABLES[name]({})
    assert "not measured" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1, "every row has all columns"


def test_of_a_cpu_no_time_is_quoted(results: dict[str, Any]) -> None:
    for name in ("fast_rerank", "evaluate_speed", "overhead", "training_step"):
        assert " ms" not in TABLES[name](results)


def test_real_sets(results: dict[str, Any]) -> None:
    text = TABLES["real_sets"](results)
    blind = results["real_sets"]["sets"]["blind"]
    row = cells(text, "`blind`")
    assert row["test: questions"] == str(blind["test"]["questions"])
    assert row["train: pictures"] == str(blind["train"]["pictures"])
    assert f"{results['real_sets']['pairs']['stamps']} of stamps" in text


def test_real_retriever(results: dict[str, Any]) -> None:
    text = TABLES["real_retriever"](results)
    made = results["real_retriever"]
    assert cells(text, "projection trained")["found first"] == f"{100 * made['trained']:.1f}"
    assert f"{made['held_out']:,} held-out" in text


def test_a_retriever_whose_tower_is_trained_has_rows_of_its_own(results: dict[str, Any]) -> None:
    tuned = {"unseen_first": 0.25, "unseen": 0.5, "val_first": 0.1, "val": 0.2}
    text = TABLES["real_retriever"]({"real_retriever": results["real_retriever"] | tuned})
    assert cells(text, "of stamps of val alone: tower trained")["found first"] == "20.0"
    assert cells(text, "of pairs that are held out alone: before the tower is") == {
        "dual encoder": "of pairs that are held out alone: before the tower is",
        "found first": "25.0",
    }


@pytest.mark.parametrize("name", ["ablation_noise", "ablation_low_resource"])
def test_differences_of_arms_are_a_table_of_their_own(results: dict[str, Any], name: str) -> None:
    *tables, _ = TABLES[name](results).split("\n\n")
    assert "against" in tables[-1]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
        assert [line.startswith("| --- |") for line in table.splitlines()].count(True) == 1
