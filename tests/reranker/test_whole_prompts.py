"""Where no prefix can be reused, what pictures' visual tokens save changes no score."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from plain import picture, plain_scores
from tiny_models import ARCHITECTURES, MORE_ARCHITECTURES

from ragvl import Document, PrefixCache, Query, Reranker
from ragvl.data.images import ImageError
from ragvl.data.picture import Picture
from ragvl.mllm import MLLM, Prompting, PromptTooLongError
from ragvl.mllm.decoder import Decoder
from ragvl.prefix_cache.lru import LruTier
from ragvl.prefix_cache.record import PrefixRecord
from ragvl.reranker import PromptTemplate
from ragvl.reranker.lengths import Lengths

QUERY_FIRST = PromptTemplate("query-first", "{query} Does this show it? {document} Yes or No.")
QUERIES = ["What color is the roof?", "Is it by the sea, or in the forest behind the old mill?"]
Pairs = list[tuple[str | Query, Document]]


def documents() -> list[Document]:
    """Pictures of several shapes; two share one."""
    sizes = [(64, 48), (40, 90), (120, 50), (120, 50), (64, 64)]
    return [Document(picture(i, *size), id=f"doc{i}") for i, size in enumerate(sizes)]


def of_every_kind() -> list[Document]:
    """Of one picture, with and without text; of two, one of them known from elsewhere; of none."""
    return [
        *documents()[:3],
        Document(picture(6), caption="A barn"),
        Document(parts=[picture(7, 40, 90), "Seen from the south.", picture(1, 40, 90)]),
        Document(text="Velmora has a red tower."),
    ]


def pairs_of(documents: list[Document]) -> Pairs:
    return [(query, document) for query in QUERIES for document in documents]


@contextmanager
def without_pictures() -> Iterator[None]:
    """Whoever reads, hashes or prepares a picture, or runs a vision tower, fails meanwhile."""

    def refuse(*_: object) -> None:
        pytest.fail("a known picture was worked on")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Picture, "load", refuse)
        patch.setattr(Picture, "decoded", refuse)
        patch.setattr(Prompting, "encode_image", refuse)
        patch.setattr(Decoder, "features", refuse)
        yield


@pytest.fixture
def mllm(tiny_mllm: Callable[[str], MLLM]) -> MLLM:
    return tiny_mllm("llava_onevision")


def reranker_of(mllm: MLLM, cache: PrefixCache | str | None = "64MiB") -> Reranker:
    return Reranker(mllm, template=QUERY_FIRST, prefix_cache=cache)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "paligemma"])
def test_known_pictures_cost_nothing_and_change_no_bit(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    reranker = reranker_of(mllm)
    documents = of_every_kind()
    if architecture == "paligemma":  # whose own processor makes no prompts without a picture
        documents.pop()
    pairs = pairs_of(documents)
    pairs += [(Query("And this?", image=picture(8)), document) for document in documents]
    expected = plain_scores(reranker, pairs)
    assert expected.logit().std() > 1e-2, "the inputs must give different scores"
    cold = reranker.score(pairs)
    torch.testing.assert_close(cold, expected, atol=1e-5, rtol=0)
    alone = torch.cat([reranker_of(mllm, None).score([pair]) for pair in pairs[::4]])
    assert torch.equal(alone, cold[::4])
    with without_pictures():
        assert torch.equal(reranker.score(pairs[::-1], batch_size=3), cold.flip(0))
    batched = Reranker(mllm, template=QUERY_FIRST, prefix_cache="64MiB", deterministic=False)
    together = batched.score(pairs, batch_size=3)
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)
    with without_pictures():
        assert torch.equal(batched.score(pairs, batch_size=3), together)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MORE_ARCHITECTURES)
def test_known_pictures_cost_more_architectures_nothing(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    reranker = reranker_of(tiny_mllm(architecture))
    pairs = [(QUERIES[0], document) for document in documents()[1:4]]
    cold = reranker.score(pairs)
    torch.testing.assert_close(cold, plain_scores(reranker, pairs), atol=1e-5, rtol=0)
    with without_pictures():
        assert torch.equal(reranker.score(pairs), cold)


def test_a_picture_query_costs_no_vision_again_where_prefixes_are_reused(
    tiny_mllm: Callable[[str], MLLM],
) -> None:
    mllm = tiny_mllm("qwen3_vl")
    reranker = Reranker(mllm)
    query = Query("Is it this one?", image=picture(8))
    pairs: Pairs = [(query, document) for document in of_every_kind()]
    cold = reranker.score(pairs)
    with without_pictures():
        warm = reranker.score(pairs)
        assert torch.equal(reranker.score(pairs[::-1]).flip(0), warm)
    assert torch.equal(warm, cold)
    statistics = reranker.prefix_cache.statistics()
    budget = PrefixCache(8 << 20)
    pages = budget.attach(mllm)
    assert statistics["pictures"].bytes > 0
    assert budget.attach_pictures(mllm).untouched_bytes == pages.pool.size * pages.page_bytes // 8


@pytest.mark.slow
def test_one_line_says_what_is_cached(
    tiny_mllm: Callable[[str], MLLM], mllm: MLLM, caplog: pytest.LogCaptureFixture
) -> None:
    for reranker in (Reranker(tiny_mllm("paligemma")), reranker_of(mllm)):
        for _ in range(2):
            reranker.score(pairs_of(documents()[:2]))
    assert [record.message for record in caplog.records] == [
        "prompts are scored whole, only visual tokens are cached: paligemma: what it computes for "
        "a prompt's beginning depends on what comes after",
        "prompts are scored whole, only visual tokens are cached: the template puts the query "
        "before the document",
    ]


def test_a_model_that_looks_at_pictures_in_its_own_way_caches_nothing(
    tiny_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    reranker = Reranker.from_pretrained(
        tiny_model("llava"), template=QUERY_FIRST, device="cpu", dtype="float32"
    )
    # As if its forward called another method for them
    del reranker.mllm.model.base_model.get_image_features
    pairs = pairs_of(documents())
    with caplog.at_level(logging.WARNING, "ragvl"):
        scores = reranker.score(pairs)
    assert "nothing is cached (it looks at pictures in a way of its own)" in caplog.text
    torch.testing.assert_close(scores, plain_scores(reranker, pairs), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="nothing to warm: it looks at pictures in a way of its"):
        reranker.warm(documents())


# --- tiers --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["idefics3", "qwen3_vl", "gemma3"])
def test_visual_tokens_come_back_from_a_folder(
    architecture: str, tiny_mllm: Callable[[str], MLLM], tmp_path: Path
) -> None:
    mllm = tiny_mllm(architecture)
    # as `ragvl warm` does
    warming = reranker_of(mllm, PrefixCache("scratch", folder=tmp_path))
    report = warming.warm(documents()[:3], progress=False)
    assert (report.built, report.known, report.skipped) == (3, 0, 0)
    report = warming.warm(documents(), progress=False)
    assert (report.built, report.known) == (2, 3)
    reranker = reranker_of(mllm, PrefixCache("64MiB", folder=tmp_path))
    pairs = pairs_of(documents())
    expected = reranker_of(mllm, None).score(pairs)
    assert torch.equal(reranker.score(pairs), expected)
    statistics = reranker.prefix_cache.statistics()
    assert statistics["disk"].hits == len(documents()), "one for each picture"
    with without_pictures():
        assert torch.equal(reranker.score(pairs), expected)
    assert reranker.prefix_cache.statistics()["disk"].hits == len(documents())


def test_warm_brings_them_to_the_device(mllm: MLLM) -> None:
    reranker = reranker_of(mllm)
    known = documents()
    assert reranker.warm(known, progress=False).built == len(known)
    assert reranker.warm(known, progress=False).known == len(known)
    with without_pictures():
        scores = reranker.score(pairs_of(known))
    assert torch.equal(scores, reranker_of(mllm, None).score(pairs_of(known)))
    reranker.prefix_cache.clear()
    assert reranker.prefix_cache.statistics()["pictures"].bytes == 0


def test_the_budget_is_kept(mllm: MLLM) -> None:
    pairs = pairs_of(documents())
    expected = reranker_of(mllm).score(pairs)
    for budget in (20_000, 100):  # room for two of them, and for none
        reranker = reranker_of(mllm, PrefixCache(budget))
        for _ in range(2):
            assert torch.equal(reranker.score(pairs), expected)
        held = reranker.prefix_cache.statistics()["pictures"].bytes
        assert 0 < held <= budget if budget > 100 else held == 0


def test_host_memory_holds_what_the_device_has_no_room_for(mllm: MLLM) -> None:
    reranker = reranker_of(mllm, PrefixCache(100, host_bytes="1MiB"))
    pairs = pairs_of(documents())
    cold = reranker.score(pairs)
    assert torch.equal(reranker.score(pairs), cold)  # the first record is compared with a probe
    with without_pictures():
        assert torch.equal(reranker.score(pairs), cold)


@pytest.mark.parametrize("damage", ["foreign", "tokens", "nan", "shape", "missing"])
def test_a_record_that_is_none_of_this_models_is_computed_again(
    damage: str, mllm: MLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = pairs_of(documents()[:1])
    reranker = reranker_of(mllm, PrefixCache("64MiB", folder=tmp_path))
    expected = reranker.score(pairs)
    disk = reranker.prefix_cache.below.disk
    assert disk is not None
    (path,) = tmp_path.glob("??/*.safetensors")
    good = disk.get(path.stem)
    assert good is not None
    tensors, info = dict(good.tensors), dict(good.info)
    (features,) = (name for name in tensors if name.startswith("features/"))
    match damage:
        case "foreign":
            info = {"kind": "kv"}
        case "tokens":
            info["num_image_tokens"] = "7"
        case "nan":
            tensors[features] = torch.full_like(tensors[features], torch.nan)
        case "shape":
            tensors[features] = tensors[features][:-1].clone()
        case "missing":
            del tensors["image/image_sizes"]
    disk.put(path.stem, PrefixRecord(tensors, info))
    again = reranker_of(mllm, PrefixCache("64MiB", folder=tmp_path))
    assert torch.equal(again.score(pairs), expected)
    assert f"the record {path.stem} is computed again" in caplog.text


def test_what_holds_nan_is_not_kept(
    tiny_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    reranker = Reranker.from_pretrained(
        tiny_model("llava"), template=QUERY_FIRST, device="cpu", dtype="float32"
    )
    with torch.no_grad():
        next(reranker.mllm.model.base_model.multi_modal_projector.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError):
        reranker.score(pairs_of(documents()[:1]))
    assert "are not kept: NaN or infinity" in caplog.text
    assert reranker.prefix_cache.statistics()["pictures"].bytes == 0


# --- documents that change, or cannot be used ---------------------------------------------------


def test_another_picture_under_the_same_name_is_looked_at(mllm: MLLM, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    document = Document(path)
    reranker = reranker_of(mllm)
    scores = []
    for seed in (1, 2, 1):
        picture(seed).save(path)
        scores.append(reranker.score([(QUERIES[0], document)]))
        assert torch.equal(scores[-1], reranker_of(mllm).score([(QUERIES[0], picture(seed))]))
    assert not torch.equal(scores[0], scores[1])


def test_equal_pictures_are_looked_at_once(mllm: MLLM) -> None:
    reranker = reranker_of(mllm)
    twins = [Document(picture(1)), Document(picture(1))]
    first, second = reranker.score([(QUERIES[0], document) for document in twins], batch_size=1)
    assert first == second
    one = reranker_of(mllm)
    one.score([(QUERIES[0], twins[0])])
    sizes = [r.prefix_cache.statistics()["pictures"].bytes for r in (reranker, one)]
    assert sizes[0] == sizes[1] > 0


def test_what_cannot_be_used_harms_no_other(
    tiny_mllm: Callable[[str], MLLM], tmp_path: Path
) -> None:
    mllm = tiny_mllm("llava_onevision")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG not really")
    good = documents()
    mixed = [good[0], Document(broken, id="broken"), Document(tmp_path / "missing.png"), good[1]]
    reranker = reranker_of(mllm)
    scores = reranker.score([(QUERIES[0], one) for one in mixed], on_error="skip")
    assert scores.isnan().tolist() == [False, True, True, False]
    with pytest.raises(ImageError, match="broken"):
        reranker.score([(QUERIES[0], one) for one in mixed])
    with pytest.raises(ImageError, match="broken"):
        reranker.warm(mixed, progress=False)
    report = reranker.warm(mixed, on_error="skip", progress=False)
    assert (report.built, report.known, report.skipped) == (0, 2, 2)


def test_a_picture_that_fills_the_context_is_named(mllm: MLLM) -> None:
    large = Document(picture(0, 120, 120), id="large")
    (one,) = large.pictures
    tokens = mllm.prompting.encode_image(one.load()).num_tokens
    reranker = Reranker(mllm, template=QUERY_FIRST, lengths=Lengths(prompt=tokens))
    with pytest.raises(PromptTooLongError, match="'large'"):
        reranker.warm([large], progress=False)
    with pytest.raises(PromptTooLongError, match="'large'"):
        reranker.score([(QUERIES[0], large)])
    assert reranker.prefix_cache.statistics()["pictures"].bytes == 0


def test_a_cache_of_visual_tokens_belongs_to_one_model(
    mllm: MLLM, tiny_mllm: Callable[[str], MLLM]
) -> None:
    cache = PrefixCache("64MiB")
    reranker_of(mllm, cache).score(pairs_of(documents()[:1]))
    with pytest.raises(ValueError, match="belongs to another model"):
        reranker_of(tiny_mllm("llava"), cache).score(pairs_of(documents()[:1]))


def test_a_tier_of_one_value_is_counted_by_what_it_keeps_from_being_freed(mllm: MLLM) -> None:
    inputs = mllm.prompting.encode_image(picture(0))
    seen = mllm.with_features(inputs)
    assert seen.nbytes < inputs.nbytes / 4
    tier: LruTier = LruTier(seen.nbytes)
    tier.put("a", seen)
    assert tier.stats.bytes == seen.nbytes and tier.untouched_bytes == 0
