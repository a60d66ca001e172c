"""Tables of real pictures say what was measured of them, and what was not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from common import RESULTS
from real.layout import SETS
from render import TABLES

from ragvl.evaluation.metrics import chance_figures, ranking_figures, ranking_gains
from ragvl.evaluation.result import to_json

GOLD = [["a"], ["b"], ["c"], ["d"]]
ORDERS = {
    "picture": [["x", "a"], ["x", "y"], ["y", "z"], ["z", "x"]],
    "caption": [["a", "x"], ["x", "b"], ["y", "c"], ["z", "x"]],
    "retrieved": [["a", "x"], ["b", "x"], ["y", "c"], ["z", "x"]],
    "reranked": [["a", "x"], ["b", "x"], ["c", "y"], ["z", "x"]],
}


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    """A result of four questions whose orders are known, in the form of a real one."""
    result = json.loads((RESULTS / "demo.json").read_text())
    pool = result["pools"]["full"]
    found = {order: ranking_figures(ids, GOLD) for order, ids in ORDERS.items()}
    own = {
        "num_documents": 7,
        "retrieved": found["retrieved"],
        "alone": {order: found[order] for order in ("picture", "caption")},
        "chance": chance_figures([7] * 4, GOLD, 2),
        "ceiling": found["reranked"],
        "reranked": found["reranked"],
        "gain": ranking_gains(ORDERS["reranked"], ORDERS["retrieved"], GOLD),
        "kept": {name: pool["kept"][name] for name in ("retrieved", "natural")},
    }
    result["pools"] = {"full": pool | to_json(own)}
    result["settings"]["pools"] = ["full"]
    return result | {"num_questions": 4}


def rows(text: str) -> dict[str, list[str]]:
    """The tables' cells after the first, by the first."""
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in lines}


def test_a_row_of_each_set(evaluation: dict[str, Any]) -> None:
    table = rows(TABLES["real"]({"real_blind": evaluation}))
    assert set(table) == {"set", "---", *SETS}
    assert set(table["named"]) == {"not measured"}
    head = table["set"]
    cells = dict(zip(head, table["blind"], strict=True))
    assert (cells["questions"], cells["pictures"]) == ("4", "7")
    assert cells["chance"] == "14.3"  # one of seven; it has no interval
    shares = {"picture": "0.0", "caption": "25.0", "fused": "50.0", "reranked": "75.0"}
    for order, share in (shares | {"ceiling": "75.0"}).items():
        assert cells[order].startswith(f"{share} ("), order
    assert cells["gain by reranking"].startswith("+25.0 (")
    assert cells["retriever's weight"] == "0"
    models = evaluation["models"] | {"retriever_weight": 0.604}
    weighed = rows(TABLES["real"]({"real_blind": evaluation | {"models": models}}))
    assert weighed["blind"][-1] == "0.604"


def test_a_table_of_one_set(evaluation: dict[str, Any]) -> None:
    text = TABLES["real_blind"]({"real_blind": evaluation})
    table = rows(text)
    assert list(table)[2:8] == ["picture", "caption", "fused", "chance", "reranked", "ceiling"]
    at_two = table["order"].index("recall@2")
    assert table["picture"][at_two].startswith("25.0 (")
    assert table["fused"][at_two].startswith("75.0 (")
    assert table["gain by reranking"][at_two].startswith("+0.0")
    assert "4 questions, 7 documents" in text
    assert "ceiling of what reranking can find" in text
    answers = evaluation["pools"]["full"]["answers"]
    right = 100 * answers["natural"]["accuracy"]["value"]
    kept = 100 * evaluation["pools"]["full"]["kept"]["natural"]["f1"]["value"]
    *_, f1, answered = table["natural"]
    assert f1.startswith(f"{kept:.1f} (") and answered.startswith(f"{right:.1f} (")
    assert table["(gold pictures)"][1:4] == ["", "", ""]


def test_one_encoder_alone(evaluation: dict[str, Any]) -> None:
    pool = dict(evaluation["pools"]["full"])
    del pool["alone"]
    one = evaluation | {"pools": {"full": pool}}
    table = rows(TABLES["real"]({"real_named": one}))
    cells = dict(zip(table["set"], table["named"], strict=True))
    assert cells["fused"] == cells["caption"] == "not measured"
    assert "retrieved" in rows(TABLES["real_named"]({"real_named": one}))


@pytest.mark.parametrize("name", ["real", *(f"real_{name}" for name in SETS)])
def test_nothing_measured_yet(name: str) -> None:
    text = TABLES[name]({}).split("\n\n")[0]
    assert "not measured" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
