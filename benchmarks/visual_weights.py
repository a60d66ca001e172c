"""What makes the weights of noise-injected training tell visual tokens from others.

Of each answer the first token says what is seen; the others, ends of words and the end of the
answer, follow from it. A kind and strength of noise is of use where the logit of the first falls
and that of the others does not. The fall is measured on a model that answers from gold pictures, by
kind of noise and timestep, without training.

    python benchmarks/visual_weights.py benchmarks/ablations/seeing-base runs/worlds/places
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import save
from scipy.stats import rankdata
from tables import Results, table, unmeasured
from torch import Tensor

from ragvl.data.formats import open_questions
from ragvl.mllm import MLLM
from ragvl.mllm.vision import vision_pass
from ragvl.training.examples import IGNORE, AnswerExamples, Collator
from ragvl.training.noise import NoiseSettings, TokenGaps, token_gaps

TIMESTEPS = (100, 300, 500, 700, 800, 900, 950, 999)
PLACES = {
    "tokens, diffusion": {"token_level": "tokens", "kind": "diffusion"},
    "tokens, scaled": {"token_level": "tokens", "kind": "scaled"},
    "tokens, gaussian": {"token_level": "tokens", "kind": "gaussian"},
    "tokens, drop": {"token_level": "tokens", "kind": "drop"},
    "pixels, diffusion": {"token_level": "pixels", "kind": "diffusion"},
}
SHOWN = (500, 900, 999)  # timesteps in the table
_BATCH = 32


def main(
    model: Annotated[str, typer.Argument(help="A generator, or what one is trained from.")],
    data: Annotated[Path, typer.Argument(help="Questions with gold pictures and answers.")],
    split: str = "test",
    questions: Annotated[int, typer.Option(help="So many, the first ones.")] = 320,
    seed: int = 0,
    name: Annotated[str, typer.Option(help="Of the JSON.")] = "visual_weights",
) -> None:
    """Measures the gaps and writes them to benchmarks/results."""
    torch.manual_seed(seed)
    mllm = MLLM.from_pretrained(model, device="cpu", dtype="float32")
    mllm.model.eval()
    source = open_questions(data, split=split)
    examples = AnswerExamples(source, mllm.prompting)
    collate = Collator(mllm)
    noises = {
        (place, timestep): NoiseSettings(timestep=timestep, **settings)
        for place, settings in PLACES.items()
        for timestep in TIMESTEPS
    }
    gaps: dict[tuple[str, int], list[TokenGaps]] = {key: [] for key in noises}
    first: list[Tensor] = []
    spreads: list[float] = []
    count = min(questions, len(examples))
    for start in range(0, count, _BATCH):
        batch = collate([examples[i] for i in range(start, min(start + _BATCH, count))])
        first.append(first_tokens(batch["labels"]))
        spreads += feature_spreads(mllm, batch)
        for key, of_batch in zip(
            noises, token_gaps(mllm, batch, list(noises.values())), strict=True
        ):
            gaps[key].append(of_batch)
    is_first = torch.cat(first).numpy()
    clamp = NoiseSettings()
    measured = {
        key: [torch.cat(parts).numpy() for parts in zip(*of_noise, strict=True)]
        for key, of_noise in gaps.items()
    }
    result = {
        "model": mllm.fingerprint,
        "data": source.name,
        "questions": count,
        "tokens": {"first": int(is_first.sum()), "others": int((~is_first).sum())},
        "feature_std": float(np.mean(spreads)),
        "clamp": [clamp.clamp_low, clamp.clamp_high],
        "noises": [
            {
                "place": place,
                **asdict(noises[place, timestep]),
                **figures(measured[place, timestep][0], is_first, clamp),
                "told_apart_by_log_probability": told_apart(measured[place, timestep][1], is_first),
            }
            for place, timestep in noises
        ],
    }
    print(visual_weights_table({name: result, "visual_weights": result}))
    print(save(name, result, torch.device("cpu")))


def first_tokens(labels: Tensor) -> Tensor:
    """(N,) bool: of the labelled tokens, sequence after sequence, which begin an answer."""
    labelled = labels != IGNORE
    return (labelled & (labelled.cumsum(1) == 1))[labelled]


@torch.no_grad()
def feature_spreads(mllm: MLLM, batch: dict[str, Tensor]) -> list[float]:
    """The standard deviation of the features that the vision tower gives, one a tensor."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with vision_pass() as vision:
        mllm.model.base_model(**inputs, use_cache=False)
    return [float(x.std()) for x in (vision.features or {}).values() if x.is_floating_point()]


def figures(gaps: np.ndarray, is_first: np.ndarray, clamp: NoiseSettings) -> dict[str, Any]:
    """What one noise does to first tokens and to the others.

    `weight_ratio` is what a first token weighs against another within the clamp, and
    `open_ratio` the same with next to no floor.
    """

    def ratio(low: float) -> float:
        weights = gaps.clip(low, clamp.clamp_high)
        return float(weights[is_first].mean() / weights[~is_first].mean())

    return {
        **{
            name: {
                "gap": float(gaps[rows].mean()),
                "deciles": np.quantile(gaps[rows], np.arange(1, 10) / 10).tolist(),
                "at_floor": float((gaps[rows] <= clamp.clamp_low).mean()),
                "at_ceiling": float((gaps[rows] >= clamp.clamp_high).mean()),
            }
            for name, rows in (("first", is_first), ("others", ~is_first))
        },
        "told_apart": told_apart(gaps, is_first),
        "weight_ratio": ratio(clamp.clamp_low),
        "open_ratio": ratio(0.01),
    }


def told_apart(gaps: np.ndarray, is_first: np.ndarray) -> float:
    """How often a first token's gap is larger than another's: 0.5 is chance."""
    ranks = rankdata(gaps)
    first, others = int(is_first.sum()), int((~is_first).sum())
    return float((ranks[is_first].sum() - first * (first + 1) / 2) / (first * others))


def visual_weights_table(results: Results) -> str:
    """By kind of noise and timestep: what the answers' first tokens lose, and the others."""
    header = [
        *(
            "noise on",
            "timestep",
            "gap of first tokens",
            "of others",
            "told apart",
            "by log-probability",
        ),
        *("first on the floor, ceiling", "others on the floor, ceiling"),
        *("weight, first : others", "without a floor"),
    ]
    if "visual_weights" not in results:
        return unmeasured(header, 2)
    result = results["visual_weights"]
    rows = []
    for noise in result["noises"]:
        if noise["timestep"] in SHOWN:
            ends = [
                f"{100 * noise[name]['at_floor']:.0f} %, {100 * noise[name]['at_ceiling']:.0f} %"
                for name in ("first", "others")
            ]
            rows.append(
                [
                    *(noise["place"], str(noise["timestep"])),
                    *(f"{noise[name]['gap']:.2f}" for name in ("first", "others")),
                    f"{100 * noise['told_apart']:.0f} %",
                    f"{100 * noise['told_apart_by_log_probability']:.0f} %",
                    *ends,
                    *(f"{noise[name]:.2f}" for name in ("weight_ratio", "open_ratio")),
                ]
            )
    low, high = result["clamp"]
    return table(
        header,
        rows,
        f"{result['questions']} questions, {result['tokens']['first']} first tokens and "
        f"{result['tokens']['others']} others; visual features of standard deviation "
        f"{result['feature_std']:.2f}; a clamp from {low:g} to {high:g}, in the last column from "
        f"0.01. Told apart: how often a first token's gap is the larger one; 50 % is chance; "
        "a log-probability falls where something else becomes likely, too.",
    )


if __name__ == "__main__":
    typer.run(main)
