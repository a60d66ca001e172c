"""Trains the tiny models that make the demo run offline: `python -m ragvl.training.tiny --out DIR`.

Five stages, each a folder in Hugging Face format that the next one reads: a tokenizer; a CLIP
retriever; a LLaVA-shaped base MLLM, its vision tower taken from the retriever; and a reranker and a
generator, fine-tuned from the base by what `ragvl data ranking` and `ragvl train` do, with the
recipes tiny-reranker and tiny-generator. About two hours on two quiet CPU cores.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from ragvl.data.questions import Question
from ragvl.data.synthetic import Places, write_world
from ragvl.data.synthetic.drawing import COLORS, KINDS, SETTINGS, SHAPES, SIZE, WORDS
from ragvl.data.synthetic.world import NUMBERS, SYLLABLES
from ragvl.data.webqa import WebQA
from ragvl.generator.prompt import generator_prompt
from ragvl.mllm import common_prefix_length
from ragvl.reranker.templates import CAPTION
from ragvl.retriever import DualEncoder
from ragvl.training.command import Stage, run
from ragvl.training.examples import IGNORE
from ragvl.training.ranking import index_documents, ranking_samples, write_ranking

logger = logging.getLogger(__name__)

PATCH_SIZE = 8
NUM_IMAGE_TOKENS = (SIZE // PATCH_SIZE) ** 2
VOCAB_SIZE = 768
MAX_LENGTH = 512
IMAGE, PAD, END, USER, ASSISTANT = "<image>", "<pad>", "<|end|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{% else %}<|assistant|>{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Of the loss: the answer is what is wanted; the text before it teaches the model to match a name
# across the prompt, which the answer alone does not.
TEXT_WEIGHT = 0.3


# --- data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingSet:
    """A split held in memory: questions, and each document's picture and caption."""

    questions: Sequence[Question]
    pixels: Tensor  # (documents, 3, SIZE, SIZE) uint8
    captions: Sequence[str]
    descriptions: Sequence[str]
    row: dict[str, int]  # document id -> row of the three above
    gold_of: Sequence[Sequence[Question]]  # row -> the questions that this picture answers
    negative_of: Sequence[Sequence[Question]]  # row -> those that it is a hard negative of

    @classmethod
    def read(cls, folder: Path, split: str) -> TrainingSet:
        """Reads what `write_world` wrote."""
        dataset = WebQA(folder, split=split)
        described = json.loads((folder / "descriptions.json").read_text())
        ids = dataset.document_ids()
        documents = [dataset.document(document_id) for document_id in ids]
        pictures = np.stack([np.asarray(document.load()) for document in documents])
        row = {document_id: i for i, document_id in enumerate(ids)}
        gold_of: list[list[Question]] = [[] for _ in ids]
        negative_of: list[list[Question]] = [[] for _ in ids]
        for question in dataset.questions:
            for document_id in question.gold:
                gold_of[row[document_id]].append(question)
            for document_id in question.negatives:
                negative_of[row[document_id]].append(question)
        return cls(
            questions=dataset.questions,
            pixels=torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(),
            captions=[document.caption or "" for document in documents],
            descriptions=[described[document_id] for document_id in ids],
            row=row,
            gold_of=gold_of,
            negative_of=negative_of,
        )

    def pixel_values(self, rows: Sequence[int]) -> Tensor:
        """(rows, 3, SIZE, SIZE) float32, scaled as the shipped image processor scales them."""
        return (self.pixels[list(rows)].float() / 255 - 0.5) / 0.5


@dataclass(frozen=True)
class Group:
    """Prompts that begin with the same pictures and captions, each with its answer.

    What they share is computed once: the prompts' own ends see it, but not each other.
    """

    rows: tuple[int, ...]  # the pictures, in the prompts' order
    turns: tuple[tuple[str, str], ...]  # (prompt, answer)


def description_group(data: TrainingSet, rng: np.random.Generator) -> Group:
    """A picture and all that there is to see in it."""
    row = int(rng.integers(len(data.captions)))
    prompt = f"<image>\nImage Caption: {data.captions[row]}\nDescribe the image."
    return Group((row,), ((prompt, data.descriptions[row]),))


