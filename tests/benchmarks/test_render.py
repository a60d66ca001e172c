from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from render import ROOT, main, render
from tables import METHODS, TABLES

DOCUMENT = """# Title

<!-- begin table: fast_rerank -->
what stood here before
<!-- end table: fast_rerank -->

Text between.

<!-- begin table: demo -->
<!-- end table: demo -->
"""


def spread(median: float) -> dict[str, float]:
    return {"median": median, "iqr": 0.1, "min": median - 0.25, "max": median + 0.25}


def fast_rerank_result() -> dict[str, Any]:
    def case(family: str, methods: list[str]) -> dict[str, Any]:
        return {
            "model": {
                "name": "some-model",
                "family": family,
                "parameters": 43_757_056,
                "dtype": "float32",
                "image_tokens": 256,
            },
            "prompt_tokens": {"prefix": [270, 290], "suffix": [31, 31]},
            "max_score_difference": 2.4e-7,
            "methods": {
                method: {"ms": spread(3000 / (1 + i)), "speedup": spread(1 + i), "peak_mib": 10 * i}
                for i, method in enumerate(methods)
            },
        }

    return {
        "num_documents": 20,
        "rounds": 7,
        "machine": {"device": "Some CPU, 2 cores"},
        "cases": [
            case("llava", list(METHODS)),
            case("internvl", [method for method in METHODS if method != "cross_encoder"]),
        ],
    }


def demo_result() -> dict[str, Any]:
    order = {f"recall@{k}": {"value": k / 20} for k in (1, 2, 5, 10, 20)}
    kept = {"precision": {"value": 0.5}, "f1": {"value": 0.25}}
    pool = {
        "num_documents": 1560,
        "retrieved": order,
        "reranked": order,
        "kept": {"retrieved": kept, "natural": kept},
        "recalls": {"correct": [0.9, 0.8, 0.95, 0.7], "erroneous": [0.1, 0.3, 0.2]},
        "answers": {
            "retrieved": {"accuracy": {"value": 0.125}},
            "natural": {"accuracy": {"value": 0.875}},
        },
    }
    return {
        "pools": {"full": pool, "gold": pool},
        "num_questions": 520,
        "settings": {"num_candidates": 20, "top_k": 2},
        "thresholds": {"natural": 0.5},
    }


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text(DOCUMENT)
    (tmp_path / "docs" / "plain.md").write_text("No table here.\n")
    return tmp_path


def write_result(repository: Path, name: str, result: dict[str, Any]) -> None:
    path = repository / "benchmarks" / "results" / f"{name}.json"
    path.write_text(json.dumps(result))


def cells(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_round_trip(repository: Path) -> None:
    write_result(repository, "fast_rerank_cpu", fast_rerank_result())
    write_result(repository, "demo", demo_result())
    with pytest.raises(SystemExit) as out_of_date:
        main(check=True, root=repository)
    assert out_of_date.value.code == 1
    assert (repository / "README.md").read_text() == DOCUMENT, "--check must change nothing"

    main(root=repository)
    text = (repository / "README.md").read_text()
    main(check=True, root=repository)
    main(root=repository)
    assert (repository / "README.md").read_text() == text, "rendering again must change nothing"

    assert text.startswith("# Title\n\n<!-- begin table: fast_rerank -->\n|")
    assert "what stood here before" not in text
    assert "\n\nText between.\n\n" in text
    row = cells(text, METHODS["fast_rerank_warm"])
    assert row[1:] == ["6.00x (5.75 to 6.25)", "5.00x (4.75 to 5.25)", "50 MiB"]
    assert cells(text, METHODS["cross_encoder"])[2] == ""
    assert "| LLaVA, 44 M, 31 suffix tokens | InternVL, 44 M, 31 suffix tokens |" in text
    assert "agree within 2e-07" in text
    assert cells(text, "full | reranked")[2:] == [
        *["5.0", "10.0", "25.0", "50.0", "100.0", "50.0", "25.0"],
        "87.5",
    ]
    assert cells(text, "gold | retrieved")[-1] == "12.5"

    result = fast_rerank_result()
    result["rounds"] = 8
    write_result(repository, "fast_rerank_cpu", result)
    with pytest.raises(SystemExit):
        main(check=True, root=repository)


def test_of_a_cpu_no_time_is_quoted() -> None:
    assert " ms" not in TABLES["fast_rerank"]({"fast_rerank_cpu": fast_rerank_result()}.get)


def test_relevance_head_has_a_row_for_each_case() -> None:
    def result(methods: list[str]) -> dict[str, Any]:
        case = {
            "batch": 20,
            "hidden_size": 896,
            "dtype": "float32",
            "methods": {method: {"speedup": spread(3 + i)} for i, method in enumerate(methods)},
        }
        machine = {"device": "Some CPU"}
        return {"cases": [case], "rounds": 5, "vocabulary": 32_000, "machine": machine}

    found = {"relevance_head_cpu": result(["vocabulary product", "eager, two rows", "cpu"])}
    table = TABLES["relevance_head"](found.get)
    assert cells(table, "20 | 896 | float32")[3:] == ["4.0x", "not measured", "5.0x"]


def test_the_loss_table_counts_memory_above_the_gradients() -> None:
    def figures(speed: float, peak: float | None) -> dict[str, Any]:
        return {"speedup": spread(speed), "peak_mib": peak}

    case = {
        "labelled": "5 %",
        "head": "frozen",
        "gradients_mib": 4.0,
        "methods": {"eager": figures(1, 884), "reference": figures(2, 3), "cpu": figures(9, None)},
    }
    shape = {"positions": 2048, "dim": 512, "vocabulary": 37_913, "dtype": "float32"}
    result = {"cases": [case], "rounds": 5, "machine": {"device": "Some CPU"}, **shape}
    found = {"visual_weighted_cross_entropy_cpu": result}
    table = TABLES["visual_weighted_cross_entropy"](found.get)
    assert cells(table, "5 % | frozen")[2:5] == ["1.0x, 880 MiB", "2.0x, 0 MiB", "9.0x"]


@pytest.mark.parametrize("name", TABLES)
def test_nothing_measured_yet(name: str) -> None:
    table = TABLES[name](lambda _: None)
    assert "not measured" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1, "every row has all columns"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- begin table: demo -->\n", "no other half"),
        ("<!-- end table: demo -->\n", "no other half"),
        ("<!-- begin table: demo -->\n<!-- end table: fast_rerank -->\n", "no other half"),
        ("<!-- begin table: demos -->\n<!-- end table: demos -->\n", "unknown table 'demos'"),
    ],
)
def test_wrong_marks_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        render(text, lambda _: None)


def test_a_wrong_mark_names_its_document(repository: Path) -> None:
    (repository / "docs" / "plain.md").write_text("<!-- begin table: demo -->\n")
    with pytest.raises(SystemExit, match=r"plain\.md"):
        main(root=repository)


def test_the_documents_here_are_up_to_date() -> None:
    main(check=True, root=ROOT)
