"""The recipe of the demo's models: packing changes nothing, and training learns."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from demo_models.__main__ import main
from demo_models.mllm import (
    ANSWER,
    DESCRIBE,
    GOLD_ANSWER,
    RELEVANCE,
    Task,
    encode,
    evaluate,
    labelled_logits,
    new_mllm,
    train_mllm,
)
from demo_models.optimise import optimise
from demo_models.parts import END, train_tokenizer
from demo_models.tower import (
    field_targets,
    field_values,
    fold_batch_norm,
    tower_config,
    use_batch_norm,
)
from demo_models.training_set import Group, TrainingSet, relevance_group
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from ragvl.data.synthetic import Places, write_world
from ragvl.mllm import MLLM, ConvolutionalVisionModel
from ragvl.retriever import DualEncoder
from ragvl.training.examples import IGNORE


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    return write_world(folder, Places(), counts={"train": 40, "val": 20}, questions_each=12, seed=1)


@pytest.fixture(scope="module")
def tower() -> ConvolutionalVisionModel:
    torch.manual_seed(0)
    return ConvolutionalVisionModel(tower_config()).eval()


@pytest.fixture(scope="module")
def data(world: Path, tower: ConvolutionalVisionModel) -> TrainingSet:
    return TrainingSet.read(world, "train").seen_by(tower)


@pytest.fixture(scope="module")
def tokenizer(data: TrainingSet) -> PreTrainedTokenizerFast:
    return train_tokenizer(data)


@pytest.fixture(scope="module")
def model(
    tokenizer: PreTrainedTokenizerFast, tower: ConvolutionalVisionModel
) -> LlavaForConditionalGeneration:
    mllm, _ = new_mllm(tokenizer, tower, seed=0)
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
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingSet,
) -> None:
    rng = np.random.default_rng(0)
    groups = [task.draw(data, rng) for _ in range(4)]
    alone = [Group(group.rows, (turn,)) for group in groups for turn in group.turns]

    def answers(packed: list[Group]) -> tuple[torch.Tensor, torch.Tensor]:
        batch, labels, is_answer = encode(packed, tokenizer, data)
        with torch.no_grad():
            logits = labelled_logits(model, batch, labels)
        return logits[is_answer[labels != IGNORE]], labels[is_answer]

    logits, labels = answers(groups)
    expected_logits, expected_labels = answers(alone)
    assert labels.tolist() == expected_labels.tolist()
    torch.testing.assert_close(logits, expected_logits, atol=2e-5, rtol=0)
    spelled = tokenizer(["".join(f"{answer}{END}" for g in groups for _, answer in g.turns)])
    assert labels.tolist() == spelled["input_ids"][0]


def test_kept_features_give_what_the_whole_model_gives(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, data: TrainingSet
) -> None:
    rng = np.random.default_rng(2)
    groups = [ANSWER.draw(data, rng) for _ in range(3)]
    batch, labels, _ = encode(groups, tokenizer, data)
    pixels = data.pixel_values([row for group in groups for row in group.rows])
    inputs = {name: value for name, value in batch.items() if name != "features"}
    with torch.no_grad():
        expected = model(pixel_values=pixels, **inputs).logits[labels != IGNORE]
        torch.testing.assert_close(
            labelled_logits(model, batch, labels), expected, atol=2e-5, rtol=0
        )


def test_a_decoder_starts_as_an_earlier_one_whose_ids_are_others(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    tower: ConvolutionalVisionModel,
    tmp_path: Path,
) -> None:
    """The earlier vocabulary holds the same tokens in the opposite order, but for one."""
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    last = len(vocabulary) - 1
    shuffled = {token: last - row for token, row in vocabulary.items()}
    unknown = tokenizer.convert_ids_to_tokens(300)
    shuffled["unheard"] = shuffled.pop(unknown)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(shuffled, unk_token="unheard"))
    ).save_pretrained(tmp_path)
    earlier, _ = new_mllm(tokenizer, tower, seed=9)
    earlier.save_pretrained(tmp_path)

    started, _ = new_mllm(tokenizer, tower, seed=0, start_from=tmp_path)
    rows = started.get_input_embeddings().weight
    known = earlier.get_input_embeddings().weight
    for token, row in tokenizer.get_vocab().items():
        expected = (
            model.get_input_embeddings().weight[row] if token == unknown else known[last - row]
        )
        assert torch.equal(rows[row], expected), token
    assert started.lm_head.weight is rows
    ours = started.model.language_model.layers.state_dict()
    for name, weight in earlier.model.language_model.layers.state_dict().items():
        assert torch.equal(ours[name], weight)


def test_the_ablations_base_starts_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="seeing-base must not have"):
        main(tmp_path, tmp_path / "work", stage=["seeing-base"], start_from=tmp_path)
    assert not (tmp_path / "work").exists()


def test_folded_batch_norm_changes_nothing(data: TrainingSet) -> None:
    torch.manual_seed(1)
    tower = ConvolutionalVisionModel(tower_config())
    use_batch_norm(tower)
    tower.train()
    with torch.no_grad():
        tower(data.pixel_values(range(32)))  # moves the running figures from their start
        for module in tower.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
        tower.eval()
        pixels = data.pixel_values(range(8))
        expected = tower(pixels).last_hidden_state
        fold_batch_norm(tower)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in tower.modules())
        torch.testing.assert_close(tower(pixels).last_hidden_state, expected, atol=1e-4, rtol=1e-4)
    plain = ConvolutionalVisionModel(tower_config())
    plain.load_state_dict(tower.state_dict())


def test_fields_of_a_description() -> None:
    descriptions = [
        "Bodalin church in the snow, outside: red roof, white wall, round door, two windows",
        "Zuvipor barn by the sea, sign: blue sign, tea",
    ]
    values = field_values(descriptions)
    assert values["kind"] == ["barn", "church"]
    assert values["setting"] == ["by the sea", "in the snow"]
    assert values["outside 3"] == ["two windows"]
    targets = field_targets(descriptions, values)
    of = dict(zip(values, targets.T.tolist(), strict=True))
    assert of["kind"] == [1, 0]
    assert of["view"] == [0, 1]
    assert of["outside 0"] == [0, IGNORE]
    assert of["sign 1"] == [IGNORE, 0]


class _Broken(Exception):
    pass


def test_training_that_was_broken_off_ends_as_unbroken_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demo_models.optimise._SECONDS_BETWEEN_SAVES", 0.0)

    def train(*, broken_at: int | None = None) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        steps = 0

        def loss_of_step(rng: np.random.Generator) -> Tensor:
            nonlocal steps
            steps += 1
            if steps == broken_at:
                raise _Broken
            x = torch.from_numpy(rng.normal(size=(8, 4)).astype(np.float32))
            return (model(x) - x.sum(1, keepdim=True)).square().mean()

        optimise(
            model,
            loss_of_step,
            steps=12,
            seed=5,
            name="test",
            checkpoint=checkpoint,
            dtype=torch.float32,
        )
        return model.weight.detach()

    checkpoint = tmp_path / "unbroken.checkpoint"
    expected = train()
    assert not checkpoint.exists()
    checkpoint = tmp_path / "broken.checkpoint"
    with pytest.raises(_Broken):
        train(broken_at=8)
    assert checkpoint.exists()
    assert torch.equal(train(), expected)
    assert not checkpoint.exists()


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


def test_the_ablations_base_sees_no_distractor(data: TrainingSet) -> None:
    golds = {frozenset(data.row[id] for id in question.gold) for question in data.questions}

    def distracted(task: Task) -> int:
        rng = np.random.default_rng(0)
        return sum(frozenset(task.draw(data, rng).rows) not in golds for _ in range(60))

    assert distracted(GOLD_ANSWER) == 0 < distracted(ANSWER)


@pytest.mark.slow
def test_every_stage_runs_once_and_its_folders_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps a stage: the command writes Hugging Face folders, and goes on from what is done."""
    tasks = {"DESCRIBE": DESCRIBE, "RELEVANCE": RELEVANCE, "ANSWER": ANSWER}
    for name, task in (tasks | {"GOLD_ANSWER": GOLD_ANSWER}).items():
        monkeypatch.setattr(f"demo_models.__main__.{name}", replace(task, batch_size=2))
    for module in ("tower", "retriever"):
        monkeypatch.setattr(f"demo_models.{module}._BATCH_SIZE", 8)

    def run(stage: list[str] | None = None) -> None:
        main(
            out=tmp_path / "assets",
            work=tmp_path / "work",
            stage=stage,
            places=4,
            val_places=2,
            tower_steps=2,
            retriever_steps=2,
            describe_steps=2,
            base_steps=2,
            seeing_steps=2,
            reranker_steps=2,
            generator_steps=2,
        )

    run()
    for name in ("base", "reranker", "generator"):
        folder = tmp_path / "assets" / f"tiny-{name}"
        assert MLLM.from_pretrained(folder, device="cpu").architecture == "llava"
        weights = load_file(folder / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    encoder = DualEncoder.from_pretrained(tmp_path / "assets" / "tiny-retriever", device="cpu")
    assert encoder.dim == 128
    written = [path.read_text() for path in (tmp_path / "assets").glob("*/*.json")]
    assert not any(str(tmp_path) in text for text in written), "a path of the machine is shipped"
    trained = tmp_path / "work" / "base" / "model.safetensors"
    before = trained.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        run(["tower", "base"])
    assert trained.stat().st_mtime_ns == before
    assert f"base is there: {trained.parent}" in caplog.text
    assert not (tmp_path / "assets" / "seeing-base").exists(), "only where it is named"
    described = (tmp_path / "work" / "describe" / "model.safetensors").stat().st_mtime_ns
    run(["seeing-base"])
    seeing = MLLM.from_pretrained(tmp_path / "assets" / "seeing-base", device="cpu")
    assert seeing.fingerprint != MLLM.from_pretrained(trained.parent, device="cpu").fingerprint
    assert (tmp_path / "work" / "describe" / "model.safetensors").stat().st_mtime_ns == described


@pytest.mark.slow
def test_a_few_steps_lower_the_loss(
    tokenizer: PreTrainedTokenizerFast,
    data: TrainingSet,
    model: LlavaForConditionalGeneration,
    tmp_path: Path,
) -> None:
    student = copy.deepcopy(model)

    def loss_of(network: LlavaForConditionalGeneration) -> float:
        rng = np.random.default_rng(5)
        batch, labels, is_answer = encode(
            [relevance_group(data, rng) for _ in range(4)], tokenizer, data
        )
        with torch.no_grad():
            logits = labelled_logits(network, batch, labels)
        answers = is_answer[labels != IGNORE]
        return nn.functional.cross_entropy(logits[answers], labels[is_answer]).item()

    before = loss_of(student)
    task = Task(relevance_group, batch_size=4, share=1.0)
    train_mllm(
        student, tokenizer, data, [task], steps=16, seed=0, name="test", validation=data,
        checkpoint=tmp_path / "test.checkpoint",
    )  # fmt: skip
    assert loss_of(student) < before / 2
    assert 0 < evaluate(student, tokenizer, data, [task])["relevance_group"] <= 1
