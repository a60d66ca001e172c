"""What every other test asks of eight architectures, in short of many more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plain import picture, plain_inputs, plain_scores
from tiny_models import MORE_ARCHITECTURES

from ragvl import Document, PrefixCache, Reranker
from ragvl.data.images import DocumentError
from ragvl.mllm import MLLM
from ragvl.prefix_cache import reuse_problem
from ragvl.reranker import PromptTemplate

QUERIES = ["What color is the roof?", "Is it by the sea, or in the forest behind the old mill?"]
ANY_DOCUMENT = PromptTemplate("any", "{document}\nIs it about this: {query} Answer 'Yes' or 'No'.")
EACH = pytest.mark.parametrize("architecture", MORE_ARCHITECTURES)


def ragged_documents() -> list[Document]:
    """Pictures of several shapes, captions of several lengths; two that share a shape."""
    return [
        Document(picture(0), caption="A barn"),
        Document(picture(1, 40, 90), caption="The lighthouse of Velmora, photographed in 1987"),
        Document(picture(2, 120, 50), caption=""),
        Document(picture(3, 120, 50), caption="Ünïcödé 塔 🗼 ends oddly:\n"),
        Document(picture(4, 64, 64)),
    ]


@EACH
def test_a_prefix_may_be_reused(architecture: str, tiny_mllm: Callable[[str], MLLM]) -> None:
    assert reuse_problem(tiny_mllm(architecture)) is None


@EACH
def test_a_batch_has_what_the_models_own_processor_gives(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    for document in ragged_documents()[:3]:
        text = mllm.prompting.render("<image>\n{caption}?", caption=document.caption)
        image = document.load()
        theirs = plain_inputs(mllm, image, text)
        prompt = mllm.prompting.encode_prompt(text, [mllm.prompting.encode_image(image)])
        ours = mllm.model_inputs([prompt])
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0, check_dtype=False)
        mllm.prompting.encode_image(image)
        padding = mllm.prompting.tokenizer.backend_tokenizer.padding
        assert padding is None, "other threads would tokenise with it"


@pytest.mark.slow
@EACH
@torch.inference_mode()
def test_prompts_with_more_and_fewer_pictures_share_a_batch(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    pictures = [document.load() for document in ragged_documents()]
    groups = [pictures[:2], pictures[2:3], [], pictures[2:5]]
    if mllm.prompting.numbers_pictures:
        with pytest.raises(ValueError, match="the chat template numbers pictures"):
            mllm.prompting.encode_prompt("", [mllm.prompting.encode_image(pictures[0])] * 2)
        groups = [group[:1] for group in groups]
    prompts, expected = [], []
    for group in groups:
        text = mllm.prompting.render("<image>\n" * len(group) + "Is it a mill?")
        inputs = plain_inputs(mllm, group, text)
        images = [mllm.prompting.encode_image(image) for image in group]
        prompts.append(mllm.prompting.encode_prompt(text, images))
        assert prompts[-1].input_ids == inputs["input_ids"][0].tolist()
        expected.append(mllm.model(**inputs).logits[0, -1])
    hidden = mllm.hidden_states(prompts)
    logits = [
        mllm.head.logits(states[len(prompt) - 1], range(len(logits)))
        for prompt, states, logits in zip(prompts, hidden, expected, strict=True)
    ]
    torch.testing.assert_close(torch.stack(logits), torch.stack(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@EACH
def test_scores_are_those_of_plain_scoring_and_the_same_bits_in_any_company(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    reranker = Reranker(mllm)
    pairs = [(query, document) for query in QUERIES for document in ragged_documents()]
    expected = plain_scores(reranker, pairs)
    log_odds = expected.logit()
    assert log_odds.max() - log_odds.min() > 0.1, "the inputs must give different scores"
    cold = reranker.score(pairs)
    torch.testing.assert_close(cold, expected, atol=1e-5, rtol=0)
    misses = reranker.prefix_cache.statistics()["device"].misses
    assert torch.equal(reranker.score(pairs), cold), "warm"
    assert reranker.prefix_cache.statistics()["device"].misses == misses
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    shuffled = reranker.score([pairs[i] for i in order.tolist()], batch_size=3)
    assert torch.equal(shuffled, cold[order])
    uncached = Reranker(mllm, prefix_cache=None)
    alone = torch.cat([uncached.score([pair]) for pair in pairs[:5]])
    assert torch.equal(alone, cold[:5])


@pytest.mark.slow
@EACH
def test_documents_of_several_pictures_and_of_none(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    reranker = Reranker(tiny_mllm(architecture), template=ANY_DOCUMENT)
    documents = [
        Document(parts=[picture(0), "From the south:", picture(1, 40, 90)]),
        Document(text="The tower of Velmora has a red roof."),
        Document(picture(0)),
    ]
    if reranker.mllm.prompting.numbers_pictures:
        pairs = [(QUERIES[0], document) for document in documents]
        with pytest.raises(DocumentError, match="of 3 parts: the chat template numbers pictures"):
            reranker.score(pairs)
        assert reranker.score(pairs, on_error="skip").isnan().tolist() == [True, False, False]
        documents = documents[1:]
    pairs = [(query, document) for query in QUERIES for document in documents]
    cold = reranker.score(pairs)
    torch.testing.assert_close(cold, plain_scores(reranker, pairs), atol=1e-5, rtol=0)
    misses = reranker.prefix_cache.statistics()["device"].misses
    assert torch.equal(reranker.score(pairs[::-1]), cold.flip(0))
    assert reranker.prefix_cache.statistics()["device"].misses == misses == len(documents)


@pytest.mark.slow
@EACH
def test_visual_tokens_on_disk_give_the_same_bits(
    architecture: str,
    tiny_mllm: Callable[[str], MLLM],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pairs = [(QUERIES[0], document) for document in ragged_documents()[:3]]
    scores = []
    for _ in range(2):  # the second cache finds what the first has written
        cache = PrefixCache("64MiB", folder=tmp_path, keep="features")
        scores.append(Reranker(tiny_mllm(architecture), prefix_cache=cache).score(pairs))
    assert torch.equal(*scores)
    assert cache.statistics()["disk"].hits == len(pairs)
    assert "computed again" not in caplog.text


@pytest.mark.slow
@EACH
def test_the_picture_and_the_caption_matter(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    documents = [
        Document(picture(seed), caption=caption)
        for seed in (10, 11)
        for caption in ("red", "tower")
    ]
    scores = Reranker(tiny_mllm(architecture)).score([(QUERIES[0], d) for d in documents])
    log_odds = scores.logit().view(2, 2)
    assert (log_odds[0] - log_odds[1]).abs().max() > 1e-2, "another picture, another score"
    assert (log_odds[:, 0] - log_odds[:, 1]).abs().max() > 1e-2, "another caption, another score"
