"""Rerankers and generators in other processes: by the folder, with the same bits, or refused."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from pickled import answered, pairs, scored
from tiny_encoders import save_checkpoint
from tiny_models import ARCHITECTURES

from ragvl import Generator, RagVL, Reranker, Retriever
from ragvl.mllm import MLLM
from ragvl.prefix_cache import PrefixCache
from ragvl.reranker.templates import INSTRUCTION_FIRST
from ragvl.retriever import DualEncoder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_another_process_gives_the_same_bits(
    method: str, tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another working folder, with settings of its own and a shared cache folder."""
    monkeypatch.chdir(tiny_model("llava").parent)
    reranker = Reranker.from_pretrained(
        tiny_model("llava").name, device="cpu", template=INSTRUCTION_FIRST, threshold=0.25,
        caption_tokens=9, prefix_cache=PrefixCache("64MiB", folder=tmp_path / "cache"),
    )  # fmt: skip
    generator = Generator.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
    expected = scored(reranker), answered(generator)
    monkeypatch.chdir(tmp_path)
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        assert pool.submit(scored, reranker).result(timeout=300) == expected[0]
        assert pool.submit(answered, generator).result(timeout=300) == expected[1]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "paligemma"])
def test_every_architecture_is_pickled_by_its_folder(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    reranker = Reranker.from_pretrained(tiny_model(architecture), device="cpu", threshold=0.75)
    reranker.threshold = 0.25
    expected = scored(reranker)
    written = pickle.dumps(reranker)
    assert len(written) < 1 << 16, "a path, and no weights"
    again = pickle.loads(written)
    assert scored(again) == expected
    assert again.threshold == 0.25


@pytest.mark.slow
def test_a_pipeline_is_pickled(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    encoder = DualEncoder.from_pretrained(save_checkpoint(tmp_path, "clip"), device="cpu")
    documents = [document for _, document in pairs()]
    rag = RagVL(
        Retriever(encoder, documents),
        Reranker.from_pretrained(tiny_model("llava"), device="cpu"),
        Generator.from_pretrained(tiny_model("llava"), device="cpu"),
        threshold=0.0,
    )
    answer = rag.answer("What color is it?")
    again = pickle.loads(pickle.dumps(rag)).answer("What color is it?")
    assert again.text == answer.text
    assert [r.score for r in again.ranked] == [r.score for r in answer.ranked]


def test_a_model_from_memory_says_how_to_share_it(tiny_model: Callable[[str], Path]) -> None:
    loaded = MLLM.from_pretrained(tiny_model("llava"), device="cpu")
    mllm = MLLM(loaded.model, loaded.prompting.processor)
    for shared in (mllm, Reranker(mllm), Generator(mllm)):
        with pytest.raises(TypeError, match=r"save_pretrained .* from_pretrained"):
            pickle.dumps(shared)


def test_another_model_in_the_folder_is_refused(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Weights that were changed in memory are not those that are read again."""
    folder = shutil.copytree(tiny_model("llava"), tmp_path / "model")
    mllm = MLLM.from_pretrained(folder, device="cpu")
    with torch.no_grad():
        mllm.model.get_output_embeddings().weight.mul_(2)
    written = pickle.dumps(mllm)
    with pytest.raises(ValueError, match="does not hold the model"):
        pickle.loads(written)
