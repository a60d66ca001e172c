"""One function for each plot of the documents: results in, SVG out, None if nothing is measured.

Of a CPU only ratios are drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
from gpu_rerank import measured_models
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from tables import Result, Results

from ragvl.ablation.plots import ablation_plot
from ragvl.ablation.result import AblationResult
from ragvl.evaluation.plots import STYLE, relevance_plot, svg
from ragvl.evaluation.result import EvaluationResult, from_json

_COLORS = {"cold": "#9a6324", "warm": "#1f6fb4"}


def prefix_cache_cost(results: Results) -> str:
    """Time against each thing that is varied, as a share of a cold call with nothing varied."""
    result = results["prefix_cache_cpu"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.9), layout="constrained")
        panels = figure.subplots(1, len(result["scaling"]), sharey=True)
        whole = result["scaling"]["candidates"]["points"][-1]["cold"]["median"]
        for axes, (what, line) in zip(panels, result["scaling"].items(), strict=True):
            counts = [point["x"] for point in line["points"]]
            for method, color in _COLORS.items():
                low, median, high = (
                    [point[method][key] / whole for point in line["points"]]
                    for key in ("min", "median", "max")
                )
                axes.plot(counts, median, "o-", color=color, markersize=4, label=method)
                axes.fill_between(counts, low, high, color=color, alpha=0.2, linewidth=0)
            _log_scale(axes)
            axes.set(xlabel=what, xticks=counts, xlim=(0, None))
        panels[0].set_ylabel("time (log), cold call = 1")
        panels[0].legend(frameon=False)
        return svg(figure)


def _log_scale(axes: Axes) -> None:
    """A logarithmic axis with plain numbers: matplotlib writes formulas, and `STYLE` reads none."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def gpu_rerank(results: Results) -> str | None:
    """Milliseconds of each method to rerank on a GPU by model, and by share of known documents."""
    models = measured_models(results)
    if not models:
        return None
    tiers = results.get("gpu_rerank_tiers")
    methods = {
        "serial_generate": ("`generate`", "#b42318"),
        "padded_batch": ("padded batch", "#9a6324"),
        "fast_rerank_cold": ("cold", "#7a5195"),
        "stock_cache_warm": ("stock cache, warm", "#6b7280"),
        "fast_rerank_warm": ("warm", "#1f6fb4"),
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        cases = [(result["model"], result["cases"][0]) for result in models]
        for number, (method, (label, color)) in enumerate(methods.items()):
            places = [place + 0.15 * (number - 2) for place in range(len(cases))]
            medians = [case["methods"][method]["ms"]["median"] for _, case in cases]
            left.bar(places, medians, 0.14, color=color, label=label)
        least = [case["least_ms"]["warm"] for _, case in cases]
        left.plot(range(len(cases)), least, "k_", markersize=18, label="warm, at best")
        left.set_xticks(range(len(cases)), [name for name, _ in cases], rotation=20, ha="right")
        _log_scale(left)
        left.set_ylabel("milliseconds, 20 candidates")
        left.legend(frameon=False, fontsize=7, ncols=2)
        for model in tiers["models"][:1] if tiers else ():
            for row in model["tiers"]:
                shares = [100 * float(share) for share in row["by_share"]]
                medians = [figures["ms"]["median"] for figures in row["by_share"].values()]
                right.plot(shares, medians, "o-", markersize=4, label=row["tier"])
            _log_scale(right)
            right.set(title=model["model"], xlabel="known documents, %")
            right.set_ylabel("milliseconds")
            right.legend(frameon=False, fontsize=7)
        return svg(figure)


def relevance(results: Results) -> str:
    """Relevance of the demo's correct and erroneous recalls, with the thresholds."""
    result = from_json(EvaluationResult, results["demo"])
    recalls = result.pools["full"].recalls
    assert recalls is not None  # the demo's gold documents are known
    return relevance_plot(recalls, result.thresholds)


def visual_weights(results: Results) -> str | None:
    """How far the logits of answers' first tokens and of the others fall, by kind of noise."""
    if "visual_weights" not in results:
        return None
    result = results["visual_weights"]
    by_place: dict[str, list[Result]] = {}
    for noise in result["noises"]:
        by_place.setdefault(noise["place"], []).append(noise)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, (place, noises) in enumerate(by_place.items()):
            timesteps = [noise["timestep"] for noise in noises]
            for tokens, line in (("first", "o-"), ("others", "--")):
                gaps = [noise[tokens]["gap"] for noise in noises]
                left.plot(timesteps, gaps, line, color=f"C{number}", markersize=3)
            for by, line, label in (
                ("told_apart", "o-", place),
                ("told_apart_by_log_probability", "--", None),
            ):
                shares = [100 * noise[by] for noise in noises]
                right.plot(timesteps, shares, line, color=f"C{number}", markersize=3, label=label)
        for end in result["clamp"]:
            left.axhline(end, color="grey", linewidth=0.8, linestyle=":")
        right.axhline(50, color="grey", linewidth=0.8, linestyle=":")
        left.set(title="mean gap of first tokens; of others dashed", xlabel="timestep")
        right.set(title="told apart, %, by logits; by log-probabilities dashed", xlabel="timestep")
        figure.legend(frameon=False, fontsize=8, loc="outside right upper")
        return svg(figure)


def ablation_noise(results: Results) -> str | None:
    """What each kind of noise teaches the demo's generator."""
    return _ablation(results, "ablation_noise")


def ablation_low_resource(results: Results) -> str | None:
    """What a share of the data teaches the demo's reranker."""
    return _ablation(results, "ablation_low_resource")


def ablation_real_noise(results: Results) -> str | None:
    """What noise teaches on real pictures."""
    return _ablation(results, "ablation_real_noise")


def _ablation(results: Results, name: str) -> str | None:
    return ablation_plot(from_json(AblationResult, results[name])) if name in results else None


PLOTS: dict[str, Callable[[Results], str | None]] = {
    "prefix-cache-cost": prefix_cache_cost,
    "gpu-rerank": gpu_rerank,
    "relevance": relevance,
    "ablation-noise": ablation_noise,
    "ablation-low-resource": ablation_low_resource,
    "ablation-real-noise": ablation_real_noise,
    "visual-weights": visual_weights,
}
