"""One function for each plot of the documents: results in, SVG out, None if nothing is measured.

Of a CPU only ratios are drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
from matplotlib.figure import Figure
from tables import Load

from ragvl.evaluation.plots import STYLE, ablation_plot, relevance_plot, svg

_COLORS = {"cold": "#9a6324", "warm": "#1f6fb4"}


def prefix_cache_cost(load: Load) -> str | None:
    """Time against each thing that is varied, as a share of a cold call with nothing varied."""
    result = load("prefix_cache_cpu") or load("prefix_cache_cuda")
    if result is None:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.9), layout="constrained")
        panels = figure.subplots(1, len(result["scaling"]), sharey=True)
        whole = result["scaling"]["candidates"]["points"][-1]["cold"]["median"]
        for axes, (what, found) in zip(panels, result["scaling"].items(), strict=True):
            counts = [point["x"] for point in found["points"]]
            for way, color in _COLORS.items():
                low, median, high = (
                    [point[way][key] / whole for point in found["points"]]
                    for key in ("min", "median", "max")
                )
                axes.plot(counts, median, "o-", color=color, markersize=4, label=way)
                axes.fill_between(counts, low, high, color=color, alpha=0.2, linewidth=0)
            axes.set(yscale="log", xlabel=what, xticks=counts, xlim=(0, None))
        panels[0].set_ylabel("time (log), cold call = 1")
        panels[0].legend(frameon=False)
        return svg(figure)


def relevance(load: Load) -> str | None:
    """Relevance of the demo's correct and erroneous recalls, with the thresholds."""
    result = load("demo")
    if result is None:
        return None
    recalls = result["pools"]["full"]["recalls"]
    return relevance_plot(recalls["correct"], recalls["erroneous"], result["thresholds"])


def ablation_noise(load: Load) -> str | None:
    """What each kind of noise teaches the demo's generator."""
    result = load("ablation_noise")
    return None if result is None else ablation_plot(result)


def ablation_low_resource(load: Load) -> str | None:
    """What a share of the data teaches the demo's reranker."""
    result = load("ablation_low_resource")
    return None if result is None else ablation_plot(result)


PLOTS: dict[str, Callable[[Load], str | None]] = {
    "prefix-cache-cost": prefix_cache_cost,
    "relevance": relevance,
    "ablation-noise": ablation_noise,
    "ablation-low-resource": ablation_low_resource,
}
