"""Scores equal plain scoring's on every architecture, at any batch size and in any order."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plain import picture, plain_scores
from tiny_models import ARCHITECTURES

from ragvl import Document, RankedDocument, Reranker, fast_rerank
from ragvl.data import images
from ragvl.data.images import DocumentError, ImageError
from ragvl.mllm import MLLM, CaptionLimit, PromptTooLongError
from ragvl.reranker import PromptTemplate

QUERY = "What color is the roof?"
TINY = ARCHITECTURES[0]


def ragged_pairs() -> list[tuple[str, Document]]:
    """Pictures of several sizes, captions and queries of several lengths, one document twice."""
    documents = [
        Document(picture(0), caption="A barn"),
        Document(picture(1, 40, 90), caption="The lighthouse of Velmora, photographed in 1987"),
        Document(picture(2, 100, 40), caption=""),
        Document(picture(3, 48, 48), caption="Ünïcödé 塔 🗼 ..."),
        Document(picture(4, 64, 64)),
    ]
    pairs = [(QUERY, document) for document in documents]
    pairs += [("Is it by the sea, or is it in the forest behind the old mill?", documents[1])]
    return [*pairs, ("Why?", documents[4])]


@pytest.fixture(params=ARCHITECTURES)
def reranker(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Reranker:
    return Reranker.from_pretrained(tiny_model(request.param), device="cpu", dtype="float32")


@pytest.fixture
def tiny_reranker(tiny_model: Callable[[str], Path]) -> Reranker:
    return Reranker.from_pretrained(tiny_model(TINY), device="cpu", dtype="float32")


@pytest.mark.slow
def test_scores_equal_plain_scoring_at_any_batch_size_and_in_any_order(reranker: Reranker) -> None:
    pairs = ragged_pairs()
    expected = plain_scores(reranker, pairs).numpy()
    assert np.ptp(expected) > 1e-3, "the inputs must give different scores to prove anything"
    order = np.random.default_rng(0).permutation(len(pairs))
    for batch_size in (1, 3, 32, None):
        scores = reranker.score(pairs, batch_size=batch_size)
        assert scores.dtype == torch.float32
        np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5, rtol=0)
        shuffled = reranker.score([pairs[i] for i in order], batch_size=batch_size)
        np.testing.assert_allclose(shuffled.numpy(), expected[order], atol=1e-5, rtol=0)


def test_the_prompt_splits_exactly_where_the_query_begins_to_matter(reranker: Reranker) -> None:
    document = Document(picture(1, 40, 90), caption="The lighthouse of Velmora")
    prefix, suffix = reranker.split_prompt(QUERY, document)
    other_prefix, other_suffix = reranker.split_prompt("Is it white?", document)
    assert prefix == other_prefix
    assert suffix != other_suffix
    image = reranker.mllm.prompting.encode_image(document.load())
    whole = reranker.mllm.prompting.encode_prompt(reranker.prompt(QUERY, document), [image])
    assert prefix + suffix == whole.input_ids
    # the picture and the caption are in the prefix, the query is not
    tokenizer = reranker.mllm.prompting.tokenizer
    assert "lighthouse" in tokenizer.decode(prefix)
    assert "roof" not in tokenizer.decode(prefix)
    assert "roof" in tokenizer.decode(suffix)
    assert len(suffix) < len(prefix)


def test_rank_sorts_cuts_and_keeps(tiny_reranker: Reranker) -> None:
    documents = [document for _, document in ragged_pairs()[:5]]
    scores = tiny_reranker.score([(QUERY, document) for document in documents]).tolist()
    limit = sorted(scores)[2]
    ranked = tiny_reranker.rank(QUERY, documents, threshold=limit)
    assert [r.score for r in ranked] == sorted(scores, reverse=True)
    assert all(r.document is documents[r.index] and r.score == scores[r.index] for r in ranked)
    assert [r.kept for r in ranked] == [True, True, True, False, False]
    assert tiny_reranker.rank(QUERY, documents, top_k=2, threshold=limit) == ranked[:2]
    assert len(tiny_reranker.rank(QUERY, documents, top_k=99)) == 5


def test_a_prior_changes_the_order_alone(tiny_reranker: Reranker) -> None:
    documents = [document for _, document in ragged_pairs()[:5]]
    alone = tiny_reranker.rank(QUERY, documents)
    by_index = {one.index: one for one in alone}
    for prior in ([0.0] * 5, np.array([3.0, -2.0, 0.5, 9.0, 0.1]), torch.arange(5) * -10.0):
        ranked = tiny_reranker.rank(QUERY, documents, prior=prior)
        assert [by_index[one.index] for one in ranked] == ranked
        totals = [one.raw + float(prior[one.index]) for one in ranked]
        assert totals == sorted(totals, reverse=True)
    assert [one.index for one in ranked] == [0, 1, 2, 3, 4]
    broken = [*documents[:2], Document(b"broken"), *documents[2:]]
    skipped = tiny_reranker.rank(QUERY, broken, prior=[0, 0, 1e9, 0, 0, 0], on_error="skip")
    assert skipped[-1].index == 2, "what has no score comes last, whatever its prior"
    for prior, message in (([0.0] * 4, "4 numbers for 5"), ([0, 0, np.nan, 0, 0], "finite")):
        with pytest.raises(ValueError, match=message):
            tiny_reranker.rank(QUERY, documents, prior=prior)


def test_equal_scores_keep_the_given_order(tiny_reranker: Reranker) -> None:
    same = [Document(picture(0), caption="A barn") for _ in range(4)]
    assert [r.index for r in tiny_reranker.rank(QUERY, same)] == [0, 1, 2, 3]


def test_bare_pictures_paths_and_bytes_are_documents(
    tiny_reranker: Reranker, tmp_path: Path
) -> None:
    image = picture(5)
    image.save(tmp_path / "a.png")
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    forms = [
        image,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        encoded.getvalue(),
        np.asarray(image),
    ]
    scores = tiny_reranker.score([(QUERY, form) for form in forms])
    np.testing.assert_allclose(scores.numpy(), scores[0].item(), atol=1e-6)


def test_the_cross_encoder_dialect(tiny_reranker: Reranker) -> None:
    pairs = ragged_pairs()
    predicted = tiny_reranker.predict(pairs)
    assert isinstance(predicted, np.ndarray)
    np.testing.assert_array_equal(predicted, tiny_reranker.score(pairs).numpy())
    hit = tiny_reranker.rank(QUERY, [document for _, document in pairs])[0]
    assert hit["corpus_id"] == hit.index
    assert hit["score"] == hit.score


def test_fast_rerank_is_rank(tiny_model: Callable[[str], Path], tiny_reranker: Reranker) -> None:
    documents = [document for _, document in ragged_pairs()[:4]]
    expected = tiny_reranker.rank(QUERY, documents, top_k=3)
    by_folder = fast_rerank(QUERY, documents, model=tiny_model(TINY), top_k=3, device="cpu")
    by_object = fast_rerank(QUERY, documents, model=tiny_reranker, top_k=3)
    assert by_object == expected
    assert [(r.index, r.kept) for r in by_folder] == [(r.index, r.kept) for r in expected]
    assert all(isinstance(r, RankedDocument) for r in by_folder)
    with pytest.raises(DocumentError, match="'monoqwen2-vl' is about one picture"):
        text = Document(text="It is red.")
        fast_rerank(QUERY, [text], model=tiny_model(TINY), preset="monoqwen2-vl", device="cpu")


def test_templates_choose_themselves_or_are_chosen(
    tiny_model: Callable[[str], Path], tiny_reranker: Reranker
) -> None:
    with_caption, without = Document(picture(0), caption="A barn"), Document(picture(0))
    assert "Image Caption: A barn" in tiny_reranker.prompt(QUERY, with_caption)
    assert "Image Caption" not in tiny_reranker.prompt(QUERY, without)
    strict = Reranker(tiny_reranker.mllm, template="caption")
    with pytest.raises(ValueError, match=r"no caption.*'caption' needs one"):
        strict.rank(QUERY, [with_caption, without])
    mine = PromptTemplate("mine", "<image>\nDoes it show {query}? Yes or No.")
    assert "Does it show a mill?" in Reranker(tiny_reranker.mllm, template=mine).prompt(
        "a mill", without
    )
    with pytest.raises(ValueError, match="unknown template 'captoin'; known: auto, caption"):
        Reranker.from_pretrained(tiny_model(TINY), template="captoin", device="cpu")


def test_a_large_picture_is_made_smaller_and_scores_much_the_same(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smooth picture's tenth part tells a model that keeps fewer pixels as much."""
    reranker = Reranker.from_pretrained(tiny_model("llava"), device="cpu", prefix_cache=None)
    assert reranker.mllm.prompting.kept_pixels is not None
    small = picture(1, 6, 5)
    large = small.resize((900, 700), Image.Resampling.BICUBIC)
    pairs = [(QUERY, small), (QUERY, large)]
    whole = reranker.score(pairs)
    monkeypatch.setattr(images, "REDUCE_ABOVE", 500_000)
    with (
        Document(large)
        .pictures[0]
        .decoded(kept_pixels=lambda: reranker.mllm.prompting.kept_pixels) as decoded
    ):
        assert decoded.width * decoded.height < 900 * 700 / 10
    reduced = reranker.score(pairs)
    assert reduced[0] == whole[0]
    assert abs(reduced[1] - whole[1]) < 0.01


