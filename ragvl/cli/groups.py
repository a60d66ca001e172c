"""Options that several commands take together, declared once."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from ragvl.cli import options
from ragvl.cli.common import (
    check_settings,
    hide_loading_bars,
    parse_weight,
    shown_while,
    template_variables,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ragvl.data.questions import QuestionSet
    from ragvl.evaluation.models import Models
    from ragvl.evaluation.settings import EvaluationSettings
    from ragvl.reranker import Reranker
    from ragvl.reranker.templates import Template
    from ragvl.retriever import Encoder, FusedRetriever, Fusion, Order, Retriever
    from ragvl.retriever.index import IndexKind

Command = Callable[..., None]


def takes(*groups: type) -> Callable[[Command], Command]:
    """A command whose first parameters are groups of options: their fields, then its own."""

    def decorate(command: Command) -> Command:
        fields = [
            list(inspect.signature(group, eval_str=True).parameters.values()) for group in groups
        ]
        shared = [one for group in fields for one in group]
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(groups) :]
        # By keyword, since an option that must be given may follow one that need not
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*shared, *own)]

        @wraps(command)
        def run(**values: Any) -> None:
            chosen = [
                group(**{one.name: values.pop(one.name) for one in given})
                for group, given in zip(groups, fields, strict=True)
            ]
            command(*chosen, **values)

        # What typer reads
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _location(chosen: RerankerOptions | EvaluationOptions) -> dict[str, str]:
    """Where a reranker is, apart from its path; what was not given is left out."""
    given = {
        "revision": chosen.revision,
        "subfolder": chosen.subfolder,
        "adapters": chosen.adapters,
    }
    return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class RerankerOptions:
    """A reranker, for the commands that need nothing else."""

    model: options.Model
    revision: options.Revision = None
    subfolder: options.Subfolder = None
    adapters: options.Adapters = None
    preset: options.Preset = "auto"
    date: options.Date = None
    chat_template_kwargs: options.ChatTemplateKwargs = None
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"

    def check(self) -> None:
        """Refuses at once what is wrong, before data are read or the hub is asked."""
        from ragvl.checkpoints import model_folder

        check_settings(self.adapters, device=self.device, dtype=self.dtype, date=self.date)
        model_folder(self.model, revision=self.revision, subfolder=self.subfolder)

    @property
    def location(self) -> dict[str, str]:
        """See `_location`."""
        return _location(self)

    def load(self, **settings: Any) -> Reranker:
        """The reranker; `settings` are others of `Reranker.from_pretrained`."""
        from ragvl.reranker import Reranker

        hide_loading_bars()
        with shown_while("loading the reranker"):
            return Reranker.from_pretrained(
                self.model,
                revision=self.revision,
                subfolder=self.subfolder,
                adapters=self.adapters,
                preset=self.preset,
                device=self.device,
                dtype=self.dtype,
                date=self.date,
                chat_template_kwargs=template_variables(self.chat_template_kwargs),
                **settings,
            )


def _resolved(paths: Mapping[str, str | None]) -> dict[str, str | None]:
    """Folders' paths in full; hub ids as they are."""
    return {
        name: os.path.realpath(path) if path and os.path.isdir(path) else path
        for name, path in paths.items()
    }


