"""Nothing in a plot covers anything else, whatever is drawn."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ragvl.evaluation import plots
from ragvl.evaluation.metrics import ranking_figures, ratio
from ragvl.evaluation.result import (
    AnswerFigures,
    PoolResult,
    RecallScores,
    Reliability,
    ReliabilityBin,
)
from ragvl.evaluation.result import Figure as Share


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written as SVG, laid out."""
    figures = []
    write = plots.svg

    def keep(figure: Figure) -> str:
        FigureCanvasAgg(figure).draw()
        figures.append(figure)
        return write(figure)

    monkeypatch.setattr(plots, "svg", keep)
    return figures


def labels_of(axis: Axis) -> list[Bbox]:
    return [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]


def overlapping(boxes: list[Bbox]) -> bool:
    boxes = sorted(boxes, key=lambda box: box.x0)
    return any(left.x1 > right.x0 for left, right in pairwise(boxes))


def check_legend(figure: Figure) -> None:
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


def pool(recalled: list[list[str]]) -> PoolResult:
    figures = ranking_figures(recalled, [["a"]] * len(recalled))
    return PoolResult(
        num_documents=9,
        retrieved=figures,
        reranked=figures,
        answers={},
        estimated_otherwise=[],
    )


@pytest.mark.parametrize("number", [1, 2])
def test_the_curves_of_recall_are_free(number: int, drawn: list[Figure]) -> None:
    names: Any = ["full", "gold"][:number]
    plots.recall_plot({name: pool([["b", "c"], ["d", "b"]]) for name in names})
    check_legend(drawn[0])
    for axes in drawn[0].axes:
        texts = [label.get_text() for label in axes.xaxis.get_ticklabels()]
        assert texts == ["1", "2", "5", "10", "20"]
        assert not overlapping(labels_of(axes.xaxis))


def test_densities_are_free_of_many_thresholds(drawn: list[Figure]) -> None:
    thresholds = {f"precision>=0.{n}": n / 10 for n in range(1, 10)}
    plots.relevance_plot(RecallScores([0.1, 0.5, 0.99] * 20, [0.01, 0.2, 0.6] * 20), thresholds)
    check_legend(drawn[0])


@pytest.mark.parametrize(
    "spread",
    [(20, 45), (1.2, 14), (2, 400), (0.8, 90_000), (3, 3), (0.004, 2_000_000)],
)
def test_milliseconds_do_not_run_into_each_other(
    spread: tuple[float, float], drawn: list[Figure]
) -> None:
    low, high = spread
    plots.latency_plot({"retrieve": [low, low], "rerank": [low, high, high]})
    assert not overlapping(labels_of(drawn[0].axes[0].xaxis))


@pytest.mark.parametrize("count", [7, 12_345, 123_456, 98_765_432])
def test_counts_of_pairs_do_not_run_into_each_other(count: int, drawn: list[Figure]) -> None:
    """The means of neighbouring bins, 0.19 and 0.21, would."""
    means = [bin / 10 + (0.09 if bin % 2 else 0.01) for bin in range(10)]
    bins = [ReliabilityBin(mean, mean / 2, None, None, count) for mean in means]
    plots.reliability_plot(Reliability(bins, Share(0.1, None, None, 3)))
    (top,) = drawn[0].axes[0].child_axes
    boxes = labels_of(top.xaxis)  # type: ignore[attr-defined]
    assert len(boxes) == 10
    assert not overlapping(boxes)


@pytest.mark.parametrize("name", ["color", "animals of the sea and of the rivers, drawn"])
def test_categories_do_not_run_into_each_other(name: str, drawn: list[Figure]) -> None:
    share = ratio([1, 0, 1])
    categories = {f"{number} {name}": share for number in range(7)}
    answers = {way: AnswerFigures({"exact": share}, categories) for way in ("retrieved", "gold")}
    plots.category_plot(answers, list(answers), dict.fromkeys(categories, 12))
    check_legend(drawn[0])
    labels = drawn[0].axes[0].xaxis.get_ticklabels()
    if labels[0].get_rotation() == 0:
        assert not overlapping(labels_of(drawn[0].axes[0].xaxis))
    bars = drawn[0].axes[0].get_window_extent()
    assert bars.height > 0.4 * drawn[0].bbox.height
