"""Gathers the runs of a grid by arm, with intervals over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as student

from ragvl.ablation.grid import UNTRAINED
from ragvl.ablation.jobs import NO_INGREDIENTS, Job
from ragvl.ablation.result import ArmResult, MeasuredBy, MeasureSummary, RunResult, SeedSummary
from ragvl.evaluation.result import from_json, to_json
from ragvl.training.command import Plan


def summarise_arms(
    jobs: Sequence[Job], done: Sequence[tuple[Job, RunResult]], baseline: str
) -> dict[str, ArmResult]:
    """What was measured of each arm of which a run is done, in the grid's order."""
    by_arm: dict[str, dict[int, Mapping[str, float]]] = {}
    for job, result in done:
        by_arm.setdefault(job.run.arm, {})[job.run.seed] = result.measures
    first = {job.run.arm: (job, result) for job, result in reversed(done)}
    names = _reported_settings([job.plan for job in jobs if job.run.arm != UNTRAINED])
    arms = {}
    for arm in dict.fromkeys(job.run.arm for job in jobs if job.run.arm in by_arm):
        job, result = first[arm]
        trained = arm != UNTRAINED
        over = by_arm.get(baseline, {}) if arm not in (baseline, UNTRAINED) else {}
        arms[arm] = ArmResult(
            changes=dict(job.run.changes),
            settings={name: _plain(job.plan.values[name]) for name in names} if trained else {},
            seeds=list(by_arm[arm]) if trained else [],
            model=job.model,
            training=result.training,
            token_weights=_means([r.token_weights for j, r in done if j.run.arm == arm]),
            measures={
                measure: summarise_measure(by_arm[arm], over, measure)
                for measure in result.measures
            },
        )
    return arms


def summarise_measure(
    by_seed: Mapping[int, Mapping[str, float]],
    baseline: Mapping[int, Mapping[str, float]],
    measure: str,
) -> MeasureSummary:
    """One measure of an arm, and its gain over the baseline.

    Args:
        by_seed: the arm's measures.
        baseline: those of the baseline; gains are of the seeds that both have.
        measure: which.
    """
    summary = summarise([measures[measure] for measures in by_seed.values()])
    gains = [
        by_seed[seed][measure] - baseline[seed][measure] for seed in by_seed if seed in baseline
    ]
    return MeasureSummary(
        summary.values, summary.mean, summary.low, summary.high, summarise(gains) if gains else None
    )


def summarise(values: Sequence[float]) -> SeedSummary:
    """The mean of one value a seed, with Student's interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return SeedSummary(list(values), mean, None, None)
    reach = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return SeedSummary(list(values), mean, float(mean - reach), float(mean + reach))


def measured_by(results: Sequence[RunResult]) -> list[MeasuredBy]:
    """Where the runs were done, most runs first."""
    places = Counter(
        json.dumps(to_json(MeasuredBy(result.machine, result.versions))) for result in results
    )
    return [from_json(MeasuredBy, json.loads(text)) for text, _ in places.most_common()]


def _means(of_seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the seeds of what is noted of all of them."""
    return {
        name: statistics.fmean(seed[name] for seed in of_seeds)
        for name in of_seeds[0]
        if all(name in seed for seed in of_seeds)
    }


def _reported_settings(plans: Sequence[Plan]) -> list[str]:
    """Names of the settings that runs differ in, and those of a generator's noise."""
    values = [plan.values for plan in plans]
    return [
        name
        for name in values[0]
        if name.startswith("noise.")
        or (name not in (*NO_INGREDIENTS, "seed") and len({str(v.get(name)) for v in values}) > 1)
    ]


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)
