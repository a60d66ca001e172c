"""Trains the tiny models that make the demo run offline, stage by stage.

Five stages, each a folder in Hugging Face format that the next one reads: a tokenizer; a CLIP
retriever; a LLaVA-shaped base MLLM, its vision tower taken from the retriever; and a reranker and a
generator, fine-tuned from the base by what `ragvl data ranking` and `ragvl train` do, with the
recipes tiny-reranker and tiny-generator. benchmarks/runs/demo_models.sh runs it.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import (
    CLIPModel,
    CLIPProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from demo_models.mllm import ANSWER, DESCRIBE, RELEVANCE, new_mllm, train_mllm
from demo_models.parts import train_tokenizer
from demo_models.retriever import train_retriever
from demo_models.training_set import TrainingSet
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.files import follow_umask
from ragvl.retriever import DualEncoder
from ragvl.training.command import Stage, run
from ragvl.training.ranking import index_documents, ranking_samples, write_ranking

logger = logging.getLogger(__name__)

STAGES = ("tokenizer", "retriever", "base", "reranker", "generator")


def main(
    out: Annotated[Path, typer.Option(help="Where the model folders go.")],
    work: Annotated[Path, typer.Option(help="Where the drawn world goes.")] = Path("runs/tiny"),
    stage: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(STAGES)}; all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the world, the weights and the samples.")] = 0,
    places: Annotated[int, typer.Option(help="Places to train on, three pictures each.")] = 3500,
    val_places: Annotated[int, typer.Option(help="Places to validate on.")] = 200,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    retriever_steps: int = 450,
    describe_steps: int = 500,
    base_steps: int = 1500,
    reranker_steps: Annotated[int, typer.Option(help="-1 for the recipe's epoch.")] = -1,
    generator_steps: Annotated[int, typer.Option(help="-1 for the recipe's epoch.")] = -1,
) -> None:
    """Trains the demo's tiny models, stage by stage."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stages = stage or list(STAGES)
    for name in stages:
        if name not in STAGES:
            raise typer.BadParameter(f"unknown stage {name!r}; the stages are {', '.join(STAGES)}")
    world = work / "world"
    if not (world / "WebQA_train_val.json").exists():
        counts = {"train": places, "val": val_places}
        write_world(world, Places(), counts=counts, questions_each=12, seed=seed)
    train, val = TrainingSet.read(world, "train"), TrainingSet.read(world, "val")
    logger.info("train: %d questions, %d pictures", len(train.questions), len(train.captions))

    folders = {name: out / f"tiny-{name}" for name in STAGES[1:]}
    if "tokenizer" in stages:
        train_tokenizer(train).save_pretrained(work / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    if "retriever" in stages:
        retriever, processor = train_retriever(
            train, tokenizer, steps=retriever_steps, seed=seed, device=device
        )
        _save(retriever, processor, folders["retriever"])
    if "base" in stages:
        retriever = CLIPModel.from_pretrained(folders["retriever"], dtype=torch.float32)
        model, processor = new_mllm(tokenizer, retriever, seed=seed)
        model.to(device)
        # First to see, from dense descriptions; then to read names, count and compare.
        for name, tasks, steps in (
            ("describe", [DESCRIBE], describe_steps),
            ("base", [DESCRIBE, RELEVANCE, ANSWER], base_steps),
        ):
            train_mllm(
                model,
                tokenizer,
                train,
                tasks,
                steps=steps,
                seed=seed,
                name=name,
                validation=val,
            )
        _save(model, processor, folders["base"])
    tuned: dict[Stage, int] = {"reranker": reranker_steps, "generator": generator_steps}
    for name, steps in tuned.items():
        if name in stages:
            shutil.rmtree(work / name, ignore_errors=True)
            flags = [f"--model={folders['base']}", f"--data={world}", f"--output_dir={work / name}"]
            flags += [f"--config=tiny-{name}", "--eval_split=val"]
            flags += [f"--max_steps={steps}", "--disable_tqdm=true"]
            flags += [f"--use_cpu={str(device == 'cpu').lower()}"]
            if name == "reranker":
                rankings = _write_rankings(world, folders["retriever"], work, seed)
                flags += [f"--ranking={rankings['train']}", f"--eval_ranking={rankings['val']}"]
            run(name, flags)
            _save(
                LlavaForConditionalGeneration.from_pretrained(work / name),
                LlavaProcessor.from_pretrained(work / name),
                folders[name],
            )


def _write_rankings(world: Path, retriever: Path, work: Path, seed: int) -> dict[str, Path]:
    """What `ragvl data ranking` writes, for each split."""
    encoder = DualEncoder.from_pretrained(retriever, device="cpu")
    paths = {}
    for split in ("train", "val"):
        source, paths[split] = WebQA(world, split=split), work / f"ranking_{split}.jsonl"
        index = index_documents(source, encoder)
        # Half of the drawn distractors are twins, which so small a retriever finds by chance only.
        samples = ranking_samples(source, encoder, index, labelled_share=0.5, seed=seed)
        counts = write_ranking(samples, paths[split])
        logger.info("%s: %s", paths[split], dict(counts))
    return paths


def _save(model: PreTrainedModel, processor: CLIPProcessor | LlavaProcessor, folder: Path) -> None:
    """In float16: half the size, and ample for weights of this scale."""
    model.half().save_pretrained(folder)
    follow_umask(*folder.glob("*.safetensors"))
    processor.save_pretrained(folder)
    logger.info("wrote %s", folder)


if __name__ == "__main__":
    typer.run(main)
