"""Pairs of several callers: each has its own score or error, and the others are unharmed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plain import picture

from ragvl import Document, PrefixCache, Query, Reranker
from ragvl.data.images import DocumentError, ImageError
from ragvl.mllm import MLLM, PromptTooLongError
from ragvl.reranker import ScoredPair

QUERY = "What color is the roof?"
ARCHITECTURES = ["llava", "qwen2_vl", "paligemma"]  # the last reuses no prefix


@pytest.fixture(params=ARCHITECTURES)
def reranker(request: pytest.FixtureRequest, tiny_mllm: Callable[[str], MLLM]) -> Reranker:
    return Reranker(tiny_mllm(request.param), prefix_cache=PrefixCache("64MiB"))


def scored(results: list[ScoredPair | Exception]) -> list[ScoredPair]:
    assert all(isinstance(one, ScoredPair) for one in results), results
    return [one for one in results if isinstance(one, ScoredPair)]


def test_each_pair_has_its_score_or_its_own_error(reranker: Reranker, tmp_path: Path) -> None:
    good = [Document(picture(i), caption=f"A barn, {i}") for i in range(2)]
    broken = Document(tmp_path / "nowhere.png", id="nowhere")
    long = Document(picture(3), caption="word " * 50_000, id="long")
    pairs = [
        (QUERY, good[0]),
        (QUERY, broken),
        ("Why?", good[1]),
        (QUERY, long),
        ("Why?", broken),
        (Query("Why?", tmp_path / "nowhere.jpg"), good[0]),
    ]
    results = reranker.score_each(pairs)
    expected = reranker.score([pairs[0], pairs[2]], raw=True)
    assert [one.raw for one in scored([results[0], results[2]])] == expected.tolist()
    for place in (1, 4):
        assert isinstance(results[place], ImageError) and "'nowhere'" in str(results[place])
    assert isinstance(results[3], PromptTooLongError) and "'long'" in str(results[3])
    assert isinstance(results[5], DocumentError) and "nowhere.jpg" in str(results[5])


def test_what_a_template_has_no_place_for_is_that_pairs_error(
    tiny_mllm: Callable[[str], MLLM],
) -> None:
    reranker = Reranker(tiny_mllm("llava"), template="caption")
    document = Document(picture(0), caption="A barn")
    instructed = Query(QUERY, instruction="Judge the roof.")
    results = reranker.score_each([(instructed, document), (QUERY, document)])
    assert isinstance(results[0], ValueError) and "instruction" in str(results[0])
    assert scored(results[1:])[0].score == reranker.score([(QUERY, document)]).item()
    texts = reranker.score_each([(QUERY, Document(text="A barn.")), (QUERY, document)])
    assert isinstance(texts[0], DocumentError)
    assert scored(texts[1:])[0].score == reranker.score([(QUERY, document)]).item()


def test_nan_is_one_pairs_error(tiny_model: Callable[[str], Path]) -> None:
    reranker = Reranker.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
    captions = ["zzz", "A barn"]
    documents = [Document(picture(i), caption=caption) for i, caption in enumerate(captions)]
    expected = reranker.score([(QUERY, documents[1])], raw=True).item()

    def ids(text: str) -> set[int]:
        return set(reranker.mllm.prompting.tokenizer(text, add_special_tokens=False).input_ids)

    own = ids("zzz") - ids(f"{QUERY} A barn")
    assert own
    with torch.no_grad():
        reranker.mllm.model.get_input_embeddings().weight[sorted(own)] = torch.nan
    nan, fine = reranker.score_each([(QUERY, document) for document in documents])
    assert isinstance(nan, FloatingPointError)
    assert isinstance(fine, ScoredPair) and fine.raw == expected


def test_tokens_are_counted_and_those_that_were_cached(reranker: Reranker) -> None:
    documents = [Document(picture(i), caption="A barn" * (i + 1)) for i in range(2)]
    pairs = [(query, document) for document in documents for query in (QUERY, "Why?")]
    split = [tuple(map(len, reranker.split_prompt(*pair))) for pair in pairs]
    cold = scored(reranker.score_each(pairs))
    assert [one.num_tokens for one in cold] == [prefix + own for prefix, own in split]
    assert [one.num_cached for one in cold] == [0] * 4
    warm = scored(reranker.score_each(pairs))
    reused = 0 if reranker.mllm.architecture == "paligemma" else 1
    assert [one.num_cached for one in warm] == [reused * prefix for prefix, _ in split]
    assert [one.raw for one in warm] == [one.raw for one in cold]


def test_documents_are_warm_once_they_are_warmed(reranker: Reranker, tmp_path: Path) -> None:
    documents = [Document(picture(0)), Document(tmp_path / "nowhere.png"), Document(picture(1))]
    assert not reranker.is_warm(documents[0])
    outcomes = reranker.warm_each([*documents, documents[0]])
    assert isinstance(outcomes[1], ImageError)
    assert [outcomes[0], outcomes[2]] == ["built", "built"]
    assert reranker.warm_each(documents[::2]) == ["known", "known"]
    assert reranker.is_warm(documents[2]) and not reranker.is_warm(Document(picture(2)))
    with pytest.raises(ImageError):
        reranker.is_warm(documents[1])
    pairs = [(QUERY, document) for document in [*documents, Document(picture(2))]]
    assert reranker.are_warm(pairs) == [True, False, True, False]


def test_warming_is_by_instruction_where_the_prefix_holds_it(
    tiny_mllm: Callable[[str], MLLM],
) -> None:
    reranker = Reranker(
        tiny_mllm("qwen2_vl"), template="instruction-first", prefix_cache=PrefixCache("64MiB")
    )
    document = Document(picture(0), caption="A barn")
    reranker.warm([document], progress=False)
    assert reranker.is_warm(document)
    with pytest.raises(TypeError):
        reranker.warm_each("page.png")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        reranker.score_each([(QUERY, 5)])
