"""Where relevance is high enough to keep a document."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

Threshold = str | float
"""A probability; "natural"; or a name that was estimated and saved with the model, such as
"adaptive", "f1" or "precision>=0.9"."""

NATURAL = 0.5  # Yes is likelier than No
THRESHOLDS_FILE = "ragvl_thresholds.json"


class ThresholdError(ValueError):
    """A threshold that is not known, was estimated for another model, or cannot be estimated."""


@dataclass(frozen=True)
class SavedThresholds:
    """Thresholds that were estimated for a model, kept beside its weights.

    Attributes:
        model: names the weights; see `Reranker.weights`.
        template: the prompt's template.
        top_k: how many documents of a question are kept at most.
        data: the data they were estimated on.
        num_questions: how many questions that is.
        values: the threshold by name.
        refused: why there is none, by name.
    """

    model: str
    template: str
    top_k: int
    data: str
    num_questions: int
    values: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes them to a JSON file; what stood there stays until it is whole."""
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> SavedThresholds:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ThresholdError: it holds something else.
        """
        from pydantic import TypeAdapter, ValidationError  # scoring needs no file, so no pydantic

        try:
            return TypeAdapter(SavedThresholds).validate_json(path.read_bytes())
        except ValidationError as error:
            raise ThresholdError(f"{path} holds no thresholds: {error}") from error


def resolve_threshold(threshold: Threshold, saved: SavedThresholds | None = None) -> float:
    """The relevance from which a document is kept.

    Args:
        threshold: "natural" (0.5, the paper's natural threshold), a probability, or the name of
            one that was estimated.
        saved: those that were.

    Raises:
        ThresholdError: there is none of that name; the message says how to estimate one.
        ValueError: not a number from 0 to 1.
    """
    if threshold == "natural":
        return NATURAL
    if isinstance(threshold, str):
        if saved is not None and threshold in saved.values:
            return saved.values[threshold]
        if saved is not None and threshold in saved.refused:
            raise ThresholdError(
                f"threshold={threshold!r} could not be estimated: {saved.refused[threshold]}"
            )
        known = ["natural", *(saved.values if saved is not None else ())]
        raise ThresholdError(
            f"threshold={threshold!r} is not known; known here: {', '.join(known)}, or a number "
            "from 0 to 1. `ragvl calibrate` estimates others on a dev split, and saves them with "
            "the model"
        )
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise ValueError(f"threshold={threshold!r}: expected a name or a number from 0 to 1")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} is not a probability; relevance lies in 0..1")
    return float(threshold)
