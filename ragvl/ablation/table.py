"""An ablation's result as tables, which say what sets its arms apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

from ragvl.ablation.result import AblationResult, ArmResult, SeedSummary
from ragvl.messages import visible
from ragvl.training.command import RunSettings
from ragvl.training.noise import NoiseSettings

Rows = list[list[str]]  # of a table, the head first

_LONGEST_REASON = 160  # in a cell
_MOST_MEASURES = 4  # beside each other


def tables(result: AblationResult) -> list[Rows]:
    """All of a result, in tables that fit a page.

    Few measures are in a table of all arms and one of gains. Of many, the first table says what
    sets the arms apart; each other has a few measures: of the baseline as they are, of other arms
    as gains over it.
    """
    if len(result.measures) <= _MOST_MEASURES:
        return [rows for rows in (table(result), gains(result)) if len(rows) > 1]
    return [
        table(result, []),
        *(_compared(result, few) for few in _parts(result.measures)),
    ]


def table(result: AblationResult, measures: Sequence[str] | None = None) -> Rows:
    """What sets the arms apart, and means of `measures` (all) in percent with their intervals."""
    measures = result.measures if measures is None else measures
    settings = arm_settings(result)
    head, rows = ["arm"], {arm: [_with_failures(arm, result)] for arm in result.arms}
    if any(settings.values()):
        head.append("settings")
        for arm, cells in rows.items():
            cells.append(settings[arm])
    if any(arm.token_weights for arm in result.arms.values()):
        head.append("answer tokens on the clamp's floor, ceiling; spread of weights")
        for arm, cells in rows.items():
            cells.append(_token_weights(result.arms[arm].token_weights))
    head += measures
    for arm, cells in rows.items():
        cells += _means(result.arms[arm], measures)
    return [head, *rows.values(), *_failed_rows(result, len(head))]


def gains(result: AblationResult, measures: Sequence[str] | None = None) -> Rows:
    """Each arm's differences to the baseline in `measures` (all), seed by seed."""
    measures = result.measures if measures is None else measures
    rows = []
    for name, arm in result.trained.items():
        differences = [arm.measures[measure].gain for measure in measures]
        if any(differences):
            rows.append([name, *("" if gain is None else _cell(gain, "+") for gain in differences)])
    return [[f"against {_baseline(result)}", *measures], *rows]


def _compared(result: AblationResult, measures: Sequence[str]) -> Rows:
    """Measures of the untrained model and the baseline, and of other arms what they add to it."""
    baseline = _baseline(result)
    whole = [
        [name, *_means(arm, measures)]
        for name, arm in result.arms.items()
        if name == baseline or name not in result.trained
    ]
    _, *others = gains(result, measures)
    added = [[f"{name}, against {baseline}", *cells] for name, *cells in others]
    return [["arm", *measures], *whole, *added]


def _parts(measures: Sequence[str]) -> list[list[str]]:
    """Measures that fit beside each other; those of one name and several numbers stay together."""
    parts: list[list[str]] = []
    for _, group in groupby(measures, key=lambda name: name.rstrip("0123456789. ")):
        alike = list(group)
        if parts and len(parts[-1]) + len(alike) <= _MOST_MEASURES:
            parts[-1] += alike
        else:
            parts.append(alike)
    return parts


def _baseline(result: AblationResult) -> str:
    return result.baseline or next(iter(result.trained), "")


def _means(arm: ArmResult, measures: Sequence[str]) -> list[str]:
    return [_cell(arm.measures[measure]) for measure in measures]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table's rows, the head first, as Markdown; a cell may hold any text."""
    head, *others = [[visible(cell).replace("|", r"\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *others]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def arm_settings(result: AblationResult) -> dict[str, str]:
    """By arm, in a few words, its settings that are not the same in every arm."""
    effective = {name: _effective_settings(result, arm) for name, arm in result.trained.items()}
    names = list(dict.fromkeys(name for settings in effective.values() for name in settings))
    differing = [
        name
        for name in names
        if len({str(settings.get(name)) for settings in effective.values()}) > 1
    ]
    epochs = {name: arm.training and arm.training.epochs for name, arm in result.trained.items()}
    described = dict.fromkeys(result.arms, "")
    for name, settings in effective.items():
        words = _in_words(settings, differing)
        if len(set(epochs.values())) > 1:
            words.append(f"{epochs[name]:.3g} epochs")
        described[name] = ", ".join(words)
    return described


def _effective_settings(result: AblationResult, arm: ArmResult) -> dict[str, Any]:
    if arm.settings is not None:
        return arm.settings
    # An earlier version's, which noted what was given: the rest is as `ragvl train` has it
    usual = {f"noise.{field.name}": field.default for field in fields(NoiseSettings)}
    usual |= {field.name: field.default for field in fields(RunSettings) if field.name == "share"}
    return {**usual, **result.settings, **arm.changes}


def _in_words(settings: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The settings of those names that mean something beside the others."""
    unread = set()
    if settings.get("noise.token_level") == "none":
        unread = {f"noise.{f.name}" for f in fields(NoiseSettings)} - {"noise.data_level"}
    elif settings.get("noise.as_released"):  # it has a clamp and a window of its own
        unread = {"noise.clamp_low", "noise.clamp_high", "noise.window", "noise.gap"}
    if not settings.get("noise.data_level"):
        unread |= {"noise.data_level", "noise.hard_negatives"}
    words: list[str] = []
    for name in names:
        if name in unread:
            continue
        value, label = settings.get(name), name.rpartition(".")[2].replace("_", " ")
        if name in ("noise.token_level", "noise.kind"):
            words.append(str(value))
        elif name in ("noise.clamp_low", "noise.clamp_high"):
            low, high = settings["noise.clamp_low"], settings["noise.clamp_high"]
            words.append(f"clamp {low:g} to {high:g}")
        elif name == "noise.gap":
            words.append(f"gap of the {str(value).replace('_', '-')}")
        elif name == "noise.as_released":
            words += ["as released"] if value else []
        else:
            words.append(f"{label} {value:g}" if isinstance(value, float) else f"{label} {value}")
    return list(dict.fromkeys(words))


def _token_weights(noted: Mapping[str, float]) -> str:
    if not noted:
        return ""
    floor, ceiling = noted["weights_at_floor"], noted["weights_at_ceiling"]
    return f"{100 * floor:.0f} %, {100 * ceiling:.0f} %; {noted['token_weight_spread']:.2f}"


def _with_failures(arm: str, result: AblationResult) -> str:
    """An arm's name, and which of its seeds are not in its figures."""
    failed = [run for run in result.failed if run.arm == arm]
    if not failed:
        return arm
    seeds = ", ".join(str(run.seed) for run in failed)
    return f"{arm} (without seed {seeds}, failed: {_short(failed[0].reason)})"


def _failed_rows(result: AblationResult, width: int) -> list[list[str]]:
    """A row of each arm of which no run succeeded."""
    reasons: dict[str, str] = {}
    for run in result.failed:
        if run.arm not in result.arms:
            reasons.setdefault(run.arm, _short(run.reason))
    return [[arm, f"failed: {why}", *[""] * (width - 2)] for arm, why in reasons.items()]


def _short(reason: str) -> str:
    """As it can stand in a cell."""
    reason = reason.replace("|", "/")
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."


def _cell(summary: SeedSummary, sign: str = "") -> str:
    mean = f"{100 * summary.mean:{sign}.1f}"
    if summary.low is None or summary.high is None:
        return mean
    return f"{mean} ({100 * summary.low:{sign}.1f} to {100 * summary.high:{sign}.1f})"
