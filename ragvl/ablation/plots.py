"""An ablation's plot, as SVG text."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ragvl.ablation.result import AblationResult
from ragvl.evaluation.plots import AFTER, STYLE, plot_label, svg

_PANELS_IN_A_ROW = 4


def ablation_plot(result: AblationResult) -> str:
    """Each arm's mean of each measure with its 95 % interval over seeds, and the seeds as dots."""
    arms = result.arms
    columns = min(_PANELS_IN_A_ROW, len(result.measures))
    rows = math.ceil(len(result.measures) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.0 * columns + 1.6, rows * (0.27 * len(arms) + 1.0)))
        figure.set_layout_engine("constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        panels = grid.flatten()[: len(result.measures)]
        for unused in grid.flatten()[len(result.measures) :]:
            unused.set_axis_off()
        places = np.arange(len(arms))
        for axes, name in zip(panels, result.measures, strict=True):
            for place, arm in zip(places, arms.values(), strict=True):
                measure = arm.measures[name]
                values = [100 * value for value in measure.values]
                axes.plot(values, [place] * len(values), "|", color="grey", markersize=7)
                if measure.low is not None and measure.high is not None:
                    ends = [100 * measure.low, 100 * measure.high]
                    axes.plot(ends, [place, place], color=AFTER, linewidth=1.5)
                axes.plot(100 * measure.mean, place, "o", color=AFTER, markersize=4)
            axes.set(title=name, xlabel="%")
        panels[0].set_yticks(places, list(map(plot_label, arms)))
        panels[0].invert_yaxis()  # of all: they share it
        return svg(figure)
