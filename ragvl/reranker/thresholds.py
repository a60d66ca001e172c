"""Where relevance is high enough to keep a document."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from ragvl.arguments import checked_weight
from ragvl.checkpoints import model_folder
from ragvl.files import open_regular, write_text
from ragvl.messages import quoted, shown, validation_reason

logger = logging.getLogger(__name__)

Threshold = str | float
"""A probability; "natural"; or a name that was estimated and saved with the model, such as
"adaptive", "f1" or "precision>=0.9"."""

NATURAL = 0.5  # Yes is likelier than No
RETRIEVER_WEIGHT = "retriever_weight"
"""Under which name it is refused where it could not be estimated."""

THRESHOLDS_FILE = "ragvl_thresholds.json"
"""Where the thresholds that were estimated for a reranker lie in its folder."""

_MAX_BYTES = 64 << 20  # of that file, which names the questions of each template
_Count = Annotated[int, Interval(ge=1)]
_Probability = Annotated[float, Interval(ge=0, le=1)]
_Weight = Annotated[float, Interval(ge=0, lt=math.inf)]


def thresholds_file(
    model: str | Path, *, adapters: str | Path | None = None, **location: Any
) -> Path | None:
    """Where a model's thresholds are saved; None if it, or its adapters, is on the hub.

    Args:
        model: a folder or a hub id.
        adapters: the folder or hub id of adapters for it: with these it is another model.
        location: the revision and the like; see `model_folder`.

    Raises:
        FileNotFoundError: it is a folder that is not there.
    """
    location.pop("trust_remote_code", None)
    folder = model_folder(model, **location) if adapters is None else model_folder(adapters)
    return None if folder is None else folder / THRESHOLDS_FILE


class ThresholdError(ValueError):
    """A threshold that is not known, was estimated for another model, or cannot be estimated."""


@dataclass(frozen=True)
class SavedThresholds:
    """Thresholds that were estimated for a model and its prompts, kept beside its weights.

    Attributes:
        model: names the weights; see `Reranker.weights`.
        template: the prompt's template.
        prompts: names its text, system turn and answers; see `Reranker.prompts_name`.
        encoder: names the retriever: its weights, and its fusion where there are two encoders.
        pool: what was retrieved from.
        num_candidates: how many documents were reranked.
        top_k: how many documents of a question are kept at most.
        data: the data they were estimated on.
        questions: names of its questions, so that none of them is judged by its own threshold.
        values: the threshold by name.
        refused: why there is none, by name.
        fusion: what made one order of two encoders'; None of one encoder.
        retriever_weight: how much the retriever's order counts beside raw scores, in log-odds; see
            `place_prior`.
        num_documents: among how many a question was searched; 0 if that is not known.
        weight_questions: names of the questions that the retriever's weight is from, where it was
            estimated before, on others.
    """

    model: str
    template: str
    prompts: str
    encoder: str
    pool: str
    num_candidates: _Count
    top_k: _Count
    data: str
    questions: tuple[str, ...]
    values: dict[str, _Probability] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    fusion: str | None = None
    retriever_weight: _Weight = 0.0
    num_documents: Annotated[int, Interval(ge=0)] = 0
    weight_questions: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Writes them to a JSON file, beside those of other templates.

        Names that were estimated before, under the same conditions, stay. What stood in the file
        stays until it is whole.

        Raises:
            ThresholdError: the file holds something else.
            ValueError: a value of these is no probability, or the weight no number from 0.
        """
        for name, value in self.values.items():
            _probability(value, f"the threshold {quoted(name)}")
        checked_weight(self.retriever_weight)
        every = _read(path) if path.exists() else {}
        before = every.get(self.template)
        merged = self if before is None else self._joined(before)
        every[self.template] = merged
        text = json.dumps({name: asdict(saved) for name, saved in every.items()}, indent=2)
        write_text(path, text + "\n")

    @classmethod
    def load(cls, path: Path, template: str = "auto") -> SavedThresholds | None:
        """Reads what `save` wrote for a template; None if there is nothing of it.

        Raises:
            OSError: there is no such file, or it is none.
            ThresholdError: it holds something else.
        """
        return _read(path).get(template)

    @classmethod
    def of_model(
        cls, model: str | Path, template: str = "auto", **location: Any
    ) -> SavedThresholds | None:
        """What is saved in a model's folder for a template; None if there is nothing of it.

        Args:
            model: a folder or a hub id.
            template: the template's name.
            location: see `thresholds_file`.

        Raises:
            OSError, ThresholdError: see `load`.
        """
        path = thresholds_file(model, **location)
        return cls.load(path, template) if path is not None and path.exists() else None

    def check_model(self, weights: str, template: str, prompts: str) -> None:
        """Refuses thresholds of another model, or of one with other prompts.

        Raises:
            ThresholdError: its weights, template or prompts have other names.
        """
        texts = f"texts of its prompts ({self.template}), answers or caption_tokens"
        for what, theirs, own in (
            ("weights, or in another dtype", self.model, weights),
            (f"prompts ({self.template})", self.template, template),
            (texts, self.prompts, prompts),
        ):
            if theirs != own:
                raise ThresholdError(
                    f"the thresholds were estimated for other {what}: run `ragvl calibrate` again, "
                    "or give a number"
                )

    def weight_of(self, retriever: str) -> float:
        """How much a retriever's order counts, where that was estimated for it; else 0.

        Args:
            retriever: its name; see `DocumentRetriever.name`.
        """
        return self.retriever_weight if retriever == self.encoder else 0.0

    def named(self, threshold: float) -> list[str]:
        """Names under which a threshold was estimated; none of a number that was not."""
        return [name for name, value in self.values.items() if value == threshold]

    def is_alike(self, num_documents: int) -> bool:
        """Whether estimates may fit a search among so many documents.

        The more are searched, the less a place in the retriever's order tells, and the more of them
        are relevant by mistake. Up to twice as many, or half, pass for alike, and so does a number
        that is not known, 0.
        """
        own = self.num_documents
        return not own or not num_documents or own / 2 <= num_documents <= own * 2

    def warn_of_another_search(
        self, num_documents: int, *, names: Sequence[str] = (), weight: float = 0.0
    ) -> None:
        """Warns where estimates are used in a search among many more documents, or fewer.

        Args:
            num_documents: how many are searched; 0 if that is not known.
            names: of thresholds that are used.
            weight: the retriever's, as it is used.
        """
        used = [f"threshold {quoted(name)}" for name in names]
        if weight and weight == self.retriever_weight:
            used.append("the retriever's weight")
        if used and not self.is_alike(num_documents):
            logger.warning(
                "%s: estimated on %s in a search among %s documents, and here %s are searched: "
                "estimate among about as many",
                " and ".join(used),
                shown(self.data),
                f"{self.num_documents:,}",
                f"{num_documents:,}",
            )

    def differs(self, **conditions: str | float) -> list[str]:
        """Under which of these conditions it was not estimated, by name: `pool`, `top_k`, ..."""
        return [name for name, value in conditions.items() if getattr(self, name) != value]

    def _joined(self, before: SavedThresholds) -> SavedThresholds:
        if not before.num_documents:  # of an earlier version, which did not know
            before = replace(before, num_documents=self.num_documents)
        if replace(before, values={}, refused={}) != replace(self, values={}, refused={}):
            return self
        estimated = {*self.values, *self.refused}
        kept = {name: value for name, value in before.values.items() if name not in estimated}
        refused = {name: why for name, why in before.refused.items() if name not in estimated}
        return replace(self, values=kept | self.values, refused=refused | self.refused)


