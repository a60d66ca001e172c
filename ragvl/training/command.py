"""What `ragvl train reranker` and `ragvl train generator` do: settings in, a trained model out.

Every setting is a flag and a key of a YAML file; of two, the later one on the command line counts.
"""

from __future__ import annotations

import dataclasses
import logging
import shlex
from argparse import ArgumentError
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jsonargparse import ArgumentParser
from torch.utils.data import Dataset, Subset
from transformers import TrainingArguments

from ragvl.arguments import checked_count, checked_image_tokens
from ragvl.checkpoints import model_folder
from ragvl.data.formats import open_questions, possible_splits
from ragvl.data.questions import Modality, QuestionSet
from ragvl.files import check_regular, check_writable_folder
from ragvl.messages import MAX_ERROR, reason, shown
from ragvl.mllm import MLLM, Prompting, check_reader
from ragvl.reranker.templates import TEMPLATES
from ragvl.training.adapters import LoraSettings, layers_to_adapt
from ragvl.training.examples import AnswerExamples, Example, RankingExamples
from ragvl.training.noise import NoiseSettings
from ragvl.training.ranking import read_ranking
from ragvl.training.trainer import train

Stage = Literal["reranker", "generator"]
T = TypeVar("T")

logger = logging.getLogger(__name__)

_RECIPES = files("ragvl") / "recipes"


@dataclass(frozen=True)
class RunSettings:
    """What to train, and on what.

    Args:
        model: a hub id or a folder, in Hugging Face's format.
        data: a data set that `open_questions` knows: a folder of WebQA's or MultimodalQA's files,
            captions, or your own .jsonl.
        split: the questions to learn from; of a reranker the split its ranking samples are from.
            Null is train; data without splits has none.
        eval_split: the same for evaluation; null for none.
        modality: of WebQA and MultimodalQA, which documents: image (also null), text or both.
        num_examples: only so many, the first ones; null for all.
        share: only this share of those, drawn by the seed.
        num_eval_examples: the same for evaluation.
        dtype: of the model's weights: float32, or bfloat16 together with adapters.
        attn_implementation: sdpa, flash_attention_2, ...; null is Hugging Face's choice.
        trust_remote_code: lets Python code that comes with the checkpoint run.
        freeze_vision: vision tower and projector stay as they are.
        strict: stop at the first problem with the data, before training.
        caption_tokens: cut longer captions to so many tokens; null cuts none. What is trained is to
            be used with the same.
    """

    model: str
    data: Path
    split: str | None = None
    eval_split: str | None = None
    modality: Modality | None = None
    num_examples: int | None = None
    share: float = 1.0
    num_eval_examples: int | None = None
    dtype: str = "float32"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    freeze_vision: bool = True
    strict: bool = False
    caption_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}: expected more than 0, and at most 1")
        for name in ("num_examples", "num_eval_examples", "caption_tokens"):
            if (count := getattr(self, name)) is not None:
                checked_count(name, count)

    def load_model(self) -> MLLM:
        """The model that training starts from, on the CPU, from where Trainer moves it."""
        return MLLM.from_pretrained(
            self.model,
            device="cpu",
            dtype=self.dtype,
            attn_implementation=self.attn_implementation,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True)
class RankingSettings:
    """What a reranker learns from.

    Args:
        ranking: samples that `ragvl data ranking` wrote.
        eval_ranking: those of eval_split.
        template: caption, plain, retrieval, instruction-first, document or auto; null is retrieval
            for a data set of captions, else auto: caption for a picture with a caption, plain for
            one without, and document for texts and parts. Rerankers of what is saved use it.
        image_tokens: the share of each picture's tokens that a prefix keeps and that the rest of a
            prompt sees; null is what the model was trained with, or all. The reranker's caches keep
            as many.
    """

    ranking: Path
    eval_ranking: Path | None = None
    template: (
        Literal["auto", "caption", "plain", "retrieval", "instruction-first", "document"] | None
    ) = None
    image_tokens: float | None = None

    def __post_init__(self) -> None:
        if self.image_tokens is not None:
            checked_image_tokens(self.image_tokens)


