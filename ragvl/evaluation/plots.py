"""An evaluation's plots, as SVG text."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from scipy.special import logit
from scipy.stats import gaussian_kde

from ragvl.data.questions import Pool
from ragvl.evaluation.result import AnswerFigures, PoolResult, RecallScores, Reliability
from ragvl.evaluation.result import Figure as Share
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
_BEFORE, AFTER, _BAD, _GOOD = "#9a6324", "#1f6fb4", "#b42318", "#157f3c"
_LONGEST_LABEL = 60  # characters; a longer one would leave no room for the plot
_LEGEND_WIDTH = 80  # characters that fit above a plot
_LINES = ("-", "--", "-.", ":")


def svg(figure: Figure) -> str:
    """The figure as text, the same each time."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def recall_plot(pools: Mapping[Pool, PoolResult]) -> str:
    """recall@k of both orders, a panel for each pool; bands are 95 % intervals."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_SIZE[0] * max(1, 0.75 * len(pools)), _SIZE[1]))
        figure.set_layout_engine("constrained")
        panels = figure.subplots(1, len(pools), sharey=True, squeeze=False)[0]
        for axes, (pool, result) in zip(panels, pools.items(), strict=True):
            for order, figures, color in (
                ("retrieved", result.retrieved, _BEFORE),
                ("reranked", result.reranked, AFTER),
            ):
                recall = {
                    int(name.removeprefix("recall@")): figure
                    for name, figure in figures.items()
                    if name.startswith("recall@")
                }
                _band(axes, list(recall), list(recall.values()), color, order)
            axes.set(xlabel="k", ylim=(0, 1.02), title=f"{pool} pool", xscale="log")
            axes.set_xticks(list(recall), list(map(str, recall)))
            axes.minorticks_off()
        panels[0].set_ylabel("recall@k")
        _legend_above(figure, panels[0])
        return svg(figure)


def relevance_plot(recalls: RecallScores, thresholds: Mapping[str, float]) -> str:
    """Densities of relevance of correct and erroneous recalls, with the thresholds.

    The axis is stretched to both ends, as log-odds are; there the densities are estimated.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE)
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        every = _log_odds([*recalls.erroneous, *recalls.correct] or [0.5])
        # Few recalls, few bins: a narrow one that holds any would flatten the curves
        edges = np.histogram_bin_edges(every, bins=min(30, max(5, round(len(every) ** 0.5))))
        for scores, color, kind in (
            (recalls.erroneous, _BAD, "erroneous"),
            (recalls.correct, _GOOD, "correct"),
        ):
            if not scores:
                continue
            log_odds = _log_odds(scores)
            axes.hist(
                log_odds,
                bins=edges.tolist(),
                density=True,
                color=color,
                alpha=0.25,
                label=f"{kind} recalls ({len(scores)})",
            )
            if len(scores) > 2 and np.ptp(log_odds) > 0:
                points = np.linspace(log_odds.min() - 1, log_odds.max() + 1, 300)
                axes.plot(points, gaussian_kde(log_odds)(points), color=color)
        for number, (name, threshold) in enumerate(thresholds.items()):
            axes.axvline(
                _log_odds([threshold])[0],
                color="black",
                linewidth=1,
                linestyle=_LINES[number % 4],
                label=plot_label(f"{name} ({threshold:.2f})"),
            )
        low, high = axes.get_xlim()
        ticks = [
            p for p in (1e-6, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999) if low < logit(p) < high
        ]
        axes.set_xticks(logit(ticks), [f"{p:g}" for p in ticks])
        axes.set(xlabel="relevance", ylabel="density of log-odds")
        _legend_above(figure, axes)
        return svg(figure)


