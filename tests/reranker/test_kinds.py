"""Documents and queries of every kind: scored as the plain way does, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plain import picture, plain_scores

from ragvl import Document, PrefixCache, Query, Reranker, fast_rerank
from ragvl.data.images import DocumentError, ImageError
from ragvl.mllm import MLLM
from ragvl.reranker import PromptTemplate

ARCHITECTURES = ["llava", "qwen2_vl", "qwen3_vl", "gemma3"]  # of four ways to place pictures

DOCUMENTS = [
    Document(picture(0), caption="The red tower of Velmora", id="captioned"),
    Document(picture(1, 40, 70), id="bare"),
    Document(text="Velmora has a red tower.", id="text"),
    Document(text="The tower: built in 1987, <image> of stone.", id="placeholder"),
    Document(parts=[picture(2), "Seen from the south.", picture(3, 30, 80)], id="two pictures"),
    Document(parts=["First a text,", picture(4)], id="text first"),
]
QUERIES = [
    "What color is the roof of the tower?",
    Query(image=picture(5)),
    Query("Which tower is this?", image=picture(6, 80, 40)),
]
PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_the_plain_ways_whatever_the_kinds(
    tiny_mllm: Callable[[str], MLLM], architecture: str
) -> None:
    reranker = Reranker(tiny_mllm(architecture), prefix_cache=PrefixCache("64MiB"))
    expected = plain_scores(reranker, PAIRS)
    assert len(expected.unique()) == len(PAIRS)
    cold = reranker.score(PAIRS)
    torch.testing.assert_close(cold, expected, atol=1e-5, rtol=0)
    order = torch.randperm(len(PAIRS), generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(reranker.score([PAIRS[i] for i in order]), cold[order])
    alone = torch.cat([reranker.score([pair]) for pair in PAIRS])
    assert torch.equal(alone, cold)


def test_every_kind_has_a_prefix_that_is_computed_once(tiny_mllm: Callable[[str], MLLM]) -> None:
    cache = PrefixCache("64MiB")
    reranker = Reranker(tiny_mllm("qwen2_vl"), prefix_cache=cache)
    assert reranker.warm(DOCUMENTS, progress=False).built == len(DOCUMENTS)
    again = reranker.warm(DOCUMENTS, progress=False)
    assert (again.built, again.known) == (0, len(DOCUMENTS))
    ranked = reranker.rank("Red?", DOCUMENTS)
    assert {r.document for r in ranked} == set(DOCUMENTS)
    for document in DOCUMENTS:
        prefix, suffix = reranker.split_prompt("Red?", document)
        assert len(suffix) < 60 < len(suffix) + len(prefix)


@pytest.mark.parametrize("keep", ["kv", "features"])
def test_a_folder_keeps_prefixes_of_every_kind(
    tiny_mllm: Callable[[str], MLLM], tmp_path: Path, keep: str
) -> None:
    pairs = [("Red?", document) for document in DOCUMENTS]
    first = Reranker(
        tiny_mllm("qwen3_vl"), prefix_cache=PrefixCache("64MiB", folder=tmp_path, keep=keep)
    ).score(pairs)
    cache = PrefixCache("64MiB", folder=tmp_path, keep=keep)
    assert torch.equal(Reranker(tiny_mllm("qwen3_vl"), prefix_cache=cache).score(pairs), first)
    assert cache.statistics()["disk"].hits == len(DOCUMENTS)


def test_one_part_is_another_documents_prefix(tiny_mllm: Callable[[str], MLLM]) -> None:
    """Order, and what is in which part, make another document."""
    image = picture(7)
    documents = [
        Document(parts=[image, "a b"]),
        Document(parts=["a b", image]),
        Document(parts=[image, "a", "b"]),
        Document(parts=[image, image, "a b"]),
        Document(parts=[image]),
        Document(text="a b"),
    ]
    reranker = Reranker(tiny_mllm("llava"), prefix_cache=PrefixCache("64MiB"))
    pairs = [("Red?", document) for document in documents]
    together = reranker.score(pairs)
    assert len(together.unique()) == len(documents)
    torch.testing.assert_close(together, plain_scores(reranker, pairs), atol=1e-5, rtol=0)


def test_mappings_and_bare_pictures_are_documents_and_queries(
    tiny_mllm: Callable[[str], MLLM],
) -> None:
    reranker = Reranker(tiny_mllm("llava"))
    image = picture(8)
    texts = ["Red?", {"text": "Red?"}, Query("Red?")]
    pictures = [image, {"image": image}, Query(image=image)]
    for same in (texts, pictures):
        scores = reranker.score([(query, {"text": "It is red."}) for query in same])
        assert torch.equal(scores, scores[:1].expand(3))
    documents = [{"image": image, "text": "A mill"}, Document(image, caption="A mill")]
    assert len({r.score for r in reranker.rank("Red?", documents)}) == 1
    assert fast_rerank("Red?", [{"text": "It is red."}, image], model=reranker)[0].score > 0


@pytest.mark.parametrize("architecture", ["llava", "qwen2_vl", "idefics3"])
def test_a_query_with_a_picture_costs_its_own_tokens(
    tiny_mllm: Callable[[str], MLLM], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its picture is looked at once, and goes on from the documents' prefixes."""
    mllm = tiny_mllm(architecture)
    reranker = Reranker(mllm, prefix_cache=PrefixCache("64MiB"))
    reranker.warm(DOCUMENTS, progress=False)
    pairs = [pair for pair in PAIRS if not isinstance(pair[0], str)]
    expected = plain_scores(reranker, pairs)
    reranker.score(pairs[:1])  # the model is tried
    looked = []
    with monkeypatch.context() as patch:
        patch.setattr(MLLM, "hidden_states", lambda *_: pytest.fail("a prompt was run whole"))
        patch.setattr(
            MLLM,
            "with_features",
            lambda self, image, real=MLLM.with_features: looked.append(1) or real(self, image),
        )
        scores = reranker.score(pairs)
        assert len(looked) == 1  # the other query's is known
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_where_a_picture_cannot_go_on_it_is_said_once(
    tiny_mllm: Callable[[str], MLLM], caplog: pytest.LogCaptureFixture
) -> None:
    """Gemma 3's pictures see their own later tokens."""
    reranker = Reranker(tiny_mllm("gemma3"), prefix_cache=PrefixCache("64MiB"))
    for _ in range(2):
        reranker.rank(QUERIES[1], DOCUMENTS[:2])
    assert caplog.text.count("queries with pictures are scored whole: what it computes") == 1


