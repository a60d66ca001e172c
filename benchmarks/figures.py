"""The README's table: what ragvl gives against what one would otherwise run, from all results."""

from __future__ import annotations

from collections.abc import Iterable

from bench_relevance_head import speed_over_eager
from bench_vllm import SHORT, WARM
from tables import Result, Results, devices, on_each_cpu, table

GENERATE = "`generate` for each candidate, as RagVL's release does"


def figures(results: Results) -> str:
    """A row for each thing to do: in the place of what, and how many times as fast."""
    rerank, cached, evaluation, head, attention, noise, loss = (
        results[f"{name}_cpu"]
        for name in (
            *("fast_rerank", "prefix_cache", "evaluate", "relevance_head", "prefix_attention"),
            *("diffusion_noise", "visual_weighted_cross_entropy"),
        )
    )
    cases = rerank["cases"]
    templates = cached["templates"]
    few_labels = [case for case in loss["cases"] if case["labelled"] == "5 %"]
    rows = [
        [
            "**rerank 20 known pictures**",
            GENERATE,
            _span(_medians(cases, "fast_rerank_warm", "speedup")),
        ],
        [
            "the same",
            "sentence-transformers' `CrossEncoder`",
            _span(_medians(cases, "fast_rerank_warm", "speedup_over_cross_encoder")),
        ],
        [
            "rerank 20 pictures never seen",
            GENERATE,
            _span(_medians(cases, "fast_rerank_cold", "speedup")),
        ],
        *_against_vllm(results),
        [
            "the template `instruction-first`, known pictures",
            "the paper's template, known pictures",
            _span([templates["instruction-first"]["speed"]["median"]]),
        ],
        [
            f"evaluate {evaluation['num_pairs']:,} pairs, with answers",
            "`generate` for each pair",
            _span([evaluation["whole"]["evaluate"]["speedup"]["median"]]),
        ],
        [
            "`ragvl.ops.relevance_head`",
            "two rows of the head, eager",
            _span(speed_over_eager(case, case["methods"]["cpu"]) for case in head["cases"]),
        ],
        [
            "`ragvl.ops.prefix_attention`",
            "padding and joining a stock cache, torch's attention",
            _span(_medians(attention["cases"], "cpu", "speedup")),
        ],
        [
            "`ragvl.ops.diffusion_noise`",
            "clone, `randn_like`, masked write",
            _span(_medians(noise["cases"], "cpu", "speedup")),
        ],
        [
            "`ragvl.ops.visual_weighted_cross_entropy`, 5 % labelled",
            "logits of both branches",
            _span(_medians(few_labels, "cpu", "speedup")),
        ],
    ]
    machines = devices(
        [rerank, cached, evaluation, head, attention, noise, loss, *on_each_cpu(results, "vllm")]
    )
    note = (
        f"{machines}; times as fast, medians, lowest to highest case. In a run the methods of a "
        "row took turns; the methods of the first three rows give scores that agree "
        f"within {max(case['max_score_difference'] for case in cases):.0e}."
    )
    return table(["", "in the place of", "speed"], rows, note)


def _against_vllm(results: Results) -> list[list[str]]:
    """Rows for known pictures, in the same dtype and in int8, if measured."""
    cases = [case for one in on_each_cpu(results, "vllm") for case in one["cases"]]
    same = [case for case in cases if case["dtype"] != "int8"]
    int8 = [case for case in cases if case["dtype"] == "int8"]
    peer = "vLLM's CPU build, which caches prefixes too"
    rows = (
        ("known pictures, in float32 and bfloat16", peer, WARM, same),
        (
            "the same, the template `instruction-first`",
            f"{peer}, the paper's template",
            SHORT,
            same,
        ),
        ("known pictures, in int8", "vLLM's CPU build in bfloat16", WARM, int8),
    )
    return [
        [label, other, _span(case["against"][ours]["median"] for case in measured)]
        for label, other, ours, measured in rows
        if measured
    ]


def _medians(cases: Iterable[Result], method: str, speed: str) -> list[float]:
    """Of the cases in which a method and what it is compared with were measured."""
    measured = (case["methods"].get(method, {}).get(speed) for case in cases)
    return [spread["median"] for spread in measured if spread is not None]


def _span(speeds: Iterable[float]) -> str:
    """From the slowest case to the fastest."""
    ordered = sorted(speeds)
    low, high = f"{ordered[0]:.1f}x", f"{ordered[-1]:.1f}x"
    return low if low == high else f"{low} to {high}"
