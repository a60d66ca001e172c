"""An evaluation's plots, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from scipy.special import logit
from scipy.stats import gaussian_kde

from ragvl.messages import shown

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ragvl",  # the same bytes each time
    "text.parse_math": False,  # a category or a caption may hold dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 9,
}
_SIZE = (4.6, 3.0)  # inches
_BEFORE, _AFTER, _BAD, _GOOD = "#9a6324", "#1f6fb4", "#b42318", "#157f3c"
_LONGEST_LABEL = 60  # characters; a longer one would leave no room for the plot
_LINES = ("-", "--", "-.", ":")


def svg(figure: Figure) -> str:
    """The figure as text, the same each time."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def recall_plot(pools: Mapping[str, Any]) -> str:
    """recall@k of both orders, a panel for each pool; bands are 95 % intervals."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_SIZE[0] * max(1, 0.75 * len(pools)), _SIZE[1]))
        figure.set_layout_engine("constrained")
        panels = figure.subplots(1, len(pools), sharey=True, squeeze=False)[0]
        for axes, (pool, found) in zip(panels, pools.items(), strict=True):
            for order, color in (("retrieved", _BEFORE), ("reranked", _AFTER)):
                figures = {
                    int(name.removeprefix("recall@")): value
                    for name, value in found[order].items()
                    if name.startswith("recall@")
                }
                _band(axes, list(figures), list(figures.values()), color, order)
            axes.set(xlabel="k", ylim=(0, 1.02), title=f"{pool} pool", xticks=list(figures))
        panels[0].set_ylabel("recall@k")
        panels[0].legend(frameon=False, loc="lower right")
        return svg(figure)


def relevance_plot(
    correct: Sequence[float], erroneous: Sequence[float], thresholds: Mapping[str, float]
) -> str:
    """Densities of relevance of correct and erroneous recalls, with the thresholds.

    The axis is stretched to both ends, as log-odds are; there the densities are estimated.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE)
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        every = logit(np.clip([*erroneous, *correct] or [0.5], 1e-6, 1 - 1e-6))
        # Few recalls, few bins: a narrow one that holds any would flatten the curves
        edges = np.histogram_bin_edges(every, bins=min(30, max(5, round(len(every) ** 0.5))))
        for values, color, label in (
            (erroneous, _BAD, "erroneous"),
            (correct, _GOOD, "correct"),
        ):
            if not len(values):
                continue
            log_odds = logit(np.clip(values, 1e-6, 1 - 1e-6))
            axes.hist(
                log_odds,
                bins=edges.tolist(),
                density=True,
                color=color,
                alpha=0.25,
                label=f"{label} recalls ({len(values)})",
            )
            if len(values) > 2 and np.ptp(log_odds) > 0:
                points = np.linspace(log_odds.min() - 1, log_odds.max() + 1, 300)
                axes.plot(points, gaussian_kde(log_odds)(points), color=color)
        for number, (name, threshold) in enumerate(thresholds.items()):
            at = logit(np.clip(threshold, 1e-6, 1 - 1e-6))
            axes.axvline(
                at,
                color="black",
                linewidth=1,
                linestyle=_LINES[number % 4],
                label=_label(f"{name} ({threshold:.2f})"),
            )
        low, high = axes.get_xlim()
        ticks = [
            p for p in (1e-6, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999) if low < logit(p) < high
        ]
        axes.set_xticks(logit(ticks), [f"{p:g}" for p in ticks])
        axes.set(xlabel="relevance", ylabel="density of log-odds")
        axes.legend(frameon=False, fontsize=7)
        return svg(figure)


