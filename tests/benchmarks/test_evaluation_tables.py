"""The tables of docs/results.md say what the result files hold, in the right cells."""

from __future__ import annotations

from typing import Any

from tables import TABLES


def figure(value: float) -> dict[str, float]:
    return {"low": value - 0.01, "value": value, "high": value + 0.01}


def evaluation(shift: float) -> dict[str, Any]:
    def pool(easier: float) -> dict[str, Any]:
        def order(gain: float) -> dict[str, Any]:
            names = (*(f"recall@{k}" for k in (1, 2, 5, 10, 20)), "mrr", "ndcg@10")
            return {
                name: figure(0.1 + 0.05 * i + gain + easier - shift) for i, name in enumerate(names)
            }

        def answers(value: float) -> dict[str, Any]:
            return {
                "accuracy": figure(value - shift),
                "by_category": {"color": figure(value / 2), "text": figure(value / 4)},
            }

        kept = {name: figure(0.4 + easier - shift) for name in ("precision", "recall", "f1")}
        return {
            "num_documents": 1560,
            "retrieved": order(0),
            "reranked": order(0.2),
            "kept": {"retrieved": kept, "natural": kept, "adaptive": kept},
            "answers": {
                "retrieved": answers(0.2),
                "natural": answers(0.6),
                "adaptive": answers(0.7),
                "gold": answers(0.8),
                "none": answers(0.12),
            },
        }

    return {
        "num_questions": 520,
        "categories": {"color": 300, "text": 220},
        "settings": {"num_candidates": 20, "top_k": 2},
        "thresholds": {"natural": 0.5, "adaptive": 0.912},
        "estimated_on": {
            "data": "other places, val",
            "num_questions": 440,
            "pool": "full",
            "refused": {"precision>=0.9": "too few"},
        },
        "pools": {"full": pool(0), "gold": pool(0.1)},
    }


def row(name: str, label: str, **results: Any) -> list[str]:
    lines = TABLES[name](results.get).splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][label.count("|") + 1 :]


def test_documents_found_has_both_worlds() -> None:
    results = {"demo": evaluation(0), "charts": evaluation(0.05)}
    assert row("documents_found", "places | full | reranked", **results)[0] == "30.0 (29.0 to 31.0)"
    assert (
        row("documents_found", "charts | gold | retrieved", **results)[1] == "20.0 (19.0 to 21.0)"
    )
    without = row("documents_found", "charts | gold | retrieved", demo=evaluation(0))
    assert without == ["not measured"] * 7


def test_documents_kept_has_every_threshold() -> None:
    cells = row("documents_kept", "gold | adaptive", demo=evaluation(0))
    assert cells == ["0.912", *["50.0 (49.0 to 51.0)"] * 3, "70.0 (69.0 to 71.0)"]
    cells = row("documents_kept", "full | (no picture)", demo=evaluation(0))
    assert cells == ["", "", "", "", "12.0 (11.0 to 13.0)"]
    note = TABLES["documents_kept"]({"demo": evaluation(0)}.get).splitlines()[-1]
    assert "thresholds from 440 other questions (other places, val) of the full pool" in note
    assert note.endswith("`precision>=0.9` was asked for and refused: too few.")


def test_answers_by_category() -> None:
    cells = row("answers_by_category", "text (220)", demo=evaluation(0))
    assert [cell.split()[0] for cell in cells] == ["3.0", "5.0", "15.0", "20.0"]


def test_the_change_from_one_world_to_another() -> None:
    results = {"demo": evaluation(0), "charts": evaluation(0.05)}
    cells = row("cross_domain", "answers right, from what is kept", **results)
    assert [cell.split()[0] for cell in cells] == ["60.0", "55.0", "-5.0"]
    cells = row("cross_domain", "recall@1, reranked", demo=evaluation(0))
    assert [cell.split()[0] for cell in cells] == ["30.0", "not", "not"]


def test_captions_before_and_after() -> None:
    results = {"captions": evaluation(0), "captions_zero_shot": evaluation(0.05)}
    first = [
        row("caption_retrieval", label, **results)[0].split()[0]
        for label in (
            "retrieved",
            "reranked by the demo's reranker, of questions",
            "reranked by one trained on captions",
        )
    ]
    assert first == ["10.0", "25.0", "30.0"]


def test_an_ablation_has_its_intervals_and_gains() -> None:
    def summary(mean: float, gain: float | None) -> dict[str, Any]:
        ends = {"low": mean - 0.02, "high": mean + 0.02}
        told = None if gain is None else {"mean": gain, "low": gain - 0.01, "high": gain + 0.01}
        return {"values": [mean], "mean": mean, **ends, "gain": told}

    result = {
        "num_questions": 520,
        "seeds": [0, 1, 2],
        "settings": {"max_steps": 120},
        "arms": {
            "plain": {"changes": {}, "measures": {"gold": summary(0.5, None)}},
            "both": {"changes": {}, "measures": {"gold": summary(0.55, 0.05)}},
        },
    }
    for name in ("ablation_noise", "ablation_low_resource"):
        cells = row(name, "both", **{name: result})
        assert cells == ["55.0 (53.0 to 57.0)", "+5.0 (+4.0 to +6.0)"]
        assert "mean of 3 seeds" in TABLES[name]({name: result}.get)


def spread(median: float) -> dict[str, float]:
    return {"median": median, "iqr": 0.1, "min": median - 0.5, "max": median + 0.5}


def test_costs_are_ratios() -> None:
    overhead = {
        "rerank": {
            "serial": {"ms": spread(500), "speedup": spread(1), "peak_mib": 12.2},
            "cached, warm": {"ms": spread(50), "speedup": spread(10), "peak_mib": None},
        },
        "machine": {"cpu": "Some CPU", "cores": 2},
    }
    cells = row("overhead", "a query: cached, warm", overhead_cpu=overhead)
    assert cells == ["0.10x", "not measured"]
    assert row("overhead", "a query: serial", overhead_cpu=overhead) == ["1.00x", "12 MiB"]
    trained = overhead | {"train": {"token": {"speedup": spread(0.8), "peak_mib": 7}}}
    assert row("overhead", "a training step: token", overhead_cpu=trained) == ["1.25x", "7 MiB"]
    ways = {way: {"ms": spread(9e3), "speedup": spread(2)} for way in ("generate", "evaluate")}
    ways["one_pair"] = {"ms": spread(9e3), "speedup": spread(1.5)}
    speed = {
        "rounds": 3,
        "num_questions": 520,
        "num_pairs": 17_500,
        "num_documents": 1560,
        "ranked": ways,
        "whole": {**ways, "evaluate": {"ms": spread(9e3), "speedup": spread(4)}},
        "machine": {"device": "Some CPU, 2 cores"},
    }
    cells = row("evaluate_speed", "**`ragvl evaluate`**", evaluate_cpu=speed)
    assert cells == ["2.00x (1.50 to 2.50)", "4.00x (3.50 to 4.50)"]
    assert " ms" not in TABLES["overhead"]({"overhead_cpu": overhead}.get)
