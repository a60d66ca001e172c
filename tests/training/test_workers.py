"""What goes to worker processes is pickled, holds no weights, and makes the same batches."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from data_files import karpathy_image, mmqa_question, write_karpathy, write_mmqa, write_picture
from tiny_models import ARCHITECTURES
from torch.utils.data import DataLoader, Subset
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.data.captions import Captions
from ragvl.data.multimodalqa import MultimodalQA
from ragvl.data.webqa import WebQA
from ragvl.mllm import MLLM, PromptTooLongError
from ragvl.training.examples import AnswerExamples, Collator, Example, RankingExamples
from ragvl.training.ranking import RankingSample


def ranking(questions: WebQA, mllm: MLLM) -> RankingExamples:
    samples = [RankingSample(q.text, q.gold[0], "Yes") for q in questions.questions]
    return RankingExamples(samples, questions, mllm.prompting)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "paligemma"])
def test_batches_are_the_same_after_pickling(
    architecture: str, questions: WebQA, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    for examples in (
        ranking(questions, mllm),
        AnswerExamples(questions, mllm.prompting, num_pictures=2),
    ):
        collate = Collator(mllm)
        expected = collate([examples[0], examples[1]])
        written = pickle.dumps((Subset(examples, range(2)), collate))
        some, collate = pickle.loads(written)
        batch = collate([some[0], some[1]])
        assert batch.keys() == expected.keys()
        assert all(batch[name].equal(tensor) for name, tensor in expected.items())
        assert len(written) < 1 << 20, "no weights"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_by_other_start_methods(
    method: str, questions: WebQA, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm("qwen2_vl")
    examples = AnswerExamples(questions, mllm.prompting, num_pictures=2)
    loader = DataLoader(
        examples, batch_size=2, num_workers=1, collate_fn=Collator(mllm),
        multiprocessing_context=method,
    )  # fmt: skip
    batches = list(loader)
    expected = list(DataLoader(examples, batch_size=2, collate_fn=Collator(mllm)))
    assert len(batches) == len(expected) > 1
    for batch, other in zip(batches, expected, strict=True):
        assert all(torch.equal(batch[name], tensor) for name, tensor in other.items())


def test_an_error_in_a_worker_keeps_its_kind(tiny_mllm: Callable[[str], MLLM]) -> None:
    mllm = tiny_mllm("llava")
    long = Example(mllm.prompting.render("{q}", q="long " * mllm.prompting.max_length), [], "yes")
    loader = DataLoader([long], collate_fn=Collator(mllm), num_workers=1)
    with pytest.raises(PromptTooLongError, match="the prompt about no document"):
        next(iter(loader))
    error = pickle.loads(pickle.dumps(PromptTooLongError.of("the prompt", 3, 9, 5)))
    assert str(error).startswith("the prompt has 9 tokens")
    assert (error.index, error.length, error.max_length) == (3, 9, 5)


@pytest.mark.slow
def test_every_data_set_is_pickled(questions: WebQA, tmp_path: Path) -> None:
    write_picture(tmp_path / "1.jpg")
    (tmp_path / "mmqa").mkdir()
    captions = write_karpathy(tmp_path / "dataset.json", [karpathy_image("1.jpg", "A dog.")])
    for source in (
        questions,
        MultimodalQA(write_mmqa(tmp_path / "mmqa", [mmqa_question()])),
        Captions(captions),
    ):
        again = pickle.loads(pickle.dumps(source))
        assert again.questions == source.questions
        for id in source.document_ids():
            assert again.document(id).digest() == source.document(id).digest()
            assert again.document_name(id) == source.document_name(id)


@pytest.fixture
def forkserver() -> Iterator[None]:
    """Processes are no forks of this one, as where there is no fork."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(usual, force=True)


@pytest.mark.slow
@pytest.mark.usefixtures("forkserver")
def test_the_command_trains_with_workers(
    tiny_model: Callable[[str], Path], small_world: Path, tmp_path: Path
) -> None:
    flags = {
        "model": tiny_model("qwen2_vl"), "data": small_world, "output_dir": tmp_path / "out",
        "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": "true", "report_to": "none",
        "dataloader_num_workers": 1, "logging_steps": 1,
    }  # fmt: skip
    command = ["train", "generator", *(f"--{name}={value}" for name, value in flags.items())]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2
