"""A prefix with a share of its pictures' tokens gives what a plain forward gives without the rest.

The plain forward is transformers' own over the whole prompt, in float64, with an attention that
hides the dropped tokens from all that comes after the prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import picture, plain_inputs, with_wide_windows
from tiny_models import ARCHITECTURES, HYBRIDS
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForImageTextToText,
)
from transformers.masking_utils import eager_mask

from ragvl import Document, PrefixCache, Query, Reranker
from ragvl.data.query import QueryLike
from ragvl.mllm import MLLM, PromptTooLongError
from ragvl.reranker import PromptTemplate
from ragvl.reranker.templates import pictures_in_order

QUERIES = ["What color is the roof?", "Is it by the sea, or in the forest behind the old mill?"]
DOCUMENTS = [
    Document(picture(0), caption="A barn"),
    Document(picture(1, 40, 90), caption="The lighthouse of Velmora, photographed in 1987"),
    Document(picture(2, 120, 50)),
]
ANY_DOCUMENT = PromptTemplate("any", "{document}\nIs it about this: {query} Answer 'Yes' or 'No'.")
_PLAIN = "plain_for_a_test"


class Hiding:
    """A plain attention that notes keys, and can hide some tokens from those from `start` on.

    Attributes:
        keys: of each layer, (G, T, D).
        hidden: the tokens that are hidden.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self.keys: list[Tensor] = []
        self.hidden: list[int] = []

    def __call__(
        self, _: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        self.keys.append(key[0])
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        scores = options["scaling"] * query @ key.mT
        if mask is not None:
            scores = scores + mask[..., : key.shape[2]]
        scores[:, :, self.start :, self.hidden] = -torch.inf
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    def unlike(self, places: list[int], count: int) -> list[int]:
        """So many of the places, each the farthest from those before it by keys of all layers."""
        keys = torch.cat([layer[:, places].transpose(0, 1).flatten(1) for layer in self.keys], 1)
        far = (keys[:, None] - keys).square().sum(-1)
        chosen = [int(far.sum(1).argmax())]
        while len(chosen) < count:
            near = [-1.0 if i in chosen else min(far[i, chosen]) for i in range(len(places))]
            chosen.append(int(torch.tensor(near).argmax()))
        return [places[i] for i in chosen]


def in_float64(folder: Path) -> tuple[MLLM, Any]:
    """A model for ragvl, and the same one for plain forwards."""
    loaded = MLLM.from_pretrained(folder, device="cpu", dtype="float32")
    mllm = MLLM(loaded.model.double(), loaded.prompting.processor)
    plain = AutoModelForImageTextToText.from_pretrained(folder).double().eval()
    AttentionMaskInterface.register(_PLAIN, eager_mask)
    plain.config.get_text_config()._attn_implementation = _PLAIN
    return mllm, plain


@torch.inference_mode()
def plain_raw(reranker: Reranker, model: Any, query: QueryLike, document: Document) -> float:
    """A pair's raw score by plain forwards: one shows the keys, one lacks what is dropped."""
    ids, suffix = reranker.split_prompt(query, document)
    images = [p.load() for p in pictures_in_order(reranker.template, Query.of(query), document)]
    inputs = plain_inputs(reranker.mllm, images, reranker.prompt(query, document))
    assert inputs["input_ids"][0].tolist() == [*ids, *suffix]
    attention = Hiding(len(ids))
    AttentionInterface.register(_PLAIN, attention)
    model(**inputs, use_cache=False)
    places = [i for i, token in enumerate(ids) if token == reranker.mllm.prompting.image_token_id]
    share = reranker.prefix_cache.image_tokens
    assert share is not None
    for image in images:
        size = reranker.mllm.prompting.encode_image(image).num_tokens
        own, places = places[:size], places[size:]
        kept = attention.unlike(own, max(1, round(share * size)))
        attention.hidden += [place for place in own if place not in kept]
    assert not places
    logits = model(**inputs, use_cache=False).logits[0, -1]
    (yes,), (no,) = reranker.yes_token_ids, reranker.no_token_ids
    return (logits[yes] - logits[no]).item()


def raws(reranker: Reranker, pairs: Sequence[tuple[QueryLike, Document]]) -> Tensor:
    """(pairs,) float64: raw scores."""
    scored = reranker.score_each(pairs)
    return torch.tensor([one.raw for one in scored], dtype=torch.float64)  # type: ignore[union-attr]


def plain_raws(
    reranker: Reranker, model: Any, pairs: Sequence[tuple[QueryLike, Document]]
) -> Tensor:
    raw = [plain_raw(reranker, model, *pair) for pair in pairs]
    return torch.tensor(raw, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *HYBRIDS])
