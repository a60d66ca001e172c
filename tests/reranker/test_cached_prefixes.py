"""Cached prefixes change the time that a score takes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import WeakSet

import numpy as np
import pytest
import torch
from plain import picture, plain_scores
from tiny_models import ARCHITECTURES, HYBRIDS

from ragvl import Document, PrefixCache, Reranker
from ragvl.data.images import ImageError
from ragvl.mllm import MLLM, Prompt, Prompting, PromptTooLongError, WriteKv
from ragvl.prefix_cache import PrefixTooLargeError
from ragvl.prefix_cache.building import PrefixBuilder
from ragvl.prefix_cache.memory import reservations
from ragvl.reranker import PromptTemplate

TINY = "llava"
EACH = pytest.mark.parametrize("architecture", [*ARCHITECTURES, *HYBRIDS])
QUERIES = [
    "What color is the roof?",
    "?",
    " leading and trailing ",
    "\n\nIs it after an empty line?",  # may merge with the line break before it
    "'s roof",
    "東京の塔はどこですか 🗼",
    "Which of the two has more windows, the one by the sea or the other? " * 3,
]


def ragged_documents() -> list[Document]:
    return [
        Document(picture(0), caption="A barn"),
        Document(picture(1, 40, 90), caption="The lighthouse of Velmora, photographed in 1987"),
        Document(picture(2, 100, 40), caption=""),
        Document(picture(3, 48, 48), caption="Ünïcödé 塔 🗼 ends oddly:\n"),
        Document(picture(4, 64, 64), caption="ends in a space "),
        Document(picture(5, 64, 64)),
        Document(picture(6, 64, 64), caption="QUERY {query} QUERYY"),
    ]


@pytest.fixture
def mllm(tiny_mllm: Callable[[str], MLLM]) -> MLLM:
    return tiny_mllm(TINY)


def held(reranker: Reranker) -> tuple[int, int, int]:
    """Hits, misses and evictions on the device."""
    device = reranker.prefix_cache.statistics()["device"]
    return device.hits, device.misses, device.evictions


# --- exact ------------------------------------------------------------------------------------


@pytest.mark.slow
@EACH
def test_cold_warm_and_plain_are_the_same(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    reranker = Reranker(mllm)
    documents = ragged_documents()
    pairs = [(query, document) for query in QUERIES for document in documents]
    expected = plain_scores(reranker, pairs)
    assert np.ptp(expected.numpy()) > 1e-3, (
        "the inputs must give different scores to prove anything"
    )
    cold = reranker.score(pairs)
    np.testing.assert_allclose(cold.numpy(), expected, atol=1e-5, rtol=0)
    assert held(reranker)[1] > 0
    misses = held(reranker)[1]
    warm = reranker.score(pairs)
    assert held(reranker)[1] == misses, "a known document is not computed again"
    # bit for bit: cached or not, alone, in any batch, in any order
    assert torch.equal(warm, cold)
    assert torch.equal(Reranker(mllm, prefix_cache=None).score(pairs), cold)
    assert torch.equal(reranker.score(pairs, batch_size=3), cold)
    alone = torch.cat([Reranker(mllm, prefix_cache=None).score([pair]) for pair in pairs[:9]])
    assert torch.equal(alone, cold[:9])
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    shuffled = reranker.score([pairs[i] for i in order.tolist()])
    assert torch.equal(shuffled, cold[order])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [TINY, *HYBRIDS])
def test_scores_are_the_same_bits_in_bfloat16(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    folder = tiny_model(architecture)
    reranker = Reranker.from_pretrained(folder, device="cpu", dtype="bfloat16")
    exact = Reranker.from_pretrained(folder, device="cpu", dtype="float32")
    pairs = [(query, document) for query in QUERIES[:3] for document in ragged_documents()]
    cold = reranker.score(pairs)
    assert torch.equal(reranker.score(pairs), cold)
    alone = torch.cat([reranker.score([pair]) for pair in pairs])
    assert torch.equal(alone, cold)
    torch.testing.assert_close(cold, exact.score(pairs), atol=0.05, rtol=0)


@pytest.mark.slow
def test_the_number_of_threads_does_not_show(mllm: MLLM) -> None:
    pairs = [(query, document) for query in QUERIES for document in ragged_documents()]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(Reranker(mllm, prefix_cache=None).score(pairs))
    finally:
        torch.set_num_threads(threads)
    for scores in results[1:]:
        torch.testing.assert_close(scores, results[0], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_compressed_prefixes_are_nearly_exact(mllm: MLLM) -> None:
    pairs = [(query, document) for query in QUERIES for document in ragged_documents()]
    rerankers = [
        Reranker(mllm, prefix_cache=PrefixCache("64MiB", compression=compression))
        for compression in (None, "int8", "int4")
    ]
    exact, int8, int4 = (reranker.score(pairs) for reranker in rerankers)
    assert 0 < (int8 - exact).abs().max() < 0.02
    assert 0 < (int4 - exact).abs().max() < 0.2
    held = [reranker.prefix_cache.statistics()["device"].bytes for reranker in rerankers]
    assert held[0] > held[1] > held[2]
    # Alone, in any order and known by now: the same bits
    alone = torch.cat([rerankers[2].score([pair]) for pair in reversed(pairs)])
    assert torch.equal(alone.flip(0), int4)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "is_whole"), [("qwen3_5", True), ("qwen3_vl", False)])
def test_a_token_that_merges_across_the_cut_costs_no_correctness(
    architecture: str,
    is_whole: bool,
    tiny_mllm: Callable[[str], MLLM],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Attention leaves its prefix anywhere; a state is known behind the prefix's last token."""
    template = PromptTemplate("mine", "<image>\n{caption}\nQuestion:\n{query}\nYes or No?")
    reranker = Reranker(tiny_mllm(architecture), template=template)
    document = Document(picture(0), caption="A barn")
    queries = ["Is it red?", "\n\nIs it red?", "\n\nIs it blue?"]
    (prefix, _), (shorter, _) = (reranker.split_prompt(query, document) for query in queries[:2])
    assert len(shorter) < len(prefix)
    pairs = [(query, document) for query in queries]
    scores = reranker.score(pairs)
    torch.testing.assert_close(scores, plain_scores(reranker, pairs), atol=1e-5, rtol=0)
    assert torch.equal(torch.cat([reranker.score([pair]) for pair in pairs]), scores)
    said = [r.getMessage() for r in caplog.records if "scored whole" in r.getMessage()]
    assert [message.endswith("scored whole (2 now)") for message in said] == [True] * is_whole


