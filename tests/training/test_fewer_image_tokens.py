"""Training hides from a prompt's end what a prefix with fewer image tokens would not have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import picture, with_wide_windows
from transformers import TrainingArguments

from ragvl import Document, PrefixCache, Reranker
from ragvl.data.webqa import WebQA
from ragvl.mllm import IMAGE_TOKENS, MLLM
from ragvl.reranker import PromptTemplate
from ragvl.training.command import plan
from ragvl.training.examples import IGNORE, AnswerExamples, Collator, Example, RankingExamples
from ragvl.training.fewer_image_tokens import PICTURE_SIZES, PREFIX_LENGTHS, fewer_image_tokens
from ragvl.training.ranking import RankingSample
from ragvl.training.trainer import train

SHARE = 0.25
ANY = PromptTemplate("any", "{document}\nIs it about this: {query} Answer 'Yes' or 'No'.")
PAIRS = [
    ("What color is the roof?", Document(picture(0), caption="A barn")),
    ("Is it by the sea?", Document(picture(1, 40, 90), caption="The lighthouse of Velmora")),
    ("What color is the roof?", Document(text="The tower of Velmora has a red roof.")),
]
SEVERAL = Document(parts=[picture(0), "From the south:", picture(1, 40, 90), "Velmora"])


def example(reranker: Reranker, query: str, document: Document) -> Example:
    prefix = partial(reranker._prompts.prefix, document)
    prompt = reranker.prompt(query, document)
    return Example(prompt, [document], "Yes", document.pictures, prefix)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl", "qwen3_vl", "gemma3", "qwen3_5"])
def test_a_whole_forward_gives_the_scores_of_cached_prefixes(
    architecture: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """In float64, texts beside pictures in one batch, several pictures where prompts have them."""
    folder = with_wide_windows(tiny_model(architecture), tmp_path / "model")
    loaded = MLLM.from_pretrained(folder, device="cpu", dtype="float32")
    mllm = MLLM(loaded.model.double(), loaded.prompting.processor)
    cache = PrefixCache("64MiB", image_tokens=SHARE)
    reranker = Reranker(mllm, template=ANY, prefix_cache=cache)
    pairs = PAIRS if mllm.prompting.numbers_pictures else [*PAIRS, ("Is it red?", SEVERAL)]
    expected = torch.tensor([one.raw for one in reranker.score_each(pairs)], dtype=torch.float64)
    batch = Collator(mllm, marks_prefixes=True)([example(reranker, *pair) for pair in pairs])
    labels, lengths, sizes = (batch.pop(name) for name in ("labels", PREFIX_LENGTHS, PICTURE_SIZES))
    mllm.model.train()
    with fewer_image_tokens(mllm, batch, lengths, sizes, SHARE):
        hidden = mllm.model.base_model(**batch, use_cache=False).last_hidden_state
    last = (labels != IGNORE).int().argmax(1) - 1
    logits = mllm.model.get_output_embeddings()(hidden[torch.arange(len(last)), last])
    (yes,), (no,) = reranker.yes_token_ids, reranker.no_token_ids
    found = logits[:, yes] - logits[:, no]
    found.sum().backward()
    assert mllm.model.get_input_embeddings().weight.grad.abs().max() > 0
    torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)
    whole = Reranker(mllm, template=ANY, prefix_cache=PrefixCache("64MiB")).score_each(pairs)
    differs = [abs(one.raw - raw) > 1e-3 for one, raw in zip(whole, expected.tolist(), strict=True)]
    assert differs == [not document.text for _, document in pairs]


def settings(folder: Path, **changed: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **changed,
    )


def samples(questions: WebQA) -> list[RankingSample]:
    return [
        RankingSample(question.text, question.gold[0], answer)
        for question, answer in zip(questions.questions, ("Yes", "No", "Yes", "No"), strict=False)
    ]


@pytest.mark.slow
def test_what_is_trained_says_so(
    tiny_model: Callable[[str], Path], questions: WebQA, tmp_path: Path
) -> None:
    losses = {}
    for share in (None, 0.25):
        mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
        examples = RankingExamples(samples(questions), questions, mllm.prompting)
        out = tmp_path / str(share)
        losses[share] = train(mllm, settings(out), examples, image_tokens=share)["train_loss"]
        saved = MLLM.from_pretrained(out, device="cpu")
        assert saved.image_tokens == (share or 1)
        assert (f'"{IMAGE_TOKENS}"' in (out / "config.json").read_text()) == (share is not None)
    assert losses[None] != losses[0.25], "what is hidden must matter"
    # whoever trains it on goes on with as many, unless another number is given
    mllm = MLLM.from_pretrained(tmp_path / "0.25", device="cpu", dtype="float32")
    train(mllm, settings(tmp_path / "on"), examples)
    assert MLLM.from_pretrained(tmp_path / "on", device="cpu").image_tokens == 0.25
    train(mllm, settings(tmp_path / "all"), examples, image_tokens=1)
    assert MLLM.from_pretrained(tmp_path / "all", device="cpu").image_tokens == 1


def test_checkpointed_activations_are_computed_again_with_as_many(
    tiny_model: Callable[[str], Path], questions: WebQA, tmp_path: Path
) -> None:
    # its name in transformers 5.23, and before
    newer = hasattr(TrainingArguments, "activation_checkpointing")
    name = "activation_checkpointing" if newer else "gradient_checkpointing"
    weights = []
    for checkpointing in (False, True):
        mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
        examples = RankingExamples(samples(questions), questions, mllm.prompting)
        given = settings(tmp_path / str(checkpointing), **{name: checkpointing})
        train(mllm, given, examples, image_tokens=0.25)
        weights.append(mllm.model.get_input_embeddings().weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)


def test_what_cannot_hide_tokens_is_refused(
    tiny_model: Callable[[str], Path], questions: WebQA, tmp_path: Path
) -> None:
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
    examples = RankingExamples(samples(questions), questions, mllm.prompting)
    with pytest.raises(ValueError, match=r"image_tokens=0: expected a share"):
        train(mllm, settings(tmp_path), examples, image_tokens=0)
    with pytest.raises(ValueError, match="image_tokens is about rerankers"):
        answers = AnswerExamples(questions, mllm.prompting)
        train(mllm, settings(tmp_path), answers, image_tokens=0.5)
    with pytest.raises(ValueError, match=r"image_tokens=2\.0: expected a share"):
        plan(
            "reranker",
            [
                *["--model", "m", "--data", "d", "--output_dir", "o", "--ranking", "r"],
                "--image_tokens=2",
            ],
        )
    assert not any(tmp_path.iterdir())