def relevance_group(data: TrainingSet, rng: np.random.Generator) -> Group:
    """A picture, questions that it answers (Yes) and that it is a hard negative of (No)."""
    while True:
        row = int(rng.integers(len(data.captions)))
        if data.gold_of[row] and data.negative_of[row]:
            break
    turns = []
    for questions, answer in ((data.gold_of[row], "Yes"), (data.negative_of[row], "No")):
        for i in rng.permutation(len(questions))[:3]:
            fields = {"query": questions[int(i)].text, "caption": data.captions[row]}
            turns.append((CAPTION.text.format(**fields), answer))
    return Group((row,), tuple(turns))


def answer_group(data: TrainingSet, rng: np.random.Generator) -> Group:
    """Questions with their gold pictures and, half of the time, a distractor among them."""
    question = data.questions[int(rng.integers(len(data.questions)))]
    rows = [data.row[document_id] for document_id in question.gold]
    questions = [question]
    if len(rows) == 1:
        questions += [q for q in data.gold_of[rows[0]] if q.gold == question.gold and q != question]
        if rng.random() < 0.5:
            rows.append(data.row[question.negatives[rng.integers(len(question.negatives))]])
    rng.shuffle(rows)
    turns = []
    for asked in questions[:4]:
        template, fields = generator_prompt(asked.text, [data.captions[row] for row in rows])
        turns.append((template.format(**fields), asked.answers[0]))
    return Group(tuple(rows), tuple(turns))


# --- tokenizer ----------------------------------------------------------------------------------


def train_tokenizer(data: TrainingSet) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges come from the prompts' words and from single syllables.

    Names are left out of its text, so that a name is always spelled syllable by syllable, whether
    or not the training split holds it.
    """
    answers = {answer for question in data.questions for answer in question.answers}
    common = [word.lower() for word in WORDS] + [*COLORS, *SHAPES, *NUMBERS, "yes", "no"]
    assert set(common) & answers, "the world's answers and this vocabulary have parted"
    years = [str(year) for year in range(1950, 2020)]
    sentences = [
        CAPTION.text.replace("<image>", ""),
        "Describe the image. x, outside inside:",
        generator_prompt("", [""])[0].replace("<image>", ""),
        *(
            f"What color is the roof wall carpet sign of x {k} {s}?"
            for k in KINDS
            for s in SETTINGS
        ),
        *(f" {k} in, photographed in Photograph of x {k}" for k in KINDS),
        *(f"How many windows lamps does x {k} have?" for k in KINDS),
        *(f"What shape is the door table of x {k} {s}?" for k in KINDS for s in SETTINGS),
        *(f"Which {k} {s} has more windows, x or x?" for k in KINDS for s in SETTINGS),
        *(f"Do x and x {k} {s} have doors of the same shape?" for k in KINDS for s in SETTINGS),
        "What word is written on the sign of x?",
        *(
            f": {value} roof, {value} wall, {value} door, {value} carpet, {value} sign,"
            for value in common
        ),
        *(f"Is the table of x {first} or x {first}?" for first in [*COLORS, *SHAPES]),
    ]
    lines = [*sentences * 20, *common * 100, *["Yes", "No"] * 100]
    lines += [f" {syllable.capitalize()}" for syllable in SYLLABLES] * 100
    lines += [syllable.capitalize() for syllable in SYLLABLES] * 100
    lines += [*SYLLABLES] * 100
    lines += [f" {year}" for year in years] * 10
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, END, USER, ASSISTANT, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        model_max_length=MAX_LENGTH,
    )


def _image_processor() -> CLIPImageProcessorPil:
    size = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessorPil(
        size=size, do_center_crop=False, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def _vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )


# --- retriever ----------------------------------------------------------------------------------


def train_retriever(
    data: TrainingSet,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    seed: int,
    device: str = "cpu",
) -> tuple[CLIPModel, CLIPProcessor]:
    """CLIP's contrastive loss between a question and one of its gold pictures."""
    torch.manual_seed(seed)
    text_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        pad_token=PAD,
        eos_token=END,
        model_max_length=48,
    )
    end_id = text_tokenizer.eos_token_id
    # CLIP reads a text's embedding at its end token
    text_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, end_id)]
    )
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=48,
        eos_token_id=end_id,
        bos_token_id=None,
        pad_token_id=text_tokenizer.pad_token_id,
        projection_dim=128,
    )
    config = CLIPConfig(
        text_config=text_config.to_dict(),
        vision_config=_vision_config().to_dict(),
        projection_dim=128,
    )
    model = CLIPModel(config).to(device)
    rng = np.random.default_rng([seed, 1])

    def loss_of_step() -> Tensor:
        chosen = rng.integers(len(data.questions), size=192)
        questions = [data.questions[i] for i in chosen]
        rows = [data.row[q.gold[rng.integers(len(q.gold))]] for q in questions]
        text = text_tokenizer(
            [q.text for q in questions], padding=True, truncation=True, return_tensors="pt"
        )
        batch = {
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "pixel_values": data.pixel_values(rows),
        }
        return model(**_on(batch, device), return_loss=True).loss

    _optimise(model, loss_of_step, steps=steps, name="retriever")
    return model, CLIPProcessor(_image_processor(), text_tokenizer)


