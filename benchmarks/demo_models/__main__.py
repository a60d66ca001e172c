"""Trains the tiny models that make the demo run offline, stage by stage.

Six stages, each a folder in Hugging Face format that the next ones read: a tokenizer; a vision
tower of convolutions; a dual encoder and a LLaVA-shaped base MLLM, both around that tower; and a
reranker and a generator, fine-tuned from the base by what `ragvl data ranking` and `ragvl train`
do, with the recipes tiny-reranker and tiny-generator. A finished stage is not done again, and one
that was broken off goes on. benchmarks/runs/demo_models.sh runs it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import (
    CLIPProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    VisionTextDualEncoderModel,
)

from demo_models.mllm import (
    ANSWER,
    DESCRIBE,
    GOLD_ANSWER,
    RELEVANCE,
    Task,
    new_mllm,
    train_mllm,
)
from demo_models.parts import train_tokenizer
from demo_models.retriever import train_retriever
from demo_models.tower import train_tower
from demo_models.training_set import TrainingSet
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.files import follow_umask
from ragvl.mllm import ConvolutionalVisionModel
from ragvl.retriever import DualEncoder
from ragvl.training.command import Stage, run
from ragvl.training.ranking import index_documents, ranking_samples, write_ranking
from ragvl.training.run_record import is_finished

logger = logging.getLogger(__name__)

STAGES = ("tokenizer", "tower", "retriever", "base", "reranker", "generator")
SEEING = "seeing-base"  # what ablations start from; a stage only where it is named
_SHIPPED = STAGES[2:]
_DONE = "done"  # a file in the folder of a stage that is whole


def main(
    out: Annotated[Path, typer.Option(help="Where the shipped folders go, in bfloat16.")],
    work: Annotated[Path, typer.Option(help="Where the world and every stage goes.")] = Path(
        "runs/tiny"
    ),
    stage: Annotated[
        list[str] | None,
        typer.Option(help=f"Of {', '.join(STAGES)}: all; {SEEING} for the ablations' base."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the world, the weights and the samples.")] = 0,
    places: Annotated[int, typer.Option(help="Places to train on, three pictures each.")] = 4000,
    val_places: Annotated[int, typer.Option(help="Places to validate on.")] = 200,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    start_from: Annotated[
        Path | None, typer.Option(help="An earlier base, whose decoder the new one starts as.")
    ] = None,
    tower_steps: int = 600,
    retriever_steps: int = 450,
    describe_steps: int = 500,
    base_steps: int = 1500,
    seeing_steps: Annotated[int, typer.Option(help="Few: it is to stay under its ceiling.")] = 300,
    reranker_steps: Annotated[int, typer.Option(help="-1 for the recipe's epoch.")] = -1,
    generator_steps: Annotated[int, typer.Option(help="-1 for the recipe's epoch.")] = -1,
) -> None:
    """Trains the demo's tiny models, stage by stage."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stages = stage or list(STAGES)
    for name in stages:
        if name not in (*STAGES, SEEING):
            known = ", ".join((*STAGES, SEEING))
            raise typer.BadParameter(f"unknown stage {name!r}; the stages are {known}")
    if start_from is not None and SEEING in stages:
        raise typer.BadParameter(f"an earlier base may have seen what {SEEING} must not have")
    world = work / "world"
    if not (world / "descriptions.json").exists():  # written last
        counts = {"train": places, "val": val_places}
        write_world(world, Places(), counts=counts, questions_each=12, seed=seed)
    steps = {
        "tower": tower_steps,
        "retriever": retriever_steps,
        "describe": describe_steps,
        "describe-again": describe_steps,
        "base": base_steps,
        SEEING: seeing_steps,
        "reranker": reranker_steps,
        "generator": generator_steps,
    }
    training = _Training(world, work, steps, seed, device, start_from)
    for name in stages:
        if training.is_done(name):
            logger.info("%s is there: %s", name, work / name)
        else:
            getattr(training, name.replace("-", "_"))()
        if name in _SHIPPED:
            _ship(name, work / name, out / f"tiny-{name}")
        elif name == SEEING:
            _ship(name, work / name, out / name)