# --- what is kept -----------------------------------------------------------------------------


def test_a_known_document_is_neither_read_nor_looked_at(
    mllm: MLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        picture(i).save(path)
    reranker = Reranker(mllm)
    documents = [Document(path, caption="A barn") for path in paths]
    before = reranker.score([(QUERIES[0], document) for document in documents])

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a known document was worked on")

    monkeypatch.setattr(Document, "load", fail)
    monkeypatch.setattr(Prompting, "encode_image", fail)
    monkeypatch.setattr(MLLM, "prefill", fail)
    again = reranker.score([(QUERIES[0], document) for document in documents])
    assert torch.equal(again, before)
    # other objects that name the same file with the same caption are known as well
    bare = [Document(path, caption="A barn") for path in paths]
    assert torch.equal(reranker.score([(QUERIES[0], document) for document in bare]), before)


def test_a_changed_picture_caption_or_template_is_another_prefix(
    mllm: MLLM, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    picture(0).save(path)
    document = Document(path, caption="A barn")
    reranker = Reranker(mllm, prefix_cache="64MiB")

    def score(document: Document) -> tuple[float, int]:
        return reranker.score([(QUERIES[0], document)]).item(), len(reranker.prefix_cache)

    first = score(document)
    assert first[1] == 1
    assert score(Document(path, caption="A mill"))[1] == 2
    picture(1).save(path)
    changed = score(document)
    assert changed[1] == 3
    assert changed[0] != first[0]
    assert changed[0] == score(Document(picture(1), caption="A barn"))[0]
    mine = PromptTemplate("mine", "<image>\nOf {caption}: does it show {query}? Yes or No.")
    other = Reranker(mllm, template=mine, prefix_cache=reranker.prefix_cache)
    kept = len(reranker.prefix_cache)
    assert other.score([(QUERIES[0], document)]).item() != changed[0]
    assert len(reranker.prefix_cache) == kept + 1


def test_trained_weights_are_another_model(tiny_model: Callable[[str], Path]) -> None:
    reranker = Reranker.from_pretrained(tiny_model(TINY), device="cpu")
    pairs = [(QUERIES[0], document) for document in ragged_documents()]
    before = reranker.score(pairs)
    with torch.no_grad():
        for parameter in reranker.mllm.model.parameters():
            parameter.mul_(1.1)
    after = reranker.score(pairs)
    assert not torch.equal(after, before)
    assert torch.equal(after, Reranker(reranker.mllm, prefix_cache=None).score(pairs))


def test_each_document_is_built_once_for_many_queries(
    mllm: MLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Prompt] = []
    build = PrefixBuilder.__call__

    def counting(self: PrefixBuilder, prefixes: list[Prompt], pages: object) -> object:
        built.extend(prefixes)
        return build(self, prefixes, pages)  # type: ignore[arg-type]

    reranker = Reranker(mllm)
    monkeypatch.setattr(PrefixBuilder, "__call__", counting)
    documents = [Document(picture(i), caption="x" * i) for i in range(40)]
    pairs = [(query, document) for query in QUERIES for document in documents]
    reranker.score(pairs, progress=False)
    assert len(built) == 40
    # a picture that comes twice is one prefix, if the caption is the same
    twice = [Document(picture(100), caption="twice") for _ in range(3)]
    reranker.score([(QUERIES[0], document) for document in twice])
    assert len(built) == 41


@pytest.mark.slow
@EACH
def test_prefixes_built_together_are_the_same_bits(
    architecture: str, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    documents = [Document(picture(i), caption="x " * (i % 5)) for i in range(27)]
    pairs = [(QUERIES[0], document) for document in documents]
    together = Reranker(mllm, prefix_cache=None).score(pairs)  # the same shapes several times
    alone = torch.cat([Reranker(mllm, prefix_cache=None).score([pair]) for pair in pairs])
    assert torch.equal(together, alone)
    at_once = Reranker(mllm, prefix_cache=None, deterministic=False).score(pairs)
    torch.testing.assert_close(at_once, alone, atol=1e-5, rtol=0)


class Batches:
    """Notes how many prefixes are computed at once, and may spoil those of a batch a little."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, error: float = 0.0) -> None:
        self.sizes: list[int] = []
        prefill = MLLM.prefill

        def noted(mllm: MLLM, prefixes: list[Prompt], write: WriteKv, *rest: object) -> object:
            self.sizes.append(len(prefixes))
            spoiled = error if len(prefixes) > 1 else 0.0
            return prefill(mllm, prefixes, lambda i, k, v: write(i, k + spoiled, v), *rest)

        monkeypatch.setattr(MLLM, "prefill", noted)


def test_a_new_batch_shape_is_also_computed_one_by_one(
    mllm: MLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(picture(i), caption="one shape") for i in range(24)]
    reranker = Reranker(mllm)
    reranker.score([("warm up", picture(99))])
    batches = Batches(monkeypatch)
    reranker.score([(QUERIES[0], document) for document in documents])
    assert batches.sizes == [8, *[1] * 8, 8, 8]
    batches.sizes.clear()
    exact = Reranker(mllm, deterministic=False)
    exact.score([("warm up", picture(99))])
    batches.sizes.clear()
    exact.score([(QUERIES[0], document) for document in documents])
    assert batches.sizes == [8, 8, 8]


def test_prefixes_are_built_alone_where_a_batch_changes_a_bit(
    mllm: MLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(QUERIES[0], Document(picture(i), caption="one shape")) for i in range(24)]
    expected = Reranker(mllm).score(pairs)
    reranker = Reranker(mllm)
    reranker.score([("warm up", picture(99))])
    batches = Batches(monkeypatch, error=1e-6)
    assert torch.equal(reranker.score(pairs), expected)
    assert batches.sizes == [8, *[1] * 24]
    roughly = Reranker(mllm, deterministic=False).score(pairs)
    assert not torch.equal(roughly, expected)


def test_nothing_is_kept_without_a_cache(mllm: MLLM) -> None:
    reranker = Reranker(mllm, prefix_cache=None)
    reranker.score([(QUERIES[0], document) for document in ragged_documents()])
    assert len(reranker.prefix_cache) == 0
    assert reranker.prefix_cache.statistics()["device"].bytes == 0


# --- little memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("documents_held", [1, 2, 5])
def test_a_small_cache_evicts_and_stays_right(mllm: MLLM, documents_held: int) -> None:
    documents = [Document(picture(i), caption="same length") for i in range(12)]
    pairs = [(query, document) for query in QUERIES[:4] for document in documents]
    full = Reranker(mllm)
    expected = full.score(pairs)
    one = full.prefix_cache.statistics()["device"].bytes // len(full.prefix_cache)
    small = Reranker(mllm, prefix_cache=one * documents_held)
    for _ in range(2):
        assert torch.equal(small.score(pairs), expected)
        device = small.prefix_cache.statistics()["device"]
        assert device.bytes <= one * documents_held
        assert len(small.prefix_cache) == documents_held
    assert device.evictions == 2 * 12 - documents_held - device.hits


def test_the_least_recently_used_goes_first(mllm: MLLM) -> None:
    documents = [Document(picture(i), caption="same length") for i in range(3)]
    reranker = Reranker(mllm)
    reranker.score([(QUERIES[0], documents[0])])
    one = reranker.prefix_cache.statistics()["device"].bytes
    reranker = Reranker(mllm, prefix_cache=2 * one)
    for i in (0, 1, 0, 2):  # 2 takes the place of 1
        reranker.score([(QUERIES[0], documents[i])])
    assert held(reranker) == (1, 3, 1)
    reranker.score([(QUERIES[0], documents[0])])
    assert held(reranker) == (2, 3, 1)
    reranker.score([(QUERIES[0], documents[1])])
    assert held(reranker) == (2, 4, 2)


def test_a_cache_too_small_for_one_document_says_so(mllm: MLLM) -> None:
    page = 16 * mllm.kv_layout.bytes_per_token()
    reranker = Reranker(mllm, prefix_cache=page)
    with pytest.raises(PrefixTooLargeError, match="give it more"):
        reranker.score([(QUERIES[0], picture(0))])
    with pytest.raises(ValueError, match="holds nothing"):
        Reranker(mllm, prefix_cache=page - 1).score([(QUERIES[0], picture(0))])
    with pytest.raises(ValueError, match="8 GB of RAM"):
        Reranker(mllm, prefix_cache="8 GB of RAM")


class Promised:
    """A cache that has been promised more than any machine has."""

    untouched_bytes = 2**60


def test_no_memory_left_for_a_cache_is_said(mllm: MLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "_tiers", WeakSet())  # the promise ends with the test
    promised = Promised()
    reservations.add(promised, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"a prefix cache of 0 B.*'auto' is a share of the memory"):
        Reranker(mllm, prefix_cache="auto").score([(QUERIES[0], picture(0))])


def test_a_document_that_the_cache_is_too_small_for_costs_no_other(
    mllm: MLLM, caplog: pytest.LogCaptureFixture
) -> None:
    documents = [Document(picture(0)), Document(picture(1), caption="long " * 100, id="b")]
    reranker = Reranker(mllm)
    expected = reranker.score([(QUERIES[0], documents[0])])
    size = reranker.prefix_cache.statistics()["device"].bytes
    pairs = [(QUERIES[0], document) for document in documents]
    with pytest.raises(PrefixTooLargeError, match=r"^document 'b'"):
        Reranker(mllm, prefix_cache=size).score(pairs)
    relevance = Reranker(mllm, prefix_cache=size).score(pairs, on_error="skip")
    assert torch.equal(relevance[:1], expected)
    assert relevance[1].isnan()
    assert "skipped: document 'b'" in caplog.text


# --- fallbacks and errors ---------------------------------------------------------------------


def test_a_bad_document_harms_no_other(mllm: MLLM, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG not really")
    good = ragged_documents()
    mixed = [
        good[0],
        Document(broken, id="broken"),
        good[1],
        Document(tmp_path / "missing.png"),
        Document(picture(7), caption="word " * 5000),
        good[2],
    ]
    reranker = Reranker(mllm)
    scores = reranker.score([(QUERIES[0], d) for d in mixed], on_error="skip")
    assert scores.isnan().tolist() == [False, True, False, True, True, False]
    expected = reranker.score([(QUERIES[0], d) for d in good[:3]])
    assert torch.equal(scores[[0, 2, 5]], expected)
    with pytest.raises(ImageError, match="broken"):
        reranker.score([(QUERIES[0], d) for d in mixed])
    with pytest.raises(ImageError, match=r"missing\.png"):
        reranker.score([(QUERIES[0], d) for d in mixed[2:]])
    # a query that does not fit leaves the others their scores
    long = "word " * 5000
    scores = reranker.score([(QUERIES[0], good[0]), (long, good[0])], on_error="skip")
    assert scores.isnan().tolist() == [False, True]
    with pytest.raises(PromptTooLongError, match="query 'word word") as caught:
        reranker.score([(QUERIES[0], good[0]), (long, good[0])])
    assert caught.value.index == 1
    # what was at work when an error came is free again
    reranker.prefix_cache.clear()
    assert len(reranker.prefix_cache) == 0


def test_a_cache_belongs_to_one_model(tiny_mllm: Callable[[str], MLLM]) -> None:
    cache = PrefixCache("64MiB")
    Reranker(tiny_mllm("llava"), prefix_cache=cache).score([("Why?", picture(0))])
    with pytest.raises(ValueError, match="belongs to another model"):
        Reranker(tiny_mllm("internvl"), prefix_cache=cache).score([("Why?", picture(0))])


# --- warm, threads ----------------------------------------------------------------------------


def test_warm_builds_what_is_missing(mllm: MLLM, tmp_path: Path) -> None:
    reranker = Reranker(mllm)
    documents = ragged_documents()
    report = reranker.warm(documents[:4], progress=False)
    assert (report.built, report.known, report.skipped) == (4, 0, 0)
    (tmp_path / "broken.png").write_bytes(b"no")
    stream = iter([*documents, Document(tmp_path / "broken.png")])
    report = reranker.warm(stream, on_error="skip", progress=False)
    assert (report.built, report.known, report.skipped) == (len(documents) - 4, 4, 1)
    misses = held(reranker)[1]
    scores = reranker.score([(QUERIES[0], document) for document in documents])
    assert held(reranker)[1] == misses
    fresh = Reranker(mllm, prefix_cache=None)
    assert torch.equal(scores, fresh.score([(QUERIES[0], d) for d in documents]))
    with pytest.raises(ImageError, match="broken"):
        reranker.warm([Document(tmp_path / "broken.png")], progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("documents_held", [3, 100])
def test_threads_at_once_get_the_same_scores(mllm: MLLM, documents_held: int) -> None:
    documents = [Document(picture(i), caption="same length") for i in range(8)]
    pairs = [(query, document) for query in QUERIES[:4] for document in documents]
    full = Reranker(mllm)
    expected = full.score(pairs)
    one = full.prefix_cache.statistics()["device"].bytes // len(full.prefix_cache)
    shared = Reranker(mllm, prefix_cache=one * documents_held)

    def score_shuffled(seed: int) -> bool:
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
        scores = shared.score([pairs[i] for i in order.tolist()])
        return torch.equal(scores, expected[order])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(score_shuffled, range(12)))


@pytest.mark.gpu
@EACH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_with_graphs(
    architecture: str, dtype: str, tiny_model: Callable[[str], Path]
) -> None:
    reranker = Reranker.from_pretrained(tiny_model(architecture), device="cuda", dtype=dtype)
    exact = Reranker.from_pretrained(tiny_model(architecture), device="cpu")
    pairs = [(query, document) for query in QUERIES for document in ragged_documents()]
    cold = reranker.score(pairs)
    tolerance = 1e-4 if dtype == "float32" else 0.05
    torch.testing.assert_close(cold, exact.score(pairs), atol=tolerance, rtol=0)
    assert torch.equal(reranker.score(pairs), cold)
    alone = torch.cat([reranker.score([pair]) for pair in pairs])
    assert torch.equal(alone, cold)
    loose = Reranker(reranker.mllm, prefix_cache="64MiB", deterministic=False)
    torch.testing.assert_close(loose.score(pairs), cold, atol=tolerance, rtol=0)


@pytest.mark.gpu
def test_warming_captures_what_a_question_runs(tiny_model: Callable[[str], Path]) -> None:
    reranker = Reranker.from_pretrained(tiny_model("llava"), device="cuda")
    documents = ragged_documents()
    reranker.warm(documents, progress=False)
    runs = reranker._scorer._run._graphs._runs  # type: ignore[attr-defined]
    captured = set(runs)
    query = "Is there a mill beside the river on this picture?"
    reranker.score([(query, document) for document in documents])
    assert set(runs) == captured != set()