# --- MLLM ---------------------------------------------------------------------------------------


def new_mllm(
    tokenizer: PreTrainedTokenizerFast, retriever: CLIPModel, *, seed: int
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA of 2.8 M parameters; the vision tower starts from the retriever's."""
    torch.manual_seed(seed)
    text_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    config = LlavaConfig(
        vision_config=_vision_config().to_dict(),
        text_config=text_config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    vision_tower = model.model.vision_tower
    weights = retriever.vision_model.state_dict()
    own = vision_tower.state_dict()
    # CLIPVisionModel has been a wrapper of the transformer in some versions and is it in others
    prefix = "vision_model." if next(iter(own)).startswith("vision_model.") else ""
    vision_tower.load_state_dict({prefix + name: value for name, value in weights.items()})
    processor = LlavaProcessor(
        _image_processor(),
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )
    return model, processor


@dataclass(frozen=True)
class Task:
    """What to draw, how many groups a step, and how often."""

    draw: Callable[[TrainingSet, np.random.Generator], Group]
    batch_size: int
    share: float


# Steps cost about the same: relevance has six prompts a group, an answer one to four.
DESCRIBE = Task(description_group, batch_size=64, share=0.1)
RELEVANCE = Task(relevance_group, batch_size=16, share=0.55)
ANSWER = Task(answer_group, batch_size=32, share=0.35)


def train_mllm(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingSet,
    tasks: Sequence[Task],
    *,
    steps: int,
    seed: int,
    name: str,
    validation: TrainingSet,
) -> None:
    """Next-token training of `model`, in place, on groups drawn as they are needed."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 2])
    shares = np.array([task.share for task in tasks])

    def loss_of_step() -> Tensor:
        task = tasks[rng.choice(len(tasks), p=shares / shares.sum())]
        groups = [task.draw(data, rng) for _ in range(task.batch_size)]
        batch, labels, is_answer = encode(groups, tokenizer, data)
        losses = F.cross_entropy(
            model(**_on(batch, model.device)).logits.float().transpose(1, 2),
            labels.to(model.device),
            ignore_index=IGNORE,
            reduction="none",
        )
        text_losses = losses[(labels != IGNORE) & ~is_answer]
        return losses[is_answer].mean() + TEXT_WEIGHT * text_losses.mean()

    def report() -> None:
        logger.info("%s: %s", name, evaluate(model, tokenizer, validation))

    _optimise(model, loss_of_step, steps=steps, name=name, report=report)


def encode(
    groups: Sequence[Group], tokenizer: PreTrainedTokenizerFast, data: TrainingSet
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The model's inputs, the label of each position, and which positions predict an answer.

    Positions and the attention mask let the end of each prompt follow the shared part directly,
    blind to the other ends beside it.
    """
    rows = [_lay_out(group, tokenizer) for group in groups]
    input_ids = _padded([row.input_ids for row in rows], tokenizer.pad_token_id)
    labels = _padded([row.labels for row in rows], IGNORE)
    segments = _padded([row.segments for row in rows], -1)
    own_or_shared = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    batch = {
        "input_ids": input_ids,
        "position_ids": _padded([row.positions for row in rows], 0),
        "attention_mask": (own_or_shared & causal)[:, None],
        "pixel_values": data.pixel_values([row for group in groups for row in group.rows]),
    }
    is_image = labels == tokenizer.convert_tokens_to_ids(IMAGE)
    is_answer = _padded([row.is_answer for row in rows], 0).bool()
    return batch, labels.masked_fill(is_image, IGNORE), is_answer


@dataclass(frozen=True)
class _Row:
    """A group in one row: what its prompts share, then each prompt's own end and answer."""

    input_ids: list[int]
    positions: list[int]  # of a token in its own prompt
    segments: list[int]  # 0 in the shared part, then the number of the prompt
    labels: list[int]  # the token that comes next in the prompt
    is_answer: list[int]  # 1 where that token is the answer's


def _lay_out(group: Group, tokenizer: PreTrainedTokenizerFast) -> _Row:
    prompts = tokenizer(
        [
            f"{USER}{prompt.replace(IMAGE, IMAGE * NUM_IMAGE_TOKENS)}{ASSISTANT}"
            for prompt, _ in group.turns
        ]
    )["input_ids"]
    answers = tokenizer([f"{answer}{END}" for _, answer in group.turns])["input_ids"]
    first, *others = prompts
    shared = min((common_prefix_length(first, other) for other in others), default=0)
    row = _Row(
        input_ids=first[:shared],
        positions=list(range(shared)),
        segments=[0] * shared,
        labels=[*first[1:shared], IGNORE][:shared],
        is_answer=[0] * shared,
    )
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        end = prompt[shared:] + answer
        row.input_ids.extend(end)
        row.positions.extend(range(shared, shared + len(end)))
        row.segments.extend([number] * len(end))
        row.labels.extend([*end[1:], IGNORE])
        row.is_answer.extend([0] * (len(end) - len(answer) - 1) + [1] * len(answer) + [0])
    return row


def _on(batch: dict[str, Tensor], device: str | torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _padded(rows: Sequence[list[int]], fill: int) -> Tensor:
    """(rows, longest) int64."""
    return pad_sequence([torch.tensor(row) for row in rows], True, fill)


# --- the loop -----------------------------------------------------------------------------------


def _optimise(
    model: nn.Module,
    loss_of_step: Callable[[], Tensor],
    *,
    steps: int,
    name: str,
    report: Callable[[], None] | None = None,
) -> None:
    """AdamW with warm-up and cosine decay; bfloat16 products, float32 weights."""
    model.train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
    warmup = min(200, steps // 10)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    started, running = time.perf_counter(), math.nan
    device = next(model.parameters()).device.type
    for step in range(1, steps + 1):
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of_step()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        value = loss.item()
        running = value if math.isnan(running) else 0.98 * running + 0.02 * value
        if step % 50 == 0 or step == steps:
            seconds = time.perf_counter() - started
            logger.info("%s step %d/%d loss %.4f (%.0f s)", name, step, steps, running, seconds)
        if report is not None and (step % 250 == 0 or step == steps):
            model.eval()
            report()
            model.train()
    model.eval()


@torch.no_grad()
def evaluate(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingSet,
    *,
    num_batches: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """The share of answers that are right in every token, by task (teacher forced)."""
    rng = np.random.default_rng(seed)
    shares = {}
    for task in (DESCRIBE, RELEVANCE, ANSWER):
        right = total = 0
        for _ in range(num_batches):
            groups = [task.draw(data, rng) for _ in range(task.batch_size)]
            batch, labels, is_answer = encode(groups, tokenizer, data)
            likeliest = model(**_on(batch, model.device)).logits.argmax(-1).cpu()
            wrong = (likeliest != labels) & is_answer
            # an answer's positions are a run of True; count the runs, and those with a mistake
            starts = is_answer & ~F.pad(is_answer, (1, 0))[:, :-1]
            run = starts.cumsum(1) + 1000 * torch.arange(len(groups))[:, None]
            total += int(starts.sum())
            right += int(starts.sum()) - len(run[wrong].unique())
        shares[task.draw.__name__] = round(right / total, 4)
    return shares


# --- stages -------------------------------------------------------------------------------------

STAGES = ("tokenizer", "retriever", "base", "reranker", "generator")


def main(
    out: Annotated[Path, typer.Option(help="Where the model folders go.")],
    work: Annotated[Path, typer.Option(help="Where the drawn world goes.")] = Path("runs/tiny"),
    stage: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(STAGES)}; all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the world, the weights and the samples.")] = 0,
    places: Annotated[int, typer.Option(help="Places to train on, three pictures each.")] = 3500,
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
        write_world(
            world, Places(), counts={"train": places, "val": 200}, questions_each=12, seed=seed
        )
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
    processor.save_pretrained(folder)
    logger.info("wrote %s", folder)


if __name__ == "__main__":
    typer.run(main)
