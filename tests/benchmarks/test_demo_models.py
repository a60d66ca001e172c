"""The recipe of the demo's models: packing changes nothing, and training learns."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_models.__main__ import main
from demo_models.mllm import (
    ANSWER,
    DESCRIBE,
    RELEVANCE,
    Task,
    encode,
    evaluate,
    new_mllm,
    train_mllm,
)
from demo_models.parts import END, train_tokenizer
from demo_models.retriever import train_retriever
from demo_models.training_set import Group, TrainingSet, relevance_group
from transformers import CLIPModel, PreTrainedTokenizerFast

from ragvl.data.synthetic import Places, write_world
from ragvl.mllm import MLLM


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    return write_world(folder, Places(), counts={"train": 40, "val": 20}, questions_each=12, seed=1)


@pytest.fixture(scope="module")
def data(world: Path) -> TrainingSet:
    return TrainingSet.read(world, "train")


@pytest.fixture(scope="module")
def tokenizer(data: TrainingSet) -> PreTrainedTokenizerFast:
    return train_tokenizer(data)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast, data: TrainingSet) -> torch.nn.Module:
    retriever, _ = train_retriever(data, tokenizer, steps=1, seed=0)
    mllm, _ = new_mllm(tokenizer, retriever, seed=0)
    return mllm.eval()


def test_a_name_is_spelled_by_syllables_known_or_not(tokenizer: PreTrainedTokenizerFast) -> None:
    for name in ("Bodalin", "Zuvipor"):
        pieces = tokenizer.tokenize(f" {name}")
        assert len(pieces) == 4
        assert tokenizer.decode(tokenizer(f" {name}")["input_ids"]) == f" {name}"
    for word in ("Yes", "No", "red", "zoo", "pointed"):
        assert len(tokenizer(word)["input_ids"]) == 1, word


@pytest.mark.parametrize("task", [DESCRIBE, RELEVANCE, ANSWER], ids=lambda t: t.draw.__name__)
def test_packed_prompts_predict_what_separate_ones_do(
    task: Task,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingSet,
) -> None:
    rng = np.random.default_rng(0)
    groups = [task.draw(data, rng) for _ in range(4)]
    alone = [Group(group.rows, (turn,)) for group in groups for turn in group.turns]

    def answers(packed: list[Group]) -> tuple[torch.Tensor, torch.Tensor]:
        batch, labels, is_answer = encode(packed, tokenizer, data)
        with torch.no_grad():
            return model(**batch).logits[is_answer], labels[is_answer]

    logits, labels = answers(groups)
    expected_logits, expected_labels = answers(alone)
    assert labels.tolist() == expected_labels.tolist()
    torch.testing.assert_close(logits, expected_logits, atol=2e-5, rtol=0)
    spelled = tokenizer(["".join(f"{answer}{END}" for g in groups for _, answer in g.turns)])
    assert labels.tolist() == spelled["input_ids"][0]


def test_relevance_groups_are_right_and_balanced(data: TrainingSet) -> None:
    rng = np.random.default_rng(1)
    answers: list[str] = []
    for _ in range(200):
        group = relevance_group(data, rng)
        (row,) = group.rows
        for prompt, answer in group.turns:
            query = prompt.split("Question: ")[1].split("\n")[0]
            is_gold = any(question.text == query for question in data.gold_of[row])
            assert (answer == "Yes") == is_gold
            assert f"Image Caption: {data.captions[row]}\n" in prompt
            answers.append(answer)
    assert 0.35 < answers.count("Yes") / len(answers) < 0.65


def test_every_stage_runs_and_its_folders_load(tmp_path: Path) -> None:
    """Two steps a stage: the command writes Hugging Face folders, and learns the constant parts."""
    main(
        out=tmp_path / "assets",
        work=tmp_path / "work",
        places=8,
        val_places=4,
        retriever_steps=2,
        describe_steps=2,
        base_steps=2,
        reranker_steps=2,
        generator_steps=2,
    )
    for name in ("base", "reranker", "generator"):
        folder = tmp_path / "assets" / f"tiny-{name}"
        assert MLLM.from_pretrained(folder, device="cpu").architecture == "llava"
    assert (
        CLIPModel.from_pretrained(tmp_path / "assets" / "tiny-retriever").config.projection_dim
        == 128
    )


def test_a_few_steps_lower_the_loss(
    tokenizer: PreTrainedTokenizerFast, data: TrainingSet, model: torch.nn.Module
) -> None:
    student = copy.deepcopy(model)

    def loss_of(network: torch.nn.Module) -> float:
        rng = np.random.default_rng(5)
        batch, labels, is_answer = encode(
            [relevance_group(data, rng) for _ in range(4)], tokenizer, data
        )
        with torch.no_grad():
            logits = network(**batch).logits
        return torch.nn.functional.cross_entropy(logits[is_answer], labels[is_answer]).item()

    before = loss_of(student)
    task = Task(relevance_group, batch_size=4, share=1.0)
    train_mllm(
        student, tokenizer, data, [task], steps=16, seed=0, name="test", validation=data,
    )  # fmt: skip
    assert loss_of(student) < before / 2
    assert 0 < evaluate(student, tokenizer, data, [task])["relevance_group"] <= 1