@dataclass(frozen=True)
class RetrieverOptions:
    """Encoders of pictures, of captions and texts, or both."""

    encoder: options.PictureEncoder = None
    text_encoder: options.TextEncoder = None
    fusion: options.Fusion = None

    def chosen_fusion(self) -> Fusion | None:
        """What makes one order of both; None where that was not said."""
        from ragvl.retriever import parse_fusion

        return None if self.fusion is None else parse_fusion(self.fusion)

    def check(self) -> None:
        """Refuses encoders that cannot make an index, before documents are read or models loaded.

        Raises:
            ValueError: none is given, one is of another kind, or a fusion is of no use.
            OSError: one is not there.
        """
        from ragvl.retriever import check_encoder, check_text_encoder

        self.check_given()
        if self.encoder is not None:
            check_encoder(self.encoder)
        if self.text_encoder is not None:
            check_text_encoder(self.text_encoder)

    def check_given(self) -> None:
        """Refuses at once what cannot be a retriever, before data are read or the hub is asked.

        Raises:
            ValueError: no encoder is given, or a fusion is of no use.
        """
        if self.encoder is None and self.text_encoder is None:
            raise ValueError(
                "name what is to be searched by: --encoder for pictures, --text-encoder for "
                "captions and texts, or both"
            )
        if self.chosen_fusion() is not None and None in (self.encoder, self.text_encoder):
            raise ValueError("--fusion is of --encoder and --text-encoder together")

    def are_those_of(self, folder: Path) -> bool:
        """Whether a saved index was built by these encoders, as it names them.

        Raises:
            OSError, ValueError: see `saved_encoders`.
        """
        from ragvl.retriever import saved_encoders

        named = {"picture": self.encoder, "caption": self.text_encoder}
        given = {str(order): path for order, path in named.items() if path is not None}
        saved = {str(order): one.get("path") for order, one in saved_encoders(folder).items()}
        return _resolved(saved) == _resolved(given)

    def check_place(self, place: str | Path, kind: IndexKind) -> None:
        """Refuses an index that a place cannot have; see `check_place`."""
        from ragvl.retriever import check_place

        given = [one for one in (self.encoder, self.text_encoder) if one is not None]
        check_place(place, kind, num_encoders=len(given))

    def new_retriever(
        self, place: str | Path, *, kind: IndexKind, device: str
    ) -> Retriever | FusedRetriever:
        """An empty one, to add documents to and to save there; see `new_retriever`."""
        from ragvl.retriever import new_retriever

        encoders = self.load(device=device)
        return new_retriever(encoders, place, kind=kind, fusion=self.chosen_fusion())

    def load(self, *, device: str) -> dict[Order, Encoder]:
        """The encoders by order."""
        from ragvl.retriever import DualEncoder, TextEncoder

        hide_loading_bars()
        encoders: dict[Order, Encoder] = {}
        if self.encoder is not None:
            encoders["picture"] = DualEncoder.from_pretrained(self.encoder, device=device)
        if self.text_encoder is not None:
            encoders["caption"] = TextEncoder.from_pretrained(self.text_encoder, device=device)
        return encoders

    def check_index(self, folder: str | Path) -> None:
        """Refuses an index, or encoders for it, that cannot be opened; see `check_index`."""
        from ragvl.retriever import check_index

        check_index(
            folder,
            encoder=self.encoder,
            text_encoder=self.text_encoder,
            fusion=self.chosen_fusion(),
        )

    def open_index(self, folder: str | Path, *, device: str) -> Retriever | FusedRetriever:
        """A saved index, by the encoders that it remembers where none are given."""
        from ragvl.retriever import open_index

        hide_loading_bars()
        return open_index(
            folder,
            encoder=self.encoder,
            text_encoder=self.text_encoder,
            fusion=self.chosen_fusion(),
            device=device,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(RetrieverOptions):
    """Data and models, for the commands that retrieve and rerank a whole data set."""

    source: options.Source
    reranker: options.Reranker
    revision: options.Revision = None
    subfolder: options.Subfolder = None
    adapters: options.Adapters = None
    preset: options.Preset = "auto"
    split: options.Split = None
    images: options.Images = None
    protocol: options.Protocol = None
    modality: options.Modality = None
    template: options.Template = None
    candidates: options.Candidates = 20
    retriever_weight: options.RetrieverWeight = None
    top_k: options.TopK = None
    skip: options.Skip = 0
    questions: options.Questions = None
    caption_tokens: options.CaptionTokens = None
    date: options.Date = None
    chat_template_kwargs: options.ChatTemplateKwargs = None
    strict: options.Strict = False
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    progress: options.Progress = True

    def check(self, generator: str | None = None) -> None:
        """Refuses at once what is wrong, before data are read or models are looked for."""
        from ragvl.checkpoints import model_folder

        self.check_given()
        parse_weight(self.retriever_weight)
        check_settings(
            self.encoder,
            self.text_encoder,
            self.adapters,
            generator,
            device=self.device,
            dtype=self.dtype,
            date=self.date,
        )
        model_folder(self.reranker, revision=self.revision, subfolder=self.subfolder)
        template_variables(self.chat_template_kwargs)

    @property
    def location(self) -> dict[str, str]:
        """See `_location`."""
        return _location(self)

    def everywhere(self, ray: str | None) -> EvaluationOptions:
        """The same, with data that other machines can read where --ray is given."""
        return replace(
            self,
            source=options.everywhere(self.source, ray),
            images=None if self.images is None else options.everywhere(self.images, ray),
        )

    def open_questions(self) -> QuestionSet:
        """The data set."""
        from ragvl.data.formats import open_questions

        return open_questions(
            self.source,
            split=self.split,
            images=self.images,
            protocol=self.protocol,
            modality=self.modality,
            strict=self.strict,
        )

    def settings(self, **others: Any) -> EvaluationSettings:
        """What is evaluated; `others` are settings that only one command has."""
        from ragvl.evaluation.settings import EvaluationSettings

        return EvaluationSettings(
            num_candidates=self.candidates,
            top_k=self.top_k,
            skip=self.skip,
            num_questions=self.questions,
            **others,
        )

    def prompt(self, questions: QuestionSet) -> Template:
        """The reranker's: the one named, else the checkpoint's own, else that of the data set."""
        from ragvl.reranker import preset_of_checkpoint, resolve_template

        template: Template | str | None = self.template
        if template is None:
            template = preset_of_checkpoint(self.reranker, self.preset, **self.location).template
            template = questions.template if template == "auto" else template
        return resolve_template(template)

    def load_models(self, template: Template, generator: str | None = None) -> Models:
        """The models, the reranker with a template and the thresholds saved for it."""
        from ragvl.evaluation.models import Models

        hide_loading_bars()
        return Models.load(
            self.encoder,
            self.reranker,
            generator,
            text_encoder=self.text_encoder,
            fusion=self.chosen_fusion(),
            retriever_weight=parse_weight(self.retriever_weight),
            preset=self.preset,
            template=template,
            device=self.device,
            dtype=self.dtype,
            caption_tokens=self.caption_tokens,
            date=self.date,
            chat_template_kwargs=template_variables(self.chat_template_kwargs),
            location=self.location,
        )