class _Training:
    """A method a stage, which leaves a whole folder of its name in `work`."""

    def __init__(
        self,
        world: Path,
        work: Path,
        steps: dict[str, int],
        seed: int,
        device: str,
        start_from: Path | None,
    ) -> None:
        self._world, self._work, self._steps = world, work, steps
        self._seed, self._device, self._start_from = seed, device, start_from

    def is_done(self, name: str) -> bool:
        folder = self._work / name
        return (folder / _DONE).exists() or is_finished(folder)

    def tokenizer(self) -> None:
        train_tokenizer(TrainingSet.read(self._world, "train")).save_pretrained(
            self._work / "tokenizer"
        )
        self._finish("tokenizer")

    def tower(self) -> None:
        tower = train_tower(
            TrainingSet.read(self._world, "train"),
            validation=TrainingSet.read(self._world, "val"),
            steps=self._steps["tower"],
            **self._common("tower"),
            device=self._device,
        )
        self._finish("tower", tower)

    def retriever(self) -> None:
        tokenizer, tower = self._tokenizer_and_tower()
        model, processor = train_retriever(
            self._seen("train", tower),
            tokenizer,
            tower,
            steps=self._steps["retriever"],
            **self._common("retriever"),
            device=self._device,
        )
        self._finish("retriever", model, processor)

    def base(self) -> None:
        self._teach("base", [DESCRIBE, RELEVANCE, ANSWER])

    def seeing_base(self) -> None:
        """Has seen gold pictures only: neither a distractor nor a question about relevance."""
        self._teach(SEEING, [DESCRIBE, GOLD_ANSWER])

    def _teach(self, stage: str, tasks: Sequence[Task]) -> None:
        tokenizer, tower = self._tokenizer_and_tower()
        train, val = self._seen("train", tower), self._seen("val", tower)
        # First to put into words what the tower sees; then to read names, count and compare.
        model, processor = new_mllm(tokenizer, tower, seed=self._seed, start_from=self._start_from)
        first = "describe" if self._start_from is None else "describe-again"
        if self.is_done(first):
            model = LlavaForConditionalGeneration.from_pretrained(self._work / first)
        model.to(self._device)
        for name, of_stage in ((first, [DESCRIBE]), (stage, tasks)):
            if self.is_done(name):
                continue
            train_mllm(
                model,
                tokenizer,
                train,
                of_stage,
                steps=self._steps[name],
                name=name,
                validation=val,
                **self._common(name),
            )
            self._finish(name, model, processor)

    def reranker(self) -> None:
        rankings = _write_rankings(self._world, self._work / "retriever", self._work, self._seed)
        self._tune(
            "reranker", f"--ranking={rankings['train']}", f"--eval_ranking={rankings['val']}"
        )

    def generator(self) -> None:
        self._tune("generator")

    def _tune(self, name: Stage, *flags: str) -> None:
        run(
            name,
            [
                f"--model={self._work / 'base'}",
                f"--data={self._world}",
                f"--output_dir={self._work / name}",
                f"--config=tiny-{name}",
                "--eval_split=val",
                f"--max_steps={self._steps[name]}",
                "--disable_tqdm=true",
                "--resume_from_checkpoint=last",
                f"--use_cpu={str(self._device == 'cpu').lower()}",
                *flags,
            ],
        )

    def _common(self, name: str) -> dict[str, Any]:
        return {"seed": self._seed, "checkpoint": self._work / f"{name}.checkpoint"}

    def _tokenizer_and_tower(self) -> tuple[PreTrainedTokenizerFast, ConvolutionalVisionModel]:
        return (
            PreTrainedTokenizerFast.from_pretrained(self._work / "tokenizer"),
            ConvolutionalVisionModel.from_pretrained(self._work / "tower"),
        )

    def _seen(self, split: str, tower: ConvolutionalVisionModel) -> TrainingSet:
        return TrainingSet.read(self._world, split).seen_by(tower)

    def _finish(self, name: str, *parts: PreTrainedModel | ProcessorMixin) -> None:
        for part in parts:
            part.save_pretrained(self._work / name)
        (self._work / name / _DONE).touch()
        logger.info("wrote %s", self._work / name)


def _write_rankings(world: Path, retriever: Path, work: Path, seed: int) -> dict[str, Path]:
    """What `ragvl data ranking` writes, for each split."""
    encoder = DualEncoder.from_pretrained(retriever, device="cpu")
    paths = {}
    for split in ("train", "val"):
        source, paths[split] = WebQA(world, split=split), work / f"ranking_{split}.jsonl"
        views = index_documents(source, {"picture": encoder})
        # Half of the drawn distractors are twins, which so small a retriever finds by chance only.
        samples = ranking_samples(source, views, labelled_share=0.5, seed=seed)
        counts = write_ranking(samples, paths[split])
        logger.info("%s: %s", paths[split], dict(counts))
    return paths


def _ship(name: str, trained: Path, folder: Path) -> None:
    """In bfloat16: half the size, and ample for weights of this scale."""
    if name == "retriever":
        model = VisionTextDualEncoderModel.from_pretrained(trained)
        processor = CLIPProcessor.from_pretrained(trained)
    else:
        model = LlavaForConditionalGeneration.from_pretrained(trained)
        processor = LlavaProcessor.from_pretrained(trained)
    model.bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)
    follow_umask(*folder.glob("*.safetensors"))
    logger.info("wrote %s", folder)


if __name__ == "__main__":
    typer.run(main)
