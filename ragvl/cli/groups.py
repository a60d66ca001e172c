"""Options that several commands take together, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from ragvl.cli import options
from ragvl.cli.common import check_settings, hide_loading_bars, template_variables

if TYPE_CHECKING:
    from ragvl.data.questions import QuestionSet
    from ragvl.evaluation.models import Models
    from ragvl.evaluation.settings import EvaluationSettings
    from ragvl.reranker import Reranker
    from ragvl.reranker.templates import Template

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

    def load(self, **settings: Any) -> Reranker:
        """The reranker; `settings` are others of `Reranker.from_pretrained`."""
        from ragvl.reranker import Reranker

        hide_loading_bars()
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


@dataclass(frozen=True)
class EvaluationOptions:
    """Data and models, for the commands that retrieve and rerank a whole data set."""

    source: options.Source
    encoder: options.Encoder
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

        check_settings(
            self.encoder,
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
        """Where the reranker is, apart from its path; what was not given is left out."""
        given = {
            "revision": self.revision,
            "subfolder": self.subfolder,
            "adapters": self.adapters,
        }
        return {name: value for name, value in given.items() if value is not None}

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
            preset=self.preset,
            template=template,
            device=self.device,
            dtype=self.dtype,
            caption_tokens=self.caption_tokens,
            date=self.date,
            chat_template_kwargs=template_variables(self.chat_template_kwargs),
            location=self.location,
        )