def test_scores_are_those_of_a_plain_forward_without_the_dropped_tokens(
    architecture: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    mllm, model = in_float64(with_wide_windows(tiny_model(architecture), tmp_path / "model"))
    pairs = list(zip([*QUERIES, QUERIES[0]], DOCUMENTS, strict=True))
    exact = Reranker(mllm, prefix_cache="64MiB")
    whole = raws(exact, pairs)
    cache = PrefixCache("64MiB", image_tokens=0.25, folder=tmp_path / "cache", keep="features")
    reranker = Reranker(mllm, prefix_cache=cache)
    scores = raws(reranker, pairs)
    expected = plain_raws(reranker, model, pairs)
    assert (expected - whole).abs().max() > 1e-3, "what is dropped must matter"
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(raws(reranker, pairs[::-1]), scores.flip(0)), "warm"
    held = [r.prefix_cache.statistics()["device"].bytes for r in (reranker, exact)]
    assert held[0] < held[1]
    again = PrefixCache("64MiB", image_tokens=0.25, folder=tmp_path / "cache")
    assert torch.equal(raws(Reranker(mllm, prefix_cache=again), pairs), scores)
    assert again.statistics()["disk"].hits == len(DOCUMENTS)


def test_a_window_that_would_see_other_tokens_is_refused(
    tiny_mllm: Callable[[str], MLLM],
) -> None:
    mllm = tiny_mllm("gemma3")
    reranker = Reranker(mllm, prefix_cache=PrefixCache("64MiB", image_tokens=0.5))
    with pytest.raises(PromptTooLongError, match="some layers see 16 at a time"):
        reranker.score([(QUERIES[0], DOCUMENTS[0])])
    with pytest.raises(PromptTooLongError, match="some layers see 16 at a time"):
        reranker.warm(DOCUMENTS[:1])


def test_pictures_of_a_document_are_chosen_from_one_by_one(
    tiny_model: Callable[[str], Path],
) -> None:
    mllm, model = in_float64(tiny_model("qwen2_vl"))
    cache = PrefixCache("64MiB", image_tokens=0.25)
    reranker = Reranker(mllm, template=ANY_DOCUMENT, prefix_cache=cache)
    documents = [
        Document(parts=[picture(0), "From the south:", picture(1, 40, 90)]),
        Document(parts=[picture(2), picture(3), "Velmora"]),
        Document(text="The tower of Velmora has a red roof."),
    ]
    pairs = [(query, document) for query in QUERIES for document in documents]
    expected = plain_raws(reranker, model, pairs)
    torch.testing.assert_close(raws(reranker, pairs), expected, atol=1e-5, rtol=1e-5)
    whole = raws(Reranker(mllm, template=ANY_DOCUMENT, prefix_cache="64MiB"), pairs)
    same = raws(reranker, pairs) == whole
    assert same.tolist() == [False, False, True] * 2, "nothing is dropped of texts"


def test_it_goes_together_with_compression(tiny_mllm: Callable[[str], MLLM]) -> None:
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    rerankers = {
        compression: Reranker(
            tiny_mllm("llava"),
            prefix_cache=PrefixCache("64MiB", image_tokens=0.5, compression=compression),
        )
        for compression in (None, "int8", "int4")
    }
    scores = {name: reranker.score(pairs) for name, reranker in rerankers.items()}
    for compression, bound in (("int8", 0.02), ("int4", 0.2)):
        assert 0 < (scores[compression] - scores[None]).abs().max() < bound
    names = {reranker.fingerprint for reranker in rerankers.values()}
    assert len(names | {Reranker(tiny_mllm("llava")).fingerprint}) == 4


def test_a_folder_keeps_shares_apart(tiny_mllm: Callable[[str], MLLM], tmp_path: Path) -> None:
    pairs = [(QUERIES[0], document) for document in DOCUMENTS]
    for share in (1.0, 0.5, 0.25):
        cache = PrefixCache("64MiB", folder=tmp_path, keep="kv", image_tokens=share)
        cold = Reranker(tiny_mllm("llava"), prefix_cache=cache).score(pairs)
        assert cache.statistics()["disk"].hits == 0
        cache = PrefixCache("64MiB", folder=tmp_path, keep="kv", image_tokens=share)
        assert torch.equal(Reranker(tiny_mllm("llava"), prefix_cache=cache).score(pairs), cold)
        assert cache.statistics()["disk"].hits == len(pairs)


def test_all_tokens_are_the_exact_score(tiny_mllm: Callable[[str], MLLM]) -> None:
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    cache = PrefixCache("64MiB", image_tokens=1)
    given = Reranker(tiny_mllm("llava"), prefix_cache=cache).score(pairs)
    assert torch.equal(given, Reranker(tiny_mllm("llava")).score(pairs))


@pytest.mark.parametrize("share", [0, -0.5, 1.5, 64, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"image_tokens={share}: expected a share"):
        PrefixCache(image_tokens=share)


def test_it_is_refused_where_no_prefix_is_reused(tiny_mllm: Callable[[str], MLLM]) -> None:
    template = PromptTemplate("first", "{query}\n<image>\nYes or No?")
    cache = PrefixCache("64MiB", image_tokens=0.5)
    reranker = Reranker(tiny_mllm("llava"), template=template, prefix_cache=cache)
    with pytest.raises(ValueError, match=r"image_tokens=0.5 is about prefixes, and this.*query"):
        reranker.score([(QUERIES[0], DOCUMENTS[2])])


def test_a_model_says_with_how_many_tokens_it_was_trained(
    tiny_model: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
    loaded.model.config.ragvl_image_tokens = 0.5
    loaded.model.save_pretrained(tmp_path / "trained")
    loaded.prompting.processor.save_pretrained(tmp_path / "trained")
    pairs = [(QUERIES[0], document) for document in DOCUMENTS]
    mllm = MLLM.from_pretrained(tmp_path / "trained", device="cpu", dtype="float32")
    by_itself = Reranker(mllm, prefix_cache=None).score(pairs)
    assert "was trained with" not in caplog.text
    named = Reranker(mllm, prefix_cache=PrefixCache("64MiB", image_tokens=0.5)).score(pairs)
    assert torch.equal(by_itself, named)
    whole = Reranker(mllm, prefix_cache=PrefixCache("64MiB", image_tokens=1)).score(pairs)
    assert not torch.equal(by_itself, whole)
    assert (
        "prefixes keep 1 of pictures' tokens, and the reranker was trained with 0.5" in caplog.text
    )