INSTRUCTED = PromptTemplate(
    "instructed",
    "{instruction}\n{document}\nQuery: {query}",
    instruction="Is it about the query?",
    separator=" ",
)


def test_an_instruction_shapes_the_prefix(tiny_mllm: Callable[[str], MLLM]) -> None:
    cache = PrefixCache("64MiB")
    reranker = Reranker(tiny_mllm("qwen2_vl"), template=INSTRUCTED, prefix_cache=cache)
    queries = [Query("Red?"), Query("Red?", instruction="Find what differs.")]
    pairs = [(query, document) for document in DOCUMENTS for query in queries]
    for _ in range(2):
        scores = reranker.score(pairs)
        torch.testing.assert_close(scores, plain_scores(reranker, pairs), atol=1e-5, rtol=0)
    assert not (scores[::2] == scores[1::2]).any()
    assert "Find what differs." in reranker.prompt(queries[1], DOCUMENTS[0])


class TestRefused:
    def test_a_document_that_the_template_has_no_place_for(
        self, tiny_mllm: Callable[[str], MLLM], caplog: pytest.LogCaptureFixture
    ) -> None:
        reranker = Reranker(tiny_mllm("llava"), template="plain")
        for document in DOCUMENTS[2:]:
            with pytest.raises(DocumentError, match=f"'plain' is about one picture.*{document.id}"):
                reranker.rank("Red?", [DOCUMENTS[1], document])
            with pytest.raises(DocumentError, match=str(document.id)):
                reranker.prompt("Red?", document)
        report = reranker.warm(DOCUMENTS[1:3], on_error="skip", progress=False)
        assert (report.built + report.known, report.skipped) == (1, 1)
        ranked = reranker.rank("Red?", DOCUMENTS[1:3], on_error="skip")
        assert ranked[-1].document is DOCUMENTS[2] and ranked[-1].score != ranked[-1].score
        assert "'text'" in caplog.text

    def test_a_query_that_the_template_has_no_place_for(
        self, tiny_mllm: Callable[[str], MLLM]
    ) -> None:
        reranker = Reranker(tiny_mllm("llava"), template="retrieval")
        with pytest.raises(ValueError, match="'retrieval' takes texts as queries"):
            reranker.rank(QUERIES[1], DOCUMENTS[:1])
        with pytest.raises(ValueError, match="no place for the instruction of query 'Red"):
            reranker.score([(Query("Red?", instruction="Judge"), DOCUMENTS[0])], on_error="skip")

    def test_pictures_that_cannot_be_read(
        self, tiny_mllm: Callable[[str], MLLM], tmp_path: Path
    ) -> None:
        reranker = Reranker(tiny_mllm("llava"))
        torn = tmp_path / "torn.png"
        torn.write_bytes(b"\x89PNG\r\n")
        with pytest.raises(ImageError, match=r"parts\[1\].*torn\.png.* not a picture"):
            reranker.rank("Red?", [Document(parts=["a", torn])])
        with pytest.raises(ImageError, match=r"query.*torn\.png"):
            reranker.rank(Query(image=torn), DOCUMENTS[:1])
        pairs = [(Query(image=torn), DOCUMENTS[0]), ("Red?", DOCUMENTS[0])]
        assert reranker.score(pairs, on_error="skip").isnan().tolist() == [True, False]

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("{document}", "{query} exactly once"),
            ("{query} {document} <image>", "exactly once"),
            ("{query}", "one of <image> and {document}"),
            ("{instruction}{query}{document}", "give it one"),
        ],
    )
    def test_templates_without_a_place_for_all(self, template: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PromptTemplate("mine", template)

    @pytest.mark.parametrize("limit", [0, True, "100"])
    def test_a_limit_of_a_querys_pixels_that_is_none(self, limit: object) -> None:
        with pytest.raises((TypeError, ValueError), match="max_pixels"):
            Query("Red?", image=picture(0), max_pixels=limit)