def saved_fusions(
    model: str | Path, template: str | None = None, **location: Any
) -> list[tuple[str, str]]:
    """Fusions that were estimated with a model's thresholds, each with what it was estimated for.

    They are of retrieval, so any template's will do.

    Args:
        model: a folder or a hub id.
        template: whose comes first.
        location: see `thresholds_file`.

    Raises:
        OSError, ThresholdError: see `SavedThresholds.load`.
    """
    path = thresholds_file(model, **location)
    if path is None or not path.exists():
        return []
    every = sorted(_read(path).values(), key=lambda one: one.template != template)
    return [(one.fusion, one.encoder) for one in every if one.fusion is not None]


def _read(path: Path) -> dict[str, SavedThresholds]:
    from pydantic import TypeAdapter, ValidationError  # scoring needs no file, so no pydantic

    with open_regular(path, max_bytes=_MAX_BYTES) as file:
        text = file.read()
    try:
        return TypeAdapter(dict[str, SavedThresholds]).validate_json(text, strict=True)
    except ValidationError as error:
        raise ThresholdError(
            f"{shown(path)} holds no thresholds that this version can read "
            f"({validation_reason(error)}): remove it, and estimate them again with `ragvl "
            "calibrate`"
        ) from error


def resolve_threshold(threshold: Threshold, saved: SavedThresholds | None = None) -> float:
    """The relevance from which a document is kept.

    Args:
        threshold: "natural" (0.5, the paper's natural threshold), a probability, or the name of
            one that was estimated.
        saved: the estimates.

    Raises:
        ThresholdError: there is none of that name; the message says how to estimate one.
        ValueError: not a number from 0 to 1.
    """
    if not isinstance(threshold, str):
        return _probability(threshold, "threshold")
    if threshold == "natural":
        return NATURAL
    if saved is not None and threshold in saved.values:
        return _probability(saved.values[threshold], f"the saved threshold {quoted(threshold)}")
    if saved is not None and threshold in saved.refused:
        why = shown(saved.refused[threshold], 500)
        raise ThresholdError(f"threshold={quoted(threshold)} could not be estimated: {why}")
    known = ["natural", *(saved.values if saved is not None else ())]
    raise ThresholdError(
        f"threshold={quoted(threshold)} is not known; known here: {shown(', '.join(known))}, "
        "or a number from 0 to 1. `ragvl calibrate` estimates others on a dev split, and saves "
        "them with the model"
    )


def check_threshold(threshold: Threshold) -> None:
    """Refuses a number that cannot be a threshold; a name is looked up once the model is there.

    Raises:
        ValueError: neither a name nor a number from 0 to 1.
    """
    if not isinstance(threshold, str):
        _probability(threshold, "threshold")


def _probability(value: object, name: str) -> float:
    """`value` as a float; numpy's numbers are numbers too."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={shown(repr(value))}: expected a name or a number from 0 to 1")
    number: Any = value  # to a type checker a Real has no order
    if not 0 <= number <= 1:  # written so that NaN fails too
        raise ValueError(f"{name}={shown(value)} is not a probability; relevance lies in 0..1")
    return float(number)
