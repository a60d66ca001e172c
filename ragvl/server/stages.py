"""The models and the index that a server works with."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ragvl.arguments import checked_weight
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.generator import Generator
from ragvl.messages import shown
from ragvl.mllm import check_reader, checked_caption_tokens, resolve_model_dtype
from ragvl.reranker import Reranker, SavedThresholds, ThresholdError, saved_fusions
from ragvl.retriever import (
    DocumentRetriever,
    DualEncoder,
    FusedRetriever,
    Fusion,
    Retriever,
    check_index,
    open_index,
)
from ragvl.runtime import resolve_device
from ragvl.server.settings import TINY_RERANKER

_log = logging.getLogger(__name__)

ASSETS = TINY_RERANKER.parent

_DRAWN_PLACES = 100  # three pictures of each; they are embedded within a second
_DRAWN_SEED = 0
_NUM_EXAMPLES = 24


@dataclass(frozen=True)
class Stages:
    """The three stages of RagVL, of which a server needs the second.

    Attributes:
        reranker: reranks.
        retriever: an index of documents; None where requests bring theirs.
        generator: answers; None for a server that does not.
        examples: questions to try.
        retriever_weight: how much the index's order counts in reranking; see `place_prior`.
    """

    reranker: Reranker
    retriever: DocumentRetriever | None = None
    generator: Generator | None = None
    examples: tuple[str, ...] = ()
    retriever_weight: float = 0.0


def load_stages(
    load_reranker: Callable[[], Reranker],
    *,
    thresholds: str | Path | None = None,
    location: Mapping[str, Any] | None = None,
    index: str | Path | None = None,
    encoder: str | Path | None = None,
    text_encoder: str | Path | None = None,
    fusion: Fusion | None = None,
    retriever_weight: float | None = None,
    generator: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    caption_tokens: int | None = None,
    date: str | None = None,
) -> Stages:
    """Loads the stages, once all that can be seen to be wrong with them has been looked at.

    Args:
        load_reranker: loads the reranker, whose arguments were checked; called last.
        thresholds: the reranker's folder or hub id, for the fusion that is saved with thresholds.
        location: its revision, adapters and the like; see `thresholds_file`.
        index: what `ragvl index` wrote; see `open_index`.
        encoder: the dual encoder that built it, in place of the one that it remembers.
        text_encoder: the same of the text encoder.
        fusion: makes one order of both; by default what was estimated for these encoders and saved
            with the thresholds, or else what the index was saved with.
        retriever_weight: how much the index's order counts in reranking; by default what was
            estimated for this index and saved with the reranker, or else 0.
        generator: the generator: a hub id or a folder.
        device: of encoders and generator.
        dtype: of the generator.
        caption_tokens: of a caption, in the generator's prompts.
        date: what the generator's chat template takes for today.

    Raises:
        ValueError: an encoder, a fusion or a weight without an index that has a use for it, or a
            model is of another kind, or the index another encoder's or damaged.
        OSError: a model or the index is not there, or not whole.
    """
    of_index = {
        "encoder": encoder,
        "text_encoder": text_encoder,
        "fusion": fusion,
        "retriever_weight": retriever_weight,
    }
    if index is None and (unused := [name for name, x in of_index.items() if x is not None]):
        raise ValueError(f"{' and '.join(unused)}: of no use without an index: give --index")
    if retriever_weight is not None:
        checked_weight(retriever_weight)
    resolve_model_dtype(dtype, resolve_device(device))
    checked_caption_tokens(caption_tokens)
    if index is not None:
        check_index(index, encoder=encoder, text_encoder=text_encoder, fusion=fusion)
    if generator is not None:
        check_reader(generator)
    retriever = None
    if index is not None:
        retriever = open_filled_index(
            index, encoder=encoder, text_encoder=text_encoder, fusion=fusion, device=device
        )
    writer = None
    if generator is not None:
        writer = Generator.from_pretrained(
            generator, device=device, dtype=dtype, caption_tokens=caption_tokens, date=date
        )
    reranker = load_reranker()
    if fusion is None and thresholds is not None:
        take_saved_fusion(
            retriever, partial(saved_fusions, thresholds, reranker.template_name, **location or {})
        )
    if retriever_weight is None:
        retriever_weight = estimated_weight(reranker.thresholds, retriever)
    warn_of_another_search(reranker.thresholds, retriever, retriever_weight)
    return Stages(reranker, retriever, writer, retriever_weight=retriever_weight)


def open_filled_index(index: str | Path, **settings: Any) -> DocumentRetriever:
    """An index to search in.

    Args:
        index: what `ragvl index` wrote.
        settings: see `open_index`.

    Raises:
        ValueError: it holds no documents; others, and OSError, as `open_index`.
    """
    retriever = open_index(index, **settings)
    if not len(retriever):
        raise ValueError(f"the index in {shown(index)} holds no documents")
    return retriever


def estimated_weight(
    thresholds: SavedThresholds | None, retriever: DocumentRetriever | None
) -> float:
    """How much an index's order counts, as was estimated for it and the log says; 0 if nothing."""
    if thresholds is None or retriever is None:
        return 0.0
    weight = thresholds.weight_of(retriever.name)
    if weight:
        _log.info("the index's order counts, with a weight of %.3g, as estimated", weight)
    return weight


def warn_of_another_search(
    thresholds: SavedThresholds | None, retriever: DocumentRetriever | None, weight: float
) -> None:
    """Warns where a server's index has many more documents than were searched, or fewer.

    Args:
        thresholds: what was estimated; a request may name any of them.
        retriever: the index.
        weight: how much its order counts.
    """
    if thresholds is not None and retriever is not None:
        names = list(thresholds.values)
        thresholds.warn_of_another_search(len(retriever), names=names, weight=weight)


def take_saved_fusion(
    retriever: DocumentRetriever | None, find: Callable[[], list[tuple[str, str]]]
) -> None:
    """Has documents found by the fusion that was estimated for an index's encoders, if one was.

    Args:
        retriever: the index; one of a single encoder stays as it is.
        find: gives fusions, each with what it was estimated for; see `saved_fusions`.
    """
    if not isinstance(retriever, FusedRetriever):
        return
    try:
        estimates = find()
    except ThresholdError as error:
        _log.warning("no fusion is taken from the saved thresholds: %s", error)
        return
    before = retriever.fusion.name
    if retriever.take_estimate(estimates):
        _log.info("fusion %s, as estimated, in place of %s", retriever.fusion.name, before)


def load_demo(*, device: str = "auto", **settings: Any) -> Stages:
    """The demo's drawn world, indexed now, and the tiny models that come along.

    Args:
        device: of all three models.
        settings: others of `Reranker.from_pretrained`, such as `prefix_cache`.
    """
    reranker = Reranker.from_pretrained(
        TINY_RERANKER,
        device=device,
        dtype="float32",  # that of its thresholds
        thresholds=SavedThresholds.of_model(TINY_RERANKER),
        **settings,
    )
    encoder = DualEncoder.from_pretrained(ASSETS / "tiny-retriever", device=device)
    with tempfile.TemporaryDirectory() as folder:
        write_world(folder, Places(), counts={"test": _DRAWN_PLACES}, seed=_DRAWN_SEED)
        world = WebQA(folder, split="test")
        # With their pictures in memory: four kilobytes each
        retriever = Retriever(encoder, world.documents(), progress=False)
        examples = tuple(question.text for question in world.questions[:_NUM_EXAMPLES])
    generator = Generator.from_pretrained(ASSETS / "tiny-generator", device=device)
    return Stages(reranker, retriever, generator, examples)