def recipes() -> dict[str, str]:
    """The recipes that come with ragvl: what each is for, by name."""
    paths = sorted(_RECIPES.iterdir(), key=lambda path: path.name)
    return {
        path.name.removesuffix(".yaml"): path.read_text().splitlines()[0].removeprefix("# ")
        for path in paths
        if path.name.endswith(".yaml")
    }


@dataclass(frozen=True)
class Plan:
    """What flags say, checked as far as it can be before anything is read or loaded.

    Attributes:
        run: what to train, and on what.
        ranking: what a reranker learns from; None of a generator.
        noise: what is noised.
        lora: adapters.
        arguments: Hugging Face's.
        values: every setting by its flag's name, those that were left out too.
    """

    run: RunSettings
    ranking: RankingSettings | None
    noise: NoiseSettings
    lora: LoraSettings
    arguments: TrainingArguments
    values: Mapping[str, Any]


def plan(stage: Stage, flags: Sequence[str]) -> Plan:
    """Reads flags.

    Raises:
        ValueError: a flag or a key is unknown, missing or has a wrong value; it says which.
    """
    try:
        return _plan(stage, _parser(stage, exits=False), flags)
    except ArgumentError as error:
        raise ValueError(reason(error, MAX_ERROR)) from error


def run(
    stage: Stage, flags: Sequence[str], *, report: Callable[[str], object] = logger.info
) -> dict[str, float]:
    """Trains as the flags say; returns Trainer's figures.

    Args:
        stage: what is trained.
        flags: see `plan`.
        report: gets what a person wants to know: how much there is to learn from, and at the end
            where the model is, and how it is evaluated.

    Raises:
        SystemExit: a flag or a key is unknown, missing or has a wrong value; it says which.
        ValueError, OSError, ArithmeticError: see `train`.
    """
    planned = _plan(stage, _parser(stage), flags)
    settings = planned.run
    _check_files(planned)
    mllm = settings.load_model()
    if planned.lora.rank:  # before the data are read, which may take long
        layers_to_adapt(mllm, planned.lora, freeze_vision=settings.freeze_vision)
    if settings.caption_tokens is not None:
        logger.warning("caption_tokens=%d: longer captions are cut", settings.caption_tokens)
    examples: Dataset[Example]
    eval_examples: Dataset[Example] | None
    template = None
    if planned.ranking is not None:
        ranked, eval_examples = _ranking_examples(mllm.prompting, settings, planned.ranking)
        examples, template = ranked, ranked.template_name
    else:
        seed = planned.arguments.seed
        examples, eval_examples = _answer_examples(mllm.prompting, settings, planned.noise, seed)
    arguments = planned.arguments
    examples = _drawn(_first(examples, settings.num_examples), settings.share, arguments.seed)
    eval_examples = eval_examples and _first(eval_examples, settings.num_eval_examples)
    questions = _question_names(examples)
    if arguments.process_index == 0:
        report(_amount(examples, eval_examples, questions))
    figures = train(
        mllm,
        arguments,
        examples,
        noise=planned.noise,
        lora=planned.lora,
        freeze_vision=settings.freeze_vision,
        # A generator's prompts have no prefixes, whatever it starts from was trained with
        image_tokens=1.0 if planned.ranking is None else planned.ranking.image_tokens,
        template=template,
        eval_examples=eval_examples,
        questions=questions,
    )
    if arguments.process_index == 0:
        report(f"saved in {arguments.output_dir}; evaluate it with")
        report(_evaluation(planned))
    return figures


def _amount(
    examples: Dataset[Example], eval_examples: Dataset[Example] | None, questions: Collection[str]
) -> str:
    sizes = [len(one) for one in (examples, eval_examples) if one]  # type: ignore[arg-type]
    learned = f"{sizes[0]:,} samples of {len(questions):,} questions to learn from"
    return learned if eval_examples is None else f"{learned}, {sizes[-1]:,} to evaluate by"


