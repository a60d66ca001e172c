"""The demo's base MLLM: a LLaVA that learns from groups of prompts about the same pictures.

Its vision tower is a trained one that stays as it is, so what it gives is computed once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from demo_models.optimise import on, optimise
from demo_models.parts import (
    ASSISTANT,
    END,
    IMAGE,
    MAX_LENGTH,
    USER,
    image_processor,
)
from demo_models.tower import STRIDE
from demo_models.training_set import (
    Group,
    TrainingSet,
    answer_group,
    description_group,
    gold_answer_group,
    relevance_group,
)
from ragvl.data.synthetic.drawing import SIZE
from ragvl.mllm import ConvolutionalVisionModel, common_prefix_length
from ragvl.training.examples import IGNORE

logger = logging.getLogger(__name__)

NUM_IMAGE_TOKENS = (SIZE // STRIDE) ** 2
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
LEARNING_RATE = 1e-3


def new_mllm(
    tokenizer: PreTrainedTokenizerFast,
    tower: ConvolutionalVisionModel,
    *,
    seed: int,
    start_from: Path | None = None,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA of 2.1 M parameters around a trained vision tower.

    Args:
        tokenizer: of its words.
        tower: stays as it is.
        seed: of what is new.
        start_from: an earlier base, whose decoder this one's starts as; None for nothing.
    """
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
        vision_config=tower.config.to_diff_dict(),
        text_config=text_config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    if start_from is not None:
        _start_decoder(model, tokenizer, start_from)
    processor = LlavaProcessor(
        image_processor(),
        tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )
    return model, processor


@torch.no_grad()
def _start_decoder(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Gives the decoder an earlier one's weights; tokens are found by what they spell."""
    earlier = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    rows = model.get_input_embeddings().weight.clone()
    known = earlier.get_input_embeddings().weight
    ids = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    for token, row in tokenizer.get_vocab().items():
        if token in ids:
            rows[row] = known[ids[token]]
    decoder = earlier.model.language_model.state_dict()
    model.model.language_model.load_state_dict({**decoder, "embed_tokens.weight": rows})


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
GOLD_ANSWER = Task(gold_answer_group, batch_size=32, share=0.35)


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
    checkpoint: Path,
) -> None:
    """Next-token training of `model`, in place, on groups drawn as they are needed."""
    torch.manual_seed(seed)
    model.model.vision_tower.requires_grad_(False)
    shares = np.array([task.share for task in tasks])

    def loss_of_step(rng: np.random.Generator) -> Tensor:
        task = tasks[rng.choice(len(tasks), p=shares / shares.sum())]
        groups = [task.draw(data, rng) for _ in range(task.batch_size)]
        batch, labels, is_answer = encode(groups, tokenizer, data)
        logits = labelled_logits(model, batch, labels)
        losses = F.cross_entropy(
            logits, labels[labels != IGNORE].to(model.device), reduction="none"
        )
        answers = is_answer[labels != IGNORE].to(model.device)
        return losses[answers].mean() + TEXT_WEIGHT * losses[~answers].mean()

    def report() -> None:
        logger.info("%s: %s", name, evaluate(model, tokenizer, validation, tasks))

    optimise(
        model,
        loss_of_step,
        steps=steps,
        seed=seed,
        name=name,
        checkpoint=checkpoint,
        learning_rate=LEARNING_RATE,
        report=report,
    )


def labelled_logits(
    model: LlavaForConditionalGeneration, batch: dict[str, Tensor], labels: Tensor
) -> Tensor:
    """(labelled positions, vocabulary) float32, from what the tower gave for the pictures."""
    batch = on(batch, model.device)
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    visual = model.model.multi_modal_projector(batch["features"].float())
    is_image = batch["input_ids"] == model.config.image_token_id
    embeddings = embeddings.masked_scatter(is_image[..., None], visual.to(embeddings.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[(labels != IGNORE).to(model.device)]).float()


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
        "features": data.features[[row for group in groups for row in group.rows]],
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


def _padded(rows: Sequence[list[int]], fill: int) -> Tensor:
    """(rows, longest) int64."""
    return pad_sequence([torch.tensor(row) for row in rows], True, fill)


@torch.no_grad()
def evaluate(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingSet,
    tasks: Sequence[Task] = (DESCRIBE, RELEVANCE, ANSWER),
    *,
    num_batches: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """The share of answers that are right in every token, by task (teacher forced)."""
    rng = np.random.default_rng(seed)
    shares = {}
    for task in tasks:
        right = total = 0
        for _ in range(num_batches):
            groups = [task.draw(data, rng) for _ in range(task.batch_size)]
            batch, labels, is_answer = encode(groups, tokenizer, data)
            likeliest = torch.zeros_like(labels)
            likeliest[labels != IGNORE] = labelled_logits(model, batch, labels).argmax(-1).cpu()
            wrong = (likeliest != labels) & is_answer
            # an answer's positions are a run of True; count the runs, and those with a mistake
            starts = is_answer & ~F.pad(is_answer, (1, 0))[:, :-1]
            run = starts.cumsum(1) + 1000 * torch.arange(len(groups))[:, None]
            total += int(starts.sum())
            right += int(starts.sum()) - len(run[wrong].unique())
        shares[task.draw.__name__] = round(right / total, 4)
    return shares