def reliability_plot(reliability: Reliability) -> str:
    """Relevance against the share of gold documents; on the diagonal they agree.

    A bin's interval is drawn, and its number of pairs stands above it.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE)
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
        for one in reliability.bins:
            if one.low is not None and one.high is not None:
                axes.plot([one.relevance] * 2, [one.low, one.high], color=AFTER)
            axes.plot(one.relevance, one.gold, "o", color=AFTER, markersize=4)
        error = reliability.error
        text = f"{error.value:.3f}"
        if error.low is not None:
            text += f" ({error.low:.3f} to {error.high:.3f})"
        axes.set(xlabel="relevance", ylabel="share of gold documents", xlim=(-0.03, 1.03))
        axes.set(ylim=(-0.03, 1.03), title=f"expected calibration error {text}")
        counts = axes.secondary_xaxis("top")
        # Means in neighbouring bins may lie side by side; the middles of ten bins do not
        counts.set_xticks(
            [(math.floor(10 * min(one.relevance, 0.99)) + 0.5) / 10 for one in reliability.bins],
            [_brief_count(one.count) for one in reliability.bins],
            fontsize=6,
        )
        counts.set_xlabel("pairs", fontsize=6)
        counts.tick_params(length=0)
        counts.spines.top.set_visible(False)
        return svg(figure)


def category_plot(
    answers: Mapping[str, AnswerFigures], selections: Sequence[str], counts: Mapping[str, int]
) -> str:
    """The main measure of answers by category, a bar for each selection of documents.

    Args:
        answers: figures by selection.
        selections: which of them.
        counts: how many questions each category has.
    """
    with mpl.rc_context(STYLE):
        shown = {name: answers[name] for name in selections if name in answers}
        first = next(iter(shown.values()))
        categories = list(first.by_category)
        labels = [plot_label(f"{name} ({counts.get(name, '?')})") for name in categories]
        longest = max(map(len, labels))
        slanted: Any = {"rotation": 30, "ha": "right"} if longest > 14 else {}
        height = _SIZE[1] + (0.035 * longest if slanted else 0)
        figure = Figure(figsize=(max(_SIZE[0], 0.95 * len(categories) + 1.2), height))
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        width = 0.8 / len(shown)
        palette = (_BEFORE, AFTER, _GOOD, "#7a5195", "#ef5675")
        for number, (name, of_selection) in enumerate(shown.items()):
            shares = [of_selection.by_category[category] for category in categories]
            values = [share.value or 0.0 for share in shares]
            places = np.arange(len(categories)) + (number - (len(shown) - 1) / 2) * width
            axes.bar(
                places,
                values,
                width,
                yerr=_error_bars(shares),
                color=palette[number % len(palette)],
                label=plot_label(name),
                error_kw={"linewidth": 0.8},
            )
            for place, value in zip(places, values, strict=True):
                axes.annotate(
                    f"{100 * value:.0f}", (place, 0.01), fontsize=6, ha="center", va="bottom"
                )
        axes.set_xticks(np.arange(len(categories)), labels, **slanted)
        axes.set(ylabel=next(iter(first.measures)), ylim=(0, 1.02))
        _legend_above(figure, axes)
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
            medianprops={"color": AFTER},
        )
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="milliseconds a question")
        every = [ms for stage in latency_ms.values() for ms in stage]
        axes.xaxis.set_major_locator(LogLocator(subs=_steps(min(every), max(every))))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        return svg(figure)


def plot_label(name: str) -> str:
    """A name from outside as a plot may hold it; a legend leaves out what begins with "_"."""
    text = shown(name, _LONGEST_LABEL)
    return f" {text}" if text.startswith("_") else text


def _legend_above(figure: Figure, axes: Axes) -> None:
    """The legend of `axes` where it covers nothing: above the plot."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), _LEGEND_WIDTH // (max(map(len, labels), default=0) + 6)))
    figure.legend(
        handles, labels, frameon=False, fontsize=7, ncols=columns, loc="outside upper center"
    )


def _brief_count(number: int) -> str:
    return f"{number:,}" if number < 10**6 else f"{number / 10**6:.1f}M"


def _steps(low: float, high: float) -> Sequence[int]:
    """What a decade of a logarithmic axis is divided at, so that labels have room."""
    decades = math.log10(high / low) if 0 < low < high else 0
    if decades > 2.5:
        return (1,)
    return (1, 2, 5) if decades > 0.7 else tuple(range(1, 10))


def _log_odds(relevance: Sequence[float]) -> np.ndarray:
    return logit(np.clip(relevance, 1e-6, 1 - 1e-6))


def _band(
    axes: Axes, places: Sequence[int], shares: Sequence[Share], color: str, label: str
) -> None:
    value, low, high = np.array([(s.value, s.low, s.high) for s in shares], np.float64).T
    axes.plot(places, value, "o-", color=color, markersize=4, label=label)
    if not np.isnan(low).any():
        axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)


def _error_bars(shares: Sequence[Share]) -> np.ndarray:
    """(2, n) distances to both ends of the interval; 0 where there is none."""
    value, low, high = np.array([(s.value, s.low, s.high) for s in shares], np.float64).T
    return np.nan_to_num(np.stack([value - low, high - value])).clip(0)