def _evaluation(planned: Plan) -> str:
    """The command that evaluates what was trained; what is not known here is in capitals."""
    settings, out = planned.run, str(planned.arguments.output_dir)
    # One split has no other to evaluate on
    data = str(settings.data) if possible_splits(settings.data) != [None] else "DATA"
    models = ["--reranker", out if planned.ranking else "RERANKER"]
    models += [] if planned.ranking else ["--generator", out]
    flags = ["ragvl", "evaluate", data, "--encoder", "ENCODER", *models]
    flags += ["--out", str(Path(out) / "evaluation")]
    for name, value in (
        ("--modality", settings.modality),
        ("--caption-tokens", settings.caption_tokens),
    ):
        flags += [] if value is None else [name, str(value)]
    return shlex.join(flags)


def _question_names(examples: Dataset[Example]) -> list[str]:
    """Names of the questions that examples are about, each once."""
    indices = list(range(len(examples)))  # type: ignore[arg-type]
    while isinstance(examples, Subset):
        indices = [examples.indices[index] for index in indices]
        examples = examples.dataset
    assert isinstance(examples, RankingExamples | AnswerExamples)
    return list(dict.fromkeys(map(examples.question_name, indices)))


def _check_files(planned: Plan) -> None:
    """What can be known before the model is loaded.

    Raises:
        OSError: a file or folder is missing, or the output cannot be written.
        UnsupportedModelError: the model's files are damaged.
    """
    settings = planned.run
    model_folder(settings.model)
    if not settings.data.exists():
        raise FileNotFoundError(f"there is no data set {shown(settings.data)}")
    if planned.ranking is not None:
        for path in (planned.ranking.ranking, planned.ranking.eval_ranking):
            if path is not None:
                check_regular(path)
    resumed = planned.arguments.resume_from_checkpoint
    if resumed and str(resumed) not in ("last", "True", "true"):
        model_folder(Path(str(resumed)))
    check_writable_folder(Path(str(planned.arguments.output_dir)))
    # Last, since it may be a download
    check_reader(settings.model, trust_remote_code=settings.trust_remote_code, to_train=True)


def _plan(stage: Stage, parser: ArgumentParser, flags: Sequence[str]) -> Plan:
    parsed = parser.parse_args(_with_shipped_files(flags))
    values = vars(parsed)
    for name in ("deepspeed", "fsdp_config"):
        values[name] = _shipped(values[name])
    settings = _take(RunSettings, values)
    evaluates = values["eval_ranking"] if stage == "reranker" else settings.eval_split
    if evaluates and values["eval_strategy"] == "no":
        values["eval_strategy"] = "epoch"
    return Plan(
        run=settings,
        ranking=_take(RankingSettings, values) if stage == "reranker" else None,
        noise=NoiseSettings(**vars(values["noise"])) if stage == "generator" else NoiseSettings(),
        lora=LoraSettings(**vars(values["lora"])),
        arguments=_take(TrainingArguments, _by_new_names(values)),
        values=dict(parsed.items()),
    )


def _by_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under the names that transformers does not warn of, where it has those."""
    renamed = dict(values)
    for suffix in ("", "_kwargs"):
        old, new = f"gradient_checkpointing{suffix}", f"activation_checkpointing{suffix}"
        if new in renamed and renamed[new] is None:
            renamed[new], renamed[old] = renamed[old], None
    return renamed


@cache  # a grid of many runs would spend its time on making parsers
def _parser(stage: Stage, *, exits: bool = True) -> ArgumentParser:
    """Of the command's flags; what is wrong ends the program, or else is an `ArgumentError`."""
    name = f"ragvl train {stage}"
    needed = "--model M --data FOLDER --output_dir DIR"
    if stage == "reranker":
        needed += " --ranking FILE"
    parser = ArgumentParser(
        prog=name,
        usage=f"{name} {needed} [--config RECIPE_OR_FILE] [--SETTING VALUE ...]",
        description=f"Train a {stage}. Settings are those below, TrainingArguments' among them.",
        allow_abbrev=False,
        exit_on_error=exits,
    )
    parser.add_argument("--config", action="config", help="a YAML file, or a recipe's name")
    parser.add_class_arguments(RunSettings)
    if stage == "reranker":
        parser.add_class_arguments(RankingSettings)
    else:
        parser.add_class_arguments(NoiseSettings, "noise")
    parser.add_class_arguments(LoraSettings, "lora")
    parser.add_class_arguments(TrainingArguments, skip={"output_dir", "fsdp"})
    # Hugging Face declares it as text, and wants a bool
    parser.add_argument("--fsdp", type=bool | None, help="share out the weights; see fsdp_config")
    parser.add_argument("--output_dir", type=str, required=True, help="where the model goes")
    parser.set_defaults(report_to="tensorboard")
    return parser


