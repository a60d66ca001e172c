"""The models have the published sizes, and pictures and questions the requested tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import build_model, write_model
from shapes import PUBLISHED, SHAPES
from workload import fitting_questions, questions, write_documents

from ragvl import Reranker

# As the model cards on huggingface.co have it, in billions of parameters
PARAMETERS = {
    "internvl2-1b": 0.94,
    "internvl2-2b": 2.21,
    "qwen2.5-vl-3b": 3.75,
    "qwen2.5-vl-7b": 8.29,
    "llava-1.5-7b": 7.06,
    "qwen3-vl-2b": 2.13,
    "llava-1.5-13b": 13.35,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_the_published_model(name: str) -> None:
    model, _ = build_model(PUBLISHED[name], device="meta")
    assert model.num_parameters() / 1e9 == pytest.approx(PARAMETERS[name], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("tiny")])
def test_pictures_and_questions_are_as_long_as_requested(name: str, tmp_path: Path) -> None:
    write_model(tmp_path, SHAPES[name], image_tokens=36)
    reranker = Reranker.from_pretrained(tmp_path)
    documents = write_documents(tmp_path, 3)
    assert {reranker.mllm.prompting.encode_image(d.load()).num_tokens for d in documents} == {36}
    chosen = fitting_questions(reranker, documents[0], 50, 60)
    assert len(set(chosen)) == 50
    lengths = {len(reranker.split_prompt(question, documents[0])[1]) for question in chosen}
    assert lengths == {60}


def test_a_number_of_image_tokens_that_makes_no_square_is_refused() -> None:
    with pytest.raises(ValueError, match="image_tokens=18"):
        build_model(SHAPES["tiny"], image_tokens=18)


def test_questions_are_the_same_each_time() -> None:
    assert questions(20, 5) == questions(20, 5)
    assert {len(question.split()) for question in questions(20, 5)} == {5}
