"""Trains and tests a grid of settings, several seeds each: `ragvl ablate`; see `grid`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ragvl.ablation.grid import UNTRAINED, AblationSettings
from ragvl.ablation.jobs import Job, plan_jobs
from ragvl.ablation.result import AblationResult, FailedRun, RunResult
from ragvl.ablation.robustness import TEST_NOISE
from ragvl.ablation.runs import do_run
from ragvl.ablation.summary import measured_by, summarise_arms
from ragvl.ablation.test_set import TestSet


def ablate(
    settings: AblationSettings,
    work: Path,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> AblationResult:
    """Does the runs that `work` does not hold yet; returns all results.

    A run that was broken off goes on from its last checkpoint, if it saved one. One that fails does
    not end the others; the next call tries it again.

    Args:
        settings: the grid.
        work: keeps each run's result, under a name that says what it depends on: its settings, the
            weights it starts from, and the data.
        report: gets a line after each run.

    Returns:
        What was measured of each arm. Intervals are Student's over seeds: they tell how much of a
        difference is the luck of a training run, on these test questions.

    Raises:
        ValueError: settings or data that cannot be used, noticed before anything is trained, or no
            run that did not fail.
        OSError: the test's data or encoder is not there.
    """
    work.mkdir(parents=True, exist_ok=True)
    test = TestSet.prepare(settings, work)
    jobs = plan_jobs(settings, test.name, work)
    done: list[tuple[Job, RunResult]] = []
    failed: list[FailedRun] = []
    for job in jobs:
        result = do_run(job, settings, test)
        if isinstance(result, FailedRun):
            failed.append(result)
            outcome = f"failed: {result.reason}"
        else:
            done.append((job, result))
            outcome = ", ".join(f"{name} {100 * v:.1f}" for name, v in result.measures.items())
        report(f"{job.run.arm}, seed {job.run.seed}: {outcome}")
    if not done:
        raise ValueError(settings.in_file(f"every run failed, the first: {failed[0].reason}"))
    baseline = next(run.arm for run in settings.runs() if run.arm != UNTRAINED)
    here, *others = measured_by([result for _, result in done])
    return AblationResult(
        stage=settings.stage,
        test=test.source.name,
        num_questions=done[0][1].num_questions,
        settings=settings.settings,
        seeds=settings.seeds,
        baseline=baseline,
        arms=summarise_arms(jobs, done, baseline),
        failed=failed,
        encoder=test.fingerprints.get("encoder"),
        reranker=test.fingerprints.get("reranker"),
        lemmatizer=test.lemmatizer,
        test_noise=dict(TEST_NOISE) if settings.stage == "generator" else None,
        noise_ratios={c.name: c.noise_ratio(test.questions) for c in test.conditions},
        machine=here.machine,
        versions=here.versions,
        also_measured_by=others,
    )
