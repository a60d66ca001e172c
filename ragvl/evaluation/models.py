"""The three stages that are evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragvl.generator import Generator
from ragvl.mllm import check_reader
from ragvl.reranker import Reranker, SavedThresholds, resolve_template
from ragvl.reranker.templates import Template
from ragvl.retriever import DualEncoder, check_encoder


@dataclass(frozen=True)
class Models:
    """The three stages.

    Attributes:
        encoder: retrieves.
        reranker: reranks.
        generator: answers; None to stop before that.
    """

    encoder: DualEncoder
    reranker: Reranker
    generator: Generator | None = None

    @classmethod
    def load(
        cls,
        encoder: str,
        reranker: str,
        generator: str | None = None,
        *,
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
            encoder: the retriever's model: a hub id or a folder.
            reranker: the reranker's; thresholds that its folder holds for the template come along.
            generator: the generator's.
            preset: what the reranker was trained on; see `Reranker.from_pretrained`.
            template: the reranker's prompt.
            device: of all three.
            dtype: of reranker and generator.
            caption_tokens: of a caption, in their prompts.
            date: what their chat templates take for today.
            chat_template_kwargs: variables of the reranker's chat template.
            location: the reranker's revision and the like; see `MLLM.from_pretrained`.

        Raises:
            ValueError, OSError: a model is not there, not whole, or of another kind.
        """
        check_encoder(encoder)
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
        return cls(
            DualEncoder.from_pretrained(encoder, device=device),
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
        )