def test_a_limit_of_pixels_is_for_documents_alone(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGVL_MAX_PIXELS", "4")
    reranker = Reranker.from_pretrained(tiny_model("llava"), device="cpu")
    pictures = [Image.new("RGB", (2, 2)), Image.new("RGB", (3, 3))]
    pairs = [("Red?", Document(picture)) for picture in pictures]
    assert reranker.score(pairs, on_error="skip").isnan().tolist() == [False, True]


def test_a_skipped_picture_is_named_once(
    tiny_reranker: Reranker, caplog: pytest.LogCaptureFixture
) -> None:
    bad = "https://example.org/a.png"
    ranked = tiny_reranker.rank(QUERY, [bad, picture(0)], on_error="skip", progress=False)
    assert [result.index for result in ranked] == [1, 0]
    assert caplog.text.count("example.org") == 1


def test_a_broken_picture_is_named_or_skipped(tiny_reranker: Reranker, tmp_path: Path) -> None:
    bad = tmp_path / "broken.png"
    bad.write_bytes(b"\x89PNG not really")
    documents = [Document(picture(0)), Document(bad, id="page-7"), Document(picture(1))]
    with pytest.raises(ImageError, match="page-7"):
        tiny_reranker.rank(QUERY, documents)
    ranked = tiny_reranker.rank(QUERY, documents, on_error="skip", threshold=0.0)
    assert [r.index for r in ranked][-1] == 1
    assert np.isnan(ranked[-1].score)
    assert not ranked[-1].kept
    alone = tiny_reranker.rank(QUERY, [documents[0], documents[2]])
    np.testing.assert_allclose([r.score for r in ranked[:2]], [r.score for r in alone], atol=1e-6)


@pytest.mark.parametrize("template", ["auto", "caption", "instruction-first"])
def test_a_caption_that_cannot_be_used_is_named_or_skipped(
    template: str, tiny_model: Callable[[str], Path]
) -> None:
    reranker = Reranker.from_pretrained(tiny_model(TINY), device="cpu", template=template)
    good = Document(picture(0), caption="A mill")
    half = Document(picture(1), caption="a\ud800", id="half")
    documents = [good, half] + ([Document(picture(1), id="bare")] if template == "caption" else [])
    for bad in documents[1:]:
        with pytest.raises(DocumentError, match=str(bad.id)):
            reranker.rank(QUERY, [good, bad])
    scores = reranker.score([(QUERY, document) for document in documents], on_error="skip")
    assert torch.equal(scores[:1], reranker.score([(QUERY, good)]))
    assert scores[1:].isnan().all()
    if template != "instruction-first":
        report = reranker.warm(documents, on_error="skip", progress=False)
        assert (report.known, report.skipped) == (1, len(documents) - 1)


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(query: str, tiny_reranker: Reranker) -> None:
    with pytest.raises(ValueError, match="query is empty"):
        tiny_reranker.rank(query, [picture(0)])


@pytest.mark.parametrize(("query", "caption"), [("a \ud800", "a mill"), ("a mill", "a \ud800")])
def test_half_a_character_is_refused(query: str, caption: str, tiny_reranker: Reranker) -> None:
    document = Document(Image.new("RGB", (64, 64)), caption=caption)
    with pytest.raises(ValueError, match=r"half a character .* of 'a \\ud800'"):
        tiny_reranker.score([(query, document)])
    assert tiny_reranker.score([("a mill", Document(document.image))]).isfinite().all()


def test_other_bad_arguments_are_refused(tiny_reranker: Reranker) -> None:
    with pytest.raises(ValueError, match="documents is empty"):
        tiny_reranker.rank(QUERY, [])
    with pytest.raises(ValueError, match="top_k=0"):
        tiny_reranker.rank(QUERY, [picture(0)], top_k=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        tiny_reranker.score([(QUERY, picture(0))], batch_size=0)
    with pytest.raises(ValueError, match="on_error='ignore'"):
        tiny_reranker.score([(QUERY, picture(0))], on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"pairs\[0\]: a query must be a string.* not int"):
        tiny_reranker.score([(3, picture(0))])  # type: ignore[list-item]
    assert tiny_reranker.score([]).shape == (0,)


def test_a_prompt_longer_than_the_context_is_named(tiny_reranker: Reranker) -> None:
    long = "word " * 5000
    with pytest.raises(PromptTooLongError, match="tokens"):
        tiny_reranker.rank(QUERY, [Document(picture(0), caption=long)])
    ranked = tiny_reranker.rank(
        QUERY, [Document(picture(0), caption=long), picture(1)], on_error="skip"
    )
    assert [r.index for r in ranked] == [1, 0]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("architecture", ["qwen2_vl", "paligemma"])
def test_what_does_not_fit_is_named(
    architecture: str,
    cached: bool,
    tiny_mllm: Callable[[str], MLLM],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of cached prefixes, of prompts scored whole, and in `warm`; with its place in the call."""
    reranker = Reranker(tiny_mllm(architecture), prefix_cache="64MiB" if cached else None)
    documents = [Document(picture(i), caption=f"roof {i}", id=f"doc{i}") for i in range(12)]
    documents[9] = Document(picture(9), caption="word " * 2000, id="long caption")
    again = Document(documents[9].image, caption=documents[9].caption, id="the same")
    with pytest.raises(PromptTooLongError, match="'long caption'") as caught:
        reranker.rank(QUERY, documents, progress=False)
    assert caught.value.index == 9
    assert caught.value.length > caught.value.max_length == 1024
    scores = reranker.score([(QUERY, d) for d in [*documents, again]], on_error="skip")
    assert scores.isnan().nonzero().flatten().tolist() == [9, 12]
    assert all(f"document '{name}'" in caplog.text for name in ("long caption", "the same"))
    pairs = [(QUERY, documents[0]), (QUERY, documents[1]), ("word " * 2000, documents[1])]
    with pytest.raises(PromptTooLongError, match=r"'doc1'.* the query 'word .*word") as caught:
        reranker.score(pairs)
    assert caught.value.index == 2
    if architecture != "paligemma":  # which keeps pictures, whatever their captions
        with pytest.raises(PromptTooLongError, match="'long caption'") as caught:
            reranker.warm(documents, progress=False)
        assert caught.value.index == 9


@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl", "paligemma"])
def test_captions_are_cut_on_request(
    architecture: str, tiny_mllm: Callable[[str], MLLM], caplog: pytest.LogCaptureFixture
) -> None:
    mllm = tiny_mllm(architecture)
    long = "The red tower of Velmora, photographed in 1987. " * 300
    documents = [
        Document(picture(0), caption="short", id="first"),
        Document(picture(1), caption=long, id="second"),
        Document(picture(2)),
        Document(picture(3), caption=f"Another. {long}", id="fourth"),
    ]
    pairs = [(QUERY, document) for document in documents]
    reranker = Reranker(mllm, caption_tokens=20)
    scores = reranker.score(pairs)
    said = [r.getMessage() for r in caplog.records if "captions were cut" in r.getMessage()]
    assert len(said) == 1, "once a call"
    assert said[0].startswith(
        "caption_tokens=20: 2 captions were cut, the first that of document 's"
    )
    cut = CaptionLimit(mllm.prompting, 20)
    by_hand = [Document(d.image, caption=cut(d.caption)) for d in documents]
    plain = Reranker(mllm)
    assert torch.equal(scores, plain.score([(QUERY, document) for document in by_hand]))
    assert torch.equal(scores, Reranker(mllm, caption_tokens=20, prefix_cache=None).score(pairs))
    assert long not in reranker.prompt(QUERY, documents[1])
    assert {r.document for r in reranker.rank(QUERY, documents)} == set(documents), "as given"
    caplog.clear()
    assert reranker.warm(iter(documents), progress=False).known == 4
    assert "2 captions were cut" in caplog.text
    with pytest.raises(PromptTooLongError, match="'second'"):
        plain.score(pairs)
    with pytest.raises(ValueError, match="caption_tokens=0"):
        Reranker(mllm, caption_tokens=0)


def test_nan_weights_are_an_error_and_not_a_score(tiny_reranker: Reranker) -> None:
    with torch.no_grad():
        next(tiny_reranker.mllm.model.parameters()).fill_(torch.nan)
        tiny_reranker.mllm.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"'page-1' .* is NaN"):
        tiny_reranker.rank(QUERY, [Document(picture(0), id="page-1")])


@pytest.mark.parametrize("architecture", [TINY, "paligemma"])  # the latter reuses no prefix
def test_a_score_that_is_nan_is_skipped_alone(
    architecture: str, tiny_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    reranker = Reranker.from_pretrained(tiny_model(architecture), device="cpu", dtype="float32")
    captions = ["A barn", "zzz", "A mill", "A lighthouse by the sea"]
    documents = [
        Document(picture(i), caption=caption, id=f"page-{i}") for i, caption in enumerate(captions)
    ]
    pairs = [(query, document) for query in (QUERY, "Why?") for document in documents]
    expected = reranker.score(pairs)

    def ids(text: str) -> set[int]:
        return set(reranker.mllm.prompting.tokenizer(text, add_special_tokens=False).input_ids)

    own = ids("zzz") - ids(" ".join([QUERY, "Why?", *captions[:1], *captions[2:]]))
    assert own
    with torch.no_grad():
        reranker.mllm.model.get_input_embeddings().weight[sorted(own)] = torch.nan
    scores = reranker.score(pairs, on_error="skip")
    assert scores.isnan().tolist() == [False, True, False, False] * 2
    assert torch.equal(scores[~scores.isnan()], expected[~scores.isnan()])
    named = [record.getMessage() for record in caplog.records if "is NaN" in record.getMessage()]
    assert len(named) == 1 and "'page-1'" in named[0]
    ranked = reranker.rank(QUERY, documents, on_error="skip", threshold=0)
    assert ranked[-1].index == 1 and not ranked[-1].kept
    with pytest.raises(FloatingPointError, match=r"'page-1' .* is NaN"):
        reranker.rank(QUERY, documents)


@pytest.mark.slow
def test_more_pairs_than_one_window(tiny_reranker: Reranker) -> None:
    """Windows of prepared pictures hand over correctly: scores do not depend on them."""
    documents = [Document(picture(i, 40 + i, 48), caption="x" * i) for i in range(45)]
    queries = [QUERY, "Why?", "Where is it?", "When?", "How?", "Who built it?"]
    pairs = [(query, document) for query in queries for document in documents]
    assert len(pairs) > 256
    scores = tiny_reranker.score(pairs, progress=False)
    for query, start in zip(queries, range(0, len(pairs), 45), strict=True):
        ranked = tiny_reranker.rank(query, documents, batch_size=7, progress=False)
        alone = torch.tensor([r.score for r in sorted(ranked, key=lambda r: r.index)])
        torch.testing.assert_close(scores[start : start + 45], alone, atol=1e-5, rtol=0)