def _with_shipped_files(flags: Sequence[str]) -> list[str]:
    """The flags, with a recipe's path for its name."""
    expanded: list[str] = []
    for flag in flags:
        name, _, value = flag.partition("=")
        if name == "--config" and value:
            flag = f"--config={_config(value)}"
        elif expanded and expanded[-1] == "--config":
            flag = str(_config(flag))
        expanded.append(flag)
    return expanded


def _config(value: str) -> Any:
    """The settings' file that `value` names, a recipe or another.

    Raises:
        OSError: it is a folder, or what would be waited for, such as a pipe.
    """
    path = _shipped(value)
    if Path(path).exists():
        check_regular(path)
    return path


def _shipped(value: Any) -> Any:
    """The path of the file in recipes/ that `value` names, if it does, else `value`."""
    if isinstance(value, str) and not Path(value).exists():
        for suffix in ("", ".yaml", ".json"):
            path = _RECIPES / f"{value}{suffix}"
            if path.is_file():
                return str(path)
    return value


def _take(kind: type[T], values: Mapping[str, Any]) -> T:
    names = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    return kind(**{name: values[name] for name in names if name in values})


def _ranking_examples(
    prompting: Prompting, settings: RunSettings, ranking: RankingSettings
) -> tuple[RankingExamples, RankingExamples | None]:
    template = None if ranking.template is None else TEMPLATES[ranking.template]

    def examples(path: Path, split: str | None) -> RankingExamples:
        return RankingExamples(
            read_ranking(path),
            _open(settings, split),
            prompting,
            template,
            caption_tokens=settings.caption_tokens,
        )

    training = examples(ranking.ranking, settings.split)
    if ranking.eval_ranking is None:
        return training, None
    return training, examples(ranking.eval_ranking, settings.eval_split or settings.split)


def _answer_examples(
    prompting: Prompting, settings: RunSettings, noise: NoiseSettings, seed: int
) -> tuple[Dataset[Example], Dataset[Example] | None]:
    training = AnswerExamples(
        _open(settings, settings.split),
        prompting,
        num_pictures=noise.data_level,
        hard=noise.hard_negatives,
        seed=seed,
        caption_tokens=settings.caption_tokens,
    )
    if settings.eval_split is None:
        return training, None
    evaluated = _open(settings, settings.eval_split)
    return training, AnswerExamples(evaluated, prompting, caption_tokens=settings.caption_tokens)


def _open(settings: RunSettings, split: str | None) -> QuestionSet:
    return open_questions(
        settings.data,
        split=split,
        purpose="train",
        modality=settings.modality,
        strict=settings.strict,
    )


def _drawn(examples: Dataset[Example], share: float, seed: int) -> Dataset[Example]:
    if share == 1:
        return examples
    size = len(examples)  # type: ignore[arg-type]
    order = np.random.default_rng(seed).permutation(size)
    return Subset(examples, sorted(order[: max(1, round(share * size))].tolist()))


def _first(examples: Dataset[Example], count: int | None) -> Dataset[Example]:
    size = len(examples)  # type: ignore[arg-type]
    return examples if count is None else Subset(examples, range(min(count, size)))
