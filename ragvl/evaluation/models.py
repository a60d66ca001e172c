"""The three stages that are evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ragvl.generator import Generator
from ragvl.mllm import check_reader
from ragvl.reranker import Reranker, SavedThresholds, resolve_template
from ragvl.reranker.templates import Template
from ragvl.retriever import (
    DualEncoder,
    Encoder,
    Fusion,
    Order,
    ReciprocalRank,
    TextEncoder,
    check_encoder,
    check_text_encoder,
    estimated_fusion,
    retriever_name,
)


@dataclass(frozen=True)
class Models:
    """The three stages.

    Attributes:
        encoder: retrieves by pictures; None to retrieve by captions alone.
        reranker: reranks.
        generator: answers; None to stop before that.
        text_encoder: retrieves by captions and texts; None to retrieve by pictures alone.
        fusion: makes one order of both.
        retriever_weight: how much the retriever's order counts in reranking; see `place_prior`.

    Raises:
        ValueError: there is no encoder.
    """

    encoder: DualEncoder | None
    reranker: Reranker
    generator: Generator | None = None
    text_encoder: TextEncoder | None = None
    fusion: Fusion = field(default_factory=ReciprocalRank)
    retriever_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.encoders:
            raise ValueError(
                "there is nothing to retrieve by: give an encoder, a text encoder or both"
            )

    @property
    def encoders(self) -> dict[Order, Encoder]:
        """The encoders by order."""
        given: dict[Order, Encoder | None] = {
            "picture": self.encoder,
            "caption": self.text_encoder,
        }
        return {order: one for order, one in given.items() if one is not None}

    @property
    def retriever_name(self) -> str:
        """Names what decides the retriever's order."""
        return retriever_name(self.encoders, self.fusion)

    @classmethod
    def load(
        cls,
        encoder: str | None,
        reranker: str,
        generator: str | None = None,
        *,
        text_encoder: str | None = None,
        fusion: Fusion | None = None,
        retriever_weight: float | None = None,
        preset: str = "auto",
        template: Template | str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        caption_tokens: int | None = None,
        date: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        location: Mapping[str, Any] | None = None,
    ) -> Models:
        """Loads the models, all of which are checked before the first is loaded.

        Args:
            encoder: the retriever's model of pictures: a hub id or a folder; None without one.
            reranker: the reranker's; thresholds that its folder holds for the template come along.
            generator: the generator's.
            text_encoder: the retriever's model of captions and texts; None without one.
            fusion: makes one order of both; by default the weight that was estimated for these
                encoders and saved with the reranker's thresholds, or else reciprocal ranks.
            retriever_weight: how much the retriever's order counts in reranking; by default what
                was estimated for this retriever and saved in the same way, or else 0.
            preset: what the reranker was trained on; see `Reranker.from_pretrained`.
            template: the reranker's prompt.
            device: of all.
            dtype: of reranker and generator.
            caption_tokens: of a caption, in their prompts.
            date: what their chat templates take for today.
            chat_template_kwargs: variables of the reranker's chat template.
            location: the reranker's revision and the like; see `MLLM.from_pretrained`.

        Raises:
            ValueError, OSError: a model is not there, not whole, or of another kind.
        """
        if encoder is not None:
            check_encoder(encoder)
        if text_encoder is not None:
            check_text_encoder(text_encoder)
        location = dict(location or {})
        check_reader(reranker, **location)
        if generator is not None:
            check_reader(generator)
        common: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "caption_tokens": caption_tokens,
            "date": date,
        }
        models = cls(
            None if encoder is None else DualEncoder.from_pretrained(encoder, device=device),
            Reranker.from_pretrained(
                reranker,
                preset=preset,
                template=template,
                thresholds=SavedThresholds.of_model(
                    reranker, resolve_template(template).name, **location
                ),
                chat_template_kwargs=chat_template_kwargs,
                **location,
                **common,
            ),
            None if generator is None else Generator.from_pretrained(generator, **common),
            None
            if text_encoder is None
            else TextEncoder.from_pretrained(text_encoder, device=device),
            fusion or ReciprocalRank(),
            retriever_weight or 0.0,
        )
        if fusion is None:
            models = models.by_saved_fusion()
        return models if retriever_weight is not None else models.by_saved_weight()

    def by_saved_fusion(self) -> Models:
        """The same with the fusion that the reranker has saved, if one for these encoders."""
        saved = self.reranker.thresholds
        if saved is None:
            return self
        fusion = estimated_fusion(self.encoders, saved.fusion, saved.encoder)
        return self if fusion is None else replace(self, fusion=fusion)

    def by_saved_weight(self) -> Models:
        """The same with the retriever's weight that the reranker has saved for this retriever."""
        return replace(self, retriever_weight=self.reranker.saved_weight(self.retriever_name))
