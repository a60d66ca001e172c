"""What noise-injected training teaches: fine-tunes tiny-base with each arm and several seeds.

Each generator answers the demo's test questions from their gold pictures, from those and an
irrelevant one, and from noised gold pictures. A run is written to --work when it is done, and not
done again; when all are there, benchmarks/results/noise_learning.json is written.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import ROOT, save
from PIL import Image
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

from ragvl.data.document import Document
from ragvl.data.questions import Question
from ragvl.data.synthetic import write_world
from ragvl.data.webqa import WebQA
from ragvl.demo.run import NUM_PLACES, WORLD_SEED
from ragvl.evaluation.answers import is_correct
from ragvl.generator import Generator
from ragvl.mllm import MLLM
from ragvl.ops import diffusion_noise
from ragvl.training.examples import IGNORE, AnswerExamples, Collator
from ragvl.training.noise import ARMS
from ragvl.training.trainer import train

BASE = ROOT / "ragvl" / "assets" / "tiny-base"
CONDITIONS = ("clean", "irrelevant", "noised")
TIMESTEP = 500
BATCH_SIZE = 32
LEARNING_RATE = 3e-4
NUM_PROBED = 256  # examples


def evidence(source: WebQA, question: Question, condition: str, number: int) -> list[Document]:
    """The documents that a question is answered from; the same ones for every model."""
    rng = np.random.default_rng([7, number])
    ids = list(question.gold)
    if condition == "irrelevant":
        ids.append(question.negatives[rng.integers(len(question.negatives))])
        rng.shuffle(ids)
    documents = [source.document(id) for id in ids]
    return documents if condition != "noised" else [noised(d, number) for d in documents]


def noised(document: Document, seed: int) -> Document:
    """Diffusion noise on its pixels, which run from -1 to 1."""
    pixels = torch.from_numpy(np.array(document.load(), dtype=np.float32)) / 127.5 - 1
    noisy = diffusion_noise(pixels, timestep=TIMESTEP, seed=seed)
    array = ((noisy.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    return Document(Image.fromarray(array), document.caption, document.id)


def accuracies(mllm: MLLM, source: WebQA, questions: Sequence[Question]) -> dict[str, float]:
    """The share of right answers in each condition."""
    generator = Generator(mllm)
    found = {}
    for condition in CONDITIONS:
        answers = generator.answer_batch(
            [question.text for question in questions],
            [evidence(source, question, condition, i) for i, question in enumerate(questions)],
            max_new_tokens=8,
            progress=False,
        )
        found[condition] = statistics.fmean(
            is_correct(answer, question.answers)
            for answer, question in zip(answers, questions, strict=True)
        )
    return found


@torch.no_grad()
def share_reweighted(learn: WebQA) -> float:
    """The share of answer tokens whose logit falls by more than 1 under noise on visual tokens.

    To tiny-base as it is. The others have the least weight: the token level does nothing to them.
    """
    mllm = MLLM.from_pretrained(BASE, device="cpu")
    examples = AnswerExamples(learn, mllm)
    above = total = 0
    for i in range(min(NUM_PROBED, len(examples))):
        batch = Collator(mllm)([examples[i]])
        labels = batch.pop("labels")[0, 1:]
        labelled = labels != IGNORE
        embeds = mllm.embed(batch)
        is_image = batch["input_ids"] == mllm.model.config.image_token_id
        noisy = diffusion_noise(embeds, is_image, timestep=TIMESTEP, seed=i)
        clean_logits, noisy_logits = (
            mllm.model(inputs_embeds=x, attention_mask=batch["attention_mask"]).logits[0, :-1]
            for x in (embeds, noisy)
        )
        gaps = (clean_logits - noisy_logits)[labelled, labels[labelled]]
        above += int((gaps > 1).sum())
        total += len(gaps)
    return above / total


def one_run(
    arm: str, seed: int, learn: WebQA, test: WebQA, steps: int, num_questions: int
) -> dict[str, Any]:
    """Fine-tunes and evaluates; `arm` is of `ARMS`, or "untrained" for tiny-base as it is."""
    mllm = MLLM.from_pretrained(BASE, device="cpu")
    losses = []
    if arm != "untrained":
        noise = ARMS[arm]
        examples = AnswerExamples(learn, mllm, num_pictures=noise.data_level, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                seed=seed,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="cosine",
                warmup_steps=0.05,
                weight_decay=0.05,
                save_strategy="no",
                logging_steps=max(1, steps // 10),
                use_cpu=True,
                disable_tqdm=True,
                report_to="none",
            )
            train(mllm, arguments, examples, noise=noise)
            state = json.loads((Path(folder) / "trainer_state.json").read_text())
            losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    questions = test.questions[:num_questions]
    return {
        "arm": arm,
        "seed": seed,
        "losses": losses,
        **accuracies(mllm, test, questions),
    }


def _world(folder: Path, **settings: Any) -> WebQA:
    if not folder.exists():
        write_world(folder, seed=WORLD_SEED, **settings)
    return WebQA(folder, split=folder.name)


def main(
    work: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs/noise_learning"),
    arms: Annotated[list[str] | None, typer.Option("--arm", help="Only these; all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each arm.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Of fine-tuning.")] = 200,
    places: Annotated[int, typer.Option(min=2, help="To learn from; three pictures each.")] = 1500,
    num_questions: Annotated[int, typer.Option(min=1, help="Of the test split.")] = 520,
    threads: Annotated[int, typer.Option(min=1)] = torch.get_num_threads(),
) -> None:
    """Fine-tune, evaluate, and write benchmarks/results/noise_learning.json."""
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    learn = _world(work / "train", places={"train": places}, questions_per_place=6)
    test = _world(work / "test", places={"test": NUM_PLACES})
    wanted = [("untrained", 0), *((arm, seed) for seed in range(seeds) for arm in ARMS)]
    for arm, seed in wanted:
        path = work / f"{arm}-{seed}.json"
        if (arms and arm not in arms) or path.exists():
            continue
        run = one_run(arm, seed, learn, test, steps, num_questions)
        path.write_text(json.dumps(run, indent=2) + "\n")
        print(arm, seed, {condition: round(100 * run[condition], 1) for condition in CONDITIONS})
    paths = [work / f"{arm}-{seed}.json" for arm, seed in wanted]
    if all(path.exists() for path in paths):
        result = {
            "steps": steps,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "timestep": TIMESTEP,
            "num_questions": num_questions,
            "reweighted": share_reweighted(learn),
            "runs": [json.loads(path.read_text()) for path in paths],
        }
        print(f"wrote {save('noise_learning', result, torch.device('cpu'))}")


if __name__ == "__main__":
    typer.run(main)