def reliability_plot(bins: Sequence[Mapping[str, Any]], error: Mapping[str, Any]) -> str:
    """Relevance against the share of gold documents; on the diagonal they agree.

    A bin's number of pairs stands beside it, and its interval.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE)
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
        for found in bins:
            if found["low"] is not None:
                axes.plot([found["relevance"]] * 2, [found["low"], found["high"]], color=_AFTER)
            axes.plot(found["relevance"], found["gold"], "o", color=_AFTER, markersize=4)
            side = "right" if found["relevance"] > 0.85 else "left"
            axes.annotate(
                f" {found['count']:,} ", (found["relevance"], found["gold"]), fontsize=6, ha=side
            )
        told = f"{error['value']:.3f}"
        if error["low"] is not None:
            told += f" ({error['low']:.3f} to {error['high']:.3f})"
        axes.set(xlabel="relevance", ylabel="share of gold documents", xlim=(-0.03, 1.03))
        axes.set(ylim=(-0.03, 1.03), title=f"expected calibration error {told}")
        return svg(figure)


def category_plot(
    answers: Mapping[str, Any], ways: Sequence[str], counts: Mapping[str, int]
) -> str:
    """The main measure of answers by category, a bar for each way of choosing documents.

    Args:
        answers: figures by way.
        ways: which of them.
        counts: how many questions each category has.
    """
    with mpl.rc_context(STYLE):
        shown = [way for way in ways if answers.get(way)]
        categories = list(answers[shown[0]]["by_category"])
        figure = Figure(figsize=(max(_SIZE[0], 0.95 * len(categories) + 1.2), _SIZE[1]))
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        width = 0.8 / len(shown)
        palette = (_BEFORE, _AFTER, _GOOD, "#7a5195", "#ef5675")
        for number, way in enumerate(shown):
            figures = [answers[way]["by_category"][category] for category in categories]
            places = np.arange(len(categories)) + (number - (len(shown) - 1) / 2) * width
            axes.bar(
                places,
                [found["value"] for found in figures],
                width,
                yerr=_error_bars(figures),
                color=palette[number % len(palette)],
                label=_label(way),
                error_kw={"linewidth": 0.8},
            )
            for place, found in zip(places, figures, strict=True):
                axes.annotate(
                    f"{100 * found['value']:.0f}",
                    (place, 0.01),
                    fontsize=6,
                    ha="center",
                    va="bottom",
                )
        labels = [_label(f"{name} ({counts.get(name, '?')})") for name in categories]
        axes.set_xticks(np.arange(len(categories)), labels)
        axes.set(ylabel=next(iter(answers[shown[0]])), ylim=(0, 1.02))
        figure.legend(frameon=False, fontsize=7, ncols=len(shown), loc="outside upper center")
        axes.grid(axis="x", visible=False)
        return svg(figure)


def latency_plot(latency_ms: Mapping[str, Sequence[float]]) -> str:
    """Milliseconds of each stage: the middle half of questions, their median and extremes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE)
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        axes.boxplot(
            list(latency_ms.values()),
            orientation="horizontal",
            whis=(0, 100),
            tick_labels=list(latency_ms),
            medianprops={"color": _AFTER},
        )
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="milliseconds a question")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        return svg(figure)


def ablation_plot(result: Mapping[str, Any]) -> str:
    """Each arm's mean of each measure with its 95 % interval over seeds, and the seeds as dots."""
    arms = result["arms"]
    measures = list(next(iter(arms.values()))["measures"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.0 * len(measures) + 1.6, 0.27 * len(arms) + 1.0))
        figure.set_layout_engine("constrained")
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        places = np.arange(len(arms))
        for axes, measure in zip(panels, measures, strict=True):
            for place, found in zip(places, arms.values(), strict=True):
                summary = found["measures"][measure]
                values = [100 * value for value in summary["values"]]
                axes.plot(values, [place] * len(values), "|", color="grey", markersize=7)
                if summary["low"] is not None:
                    ends = [100 * summary["low"], 100 * summary["high"]]
                    axes.plot(ends, [place, place], color=_AFTER, linewidth=1.5)
                axes.plot(100 * summary["mean"], place, "o", color=_AFTER, markersize=4)
            axes.set(title=measure, xlabel="%")
        panels[0].set_yticks(places, list(map(_label, arms)))
        panels[0].invert_yaxis()
        return svg(figure)


def _label(name: str) -> str:
    """A name from outside as a plot may hold it; a legend leaves out what begins with "_"."""
    label = shown(name, _LONGEST_LABEL)
    return f" {label}" if label.startswith("_") else label


def _band(
    axes: Axes, places: Sequence[int], figures: Sequence[Mapping[str, Any]], color: str, label: str
) -> None:
    values = [found["value"] for found in figures]
    axes.plot(places, values, "o-", color=color, markersize=4, label=label)
    if all(found["low"] is not None for found in figures):
        low, high = ([found[key] for found in figures] for key in ("low", "high"))
        axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)


def _error_bars(figures: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(2, n) distances to both ends of the interval."""
    ends = [
        (found["value"], found["value"]) if found["low"] is None else (found["low"], found["high"])
        for found in figures
    ]
    values = np.array([found["value"] for found in figures])
    low, high = np.array(ends).T
    return np.stack([values - low, high - values]).clip(0)
