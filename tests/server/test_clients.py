"""Other people's clients, as they are installed, and our own, against a live server."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from server.live import MODEL_NAME, LiveServer, MakeServices, live

from ragvl import AsyncClient, Client, Document, RagVL, Reranker
from ragvl.client import ApiError
from ragvl.server.access import ApiKeys
from ragvl.server.stages import Stages

QUERY = "Which town has a red tower?"
TEXTS = [
    "Ashby has a blue mill.",
    "Velmora has a red tower.",
    "The weather today is sunny.",
    "Tarn has a red bridge and no tower.",
]
KEY = "a-key-of-some-length"

Expected = Callable[[Sequence[Document]], list[float]]


def drawn(color: str) -> bytes:
    """A picture's file."""
    image = Image.new("RGB", (64, 48), "white")
    ImageDraw.Draw(image).rectangle((20, 8, 44, 40), color)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


PICTURES = [drawn("blue"), drawn("red"), drawn("green")]
CAPTIONS = ["A mill in Ashby", "A tower in Velmora", "A field"]
CAPTIONED = [Document(p, c) for p, c in zip(PICTURES, CAPTIONS, strict=True)]


@pytest.fixture(scope="module")
def module() -> Callable[[str], ModuleType]:
    """`module(name)` imports a client, or skips a test where it is not installed."""
    with pytest.MonkeyPatch.context() as environment:
        # They would report to their makers
        environment.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
        environment.setenv("NVIDIA_USAGE_TELEMETRY_ENABLED", "False")
        yield pytest.importorskip


@pytest.fixture(scope="module")
def relevance(tiny_reranker: Reranker) -> Expected:
    """What the library itself gives documents for `QUERY`."""
    return lambda documents: tiny_reranker.score([(QUERY, d) for d in documents]).tolist()


@pytest.fixture(scope="module")
def of_texts(relevance: Expected) -> dict[str, float]:
    return dict(zip(TEXTS, relevance([Document(text=text) for text in TEXTS]), strict=True))


@pytest.fixture(scope="module")
def logits(tiny_reranker: Reranker) -> list[float]:
    """Raw scores of what `TestNvidia.passages` holds."""
    documents = [*CAPTIONED[:2], Document(PICTURES[2]), Document(text=TEXTS[1])]
    return tiny_reranker.score([(QUERY, document) for document in documents], raw=True).tolist()


@pytest.fixture(scope="module")
def guarded(make_services: MakeServices) -> Iterator[LiveServer]:
    """A server that asks for a key, and takes three documents at most."""
    with live(make_services(keys=ApiKeys([KEY]), max_documents=3)) as server:
        yield server


@pytest.fixture(scope="module")
def with_index(make_services: MakeServices, demo: Stages) -> Iterator[LiveServer]:
    """A server with the demo's index and generator."""
    parts = {"retriever": demo.retriever, "generator": demo.generator}
    with live(make_services(demo.reranker, **parts)) as server:
        yield server


def in_order(scores: dict[Any, float]) -> list[tuple[Any, float]]:
    return sorted(scores.items(), key=lambda item: -item[1])


class TestCohere:
    def test_ranks_texts(self, module, server, of_texts):
        cohere = module("cohere")
        with cohere.ClientV2("no-key", base_url=server.url) as client:
            answer = client.rerank(
                model=MODEL_NAME, query=QUERY, documents=TEXTS, top_n=3, max_tokens_per_doc=4096
            )
        ranked = [(TEXTS[r.index], r.relevance_score) for r in answer.results]
        assert ranked == in_order(of_texts)[:3]
        assert answer.id

    def test_ranks_pictures_which_it_sends_as_they_are(self, module, server, relevance):
        cohere = module("cohere")
        documents = [{"image": data_uri(d.image), "text": d.caption} for d in CAPTIONED]

        async def rank():
            async with cohere.AsyncClientV2("no-key", base_url=server.url) as client:
                return await client.rerank(model=MODEL_NAME, query=QUERY, documents=documents)

        scores = relevance(CAPTIONED)
        ranked = [(r.index, r.relevance_score) for r in asyncio.run(rank()).results]
        assert ranked == in_order(dict(enumerate(scores)))

    def test_reads_errors(self, module, guarded):
        cohere = module("cohere")
        asked = {"query": QUERY, "documents": TEXTS[:3]}
        with cohere.ClientV2("no-key-of-this", base_url=guarded.url) as client:
            with pytest.raises(cohere.UnauthorizedError) as refused:
                client.rerank(model=MODEL_NAME, **asked)
            assert "API key" in refused.value.body["error"]["message"]
        with cohere.ClientV2(KEY, base_url=guarded.url) as client:
            with pytest.raises(cohere.NotFoundError, match=MODEL_NAME):
                client.rerank(model="rerank-v5.0", **asked)
            with pytest.raises(cohere.core.ApiError) as refused:
                client.rerank(model=MODEL_NAME, query=QUERY, documents=TEXTS)
            assert refused.value.status_code == 413


class TestNvidia:
    @pytest.fixture
    def ranker(self, module):
        """`ranker(server, ...)` is NVIDIA's reranker of LangChain."""
        nvidia = module("langchain_nvidia_ai_endpoints")

        def make(server, **settings):
            return nvidia.NVIDIARerank(
                base_url=f"{server.url}/v1", **{"model": MODEL_NAME, "top_n": 9, **settings}
            )

        return make

    @pytest.fixture
    def passages(self, module):
        Passage = module("langchain_core.documents").Document
        return [
            Passage(page_content=CAPTIONS[0], metadata={"image": data_uri(PICTURES[0])}),
            Passage(page_content=CAPTIONS[1], metadata={"image": data_uri(PICTURES[1]), "n": 1}),
            Passage(page_content="", metadata={"image": data_uri(PICTURES[2])}),
            Passage(page_content=TEXTS[1]),
        ]

    @pytest.mark.slow
    @pytest.mark.parametrize("batch", [32, 3])
    def test_ranks_pictures(self, ranker, passages, logits, server, batch):
        made = ranker(server, max_batch_size=batch, truncate="END")
        ranked = made.compress_documents(passages, QUERY)
        found = [(p.page_content, p.metadata["relevance_score"]) for p in ranked]
        assert found == in_order(
            {p.page_content: logit for p, logit in zip(passages, logits, strict=True)}
        )

    def test_is_asynchronous_too_and_cuts(self, ranker, passages, logits, server):
        ranked = asyncio.run(ranker(server, top_n=1).acompress_documents(passages, QUERY))
        assert [p.metadata["relevance_score"] for p in ranked] == [max(logits)]

    def test_finds_the_model_by_itself(self, ranker, server):
        with pytest.warns(UserWarning, match=f"Default model is set as: {MODEL_NAME}"):
            made = ranker(server, model=None)
        assert [model.id for model in made.available_models] == [MODEL_NAME]

    def test_reads_errors(self, ranker, passages, guarded):
        made = ranker(guarded, api_key=KEY)
        with pytest.raises(Exception, match="413"):
            made.compress_documents(passages, QUERY)
        with pytest.raises(Exception, match="401"):
            ranker(guarded, api_key="no-key-of-this").compress_documents(passages[:1], QUERY)


class TestHaystack:
    @pytest.fixture
    def documents(self, module):
        Content = module("haystack").Document
        return [Content(content=text, meta={"n": n}) for n, text in enumerate(TEXTS)]

    def test_vllm(self, module, server, documents, of_texts):
        rankers = module("haystack_integrations.components.rankers.vllm")
        ranker = rankers.VLLMRanker(
            model=MODEL_NAME,
            api_key=None,
            api_base_url=f"{server.url}/v1",
            extra_parameters={"return_documents": False},
        )
        found = ranker.run(query=QUERY, documents=documents, top_k=3)
        ranker.close()
        ranked = [(document.content, document.score) for document in found["documents"]]
        assert ranked == in_order(of_texts)[:3]
        assert found["meta"]["model"] == MODEL_NAME
        assert found["meta"]["usage"]["total_tokens"] > 0

    def test_jina(self, module, guarded, documents, of_texts):
        secret = module("haystack.utils").Secret.from_token(KEY)
        rankers = module("haystack_integrations.components.rankers.jina")
        ranker = rankers.JinaRanker(MODEL_NAME, secret, base_url=f"{guarded.url}/v1/rerank")
        found = asyncio.run(ranker.run_async(query=QUERY, documents=documents[:3]))
        ranked = [(document.content, document.score) for document in found["documents"]]
        assert ranked == in_order({text: of_texts[text] for text in TEXTS[:3]})

    @pytest.mark.parametrize("kind", ["vllm", "jina"])
    def test_reads_errors(self, module, guarded, documents, kind):
        secret = module("haystack.utils").Secret.from_token(KEY)
        rankers = module(f"haystack_integrations.components.rankers.{kind}")
        if kind == "vllm":
            ranker = rankers.VLLMRanker(model=MODEL_NAME, api_key=secret, api_base_url=guarded.url)
        else:
            ranker = rankers.JinaRanker(MODEL_NAME, secret, base_url=f"{guarded.url}/rerank")
        with pytest.raises(RuntimeError, match="documents"):
            ranker.run(query=QUERY, documents=documents)
        if kind == "vllm":
            ranker.close()


@pytest.mark.parametrize(
    ("provider", "path"),
    [("jina", "/v1/rerank"), ("cohere", "/rerank"), ("text-embeddings-inference", "/rerank")],
)
def test_rerankers(module, server, of_texts, provider, path):
    APIRanker = module("rerankers.models.api_rankers").APIRanker
    ranker = APIRanker(MODEL_NAME, KEY, provider, verbose=0, url=server.url + path)
    ranking = ranker.rank(QUERY, TEXTS, doc_ids=["a", "b", "c", "d"])
    assert [(result.text, result.score) for result in ranking.results] == in_order(of_texts)
    assert ranker.score(QUERY, module("rerankers").Document(TEXTS[1])) == of_texts[TEXTS[1]]


class TestLiteLlm:
    """It cannot be installed beside the other packages: what it sends and reads, written by hand.

    After `llms/hosted_vllm/rerank/transformation.py`: for `hosted_vllm/NAME` and an `api_base` it
    posts to `{api_base}/rerank`, leaves out what is None, and of an answer reads `id`, the results'
    `index`, `relevance_score` and `document.text`, and `usage.total_tokens`.
    """

    @pytest.mark.parametrize("base", ["", "/v1"])
    def test_ranks_texts_and_pictures(self, client, relevance, base):
        documents = [TEXTS[0], {"image": data_uri(PICTURES[1])}, TEXTS[1]]
        body = {
            "model": MODEL_NAME,
            "query": QUERY,
            "documents": documents,
            "top_n": 3,
            "return_documents": True,
            "max_tokens_per_doc": 512,
            "truncate_prompt_tokens": -1,
            "truncation_side": "left",
        }
        answer = client.post(f"{base}/rerank", json=body).json()
        scores = relevance(
            [Document(text=TEXTS[0]), Document(PICTURES[1]), Document(text=TEXTS[1])]
        )
        found = [(int(r["index"]), float(r["relevance_score"])) for r in answer["results"]]
        assert found == in_order(dict(enumerate(scores)))
        assert isinstance(answer["id"], str)
        assert answer["usage"]["total_tokens"] > 0
        texts = {r["index"]: r.get("document", {}).get("text") for r in answer["results"]}
        # It makes "None" of a text that is null
        assert texts == {0: TEXTS[0], 1: None, 2: TEXTS[1]}
        assert "text" not in next(r for r in answer["results"] if r["index"] == 1)["document"]

    def test_fields_of_documents_are_refused_by_name(self, client):
        body = {"model": MODEL_NAME, "query": QUERY, "documents": TEXTS, "rank_fields": ["title"]}
        answer = client.post("/rerank", json=body)
        assert answer.status_code == 422
        assert "rank_fields" in answer.json()["detail"]


class TestOurs:
    DOCUMENTS = (
        Document(PICTURES[0], CAPTIONS[0]),
        Document(PICTURES[1], CAPTIONS[1], "tower"),
        Document(text=TEXTS[1], id="text"),
        Document(parts=[TEXTS[3], PICTURES[2], "before it"]),
    )

    def test_ranks_as_the_library_does(self, server, tiny_reranker):
        ranked = tiny_reranker.rank(QUERY, self.DOCUMENTS, top_k=3, threshold=0.03, progress=False)
        with Client(server.url) as client:
            answer = client.rerank(QUERY, self.DOCUMENTS, top_k=3, threshold=0.03)
        assert [(r.index, r.document, r.score, r.raw, r.kept) for r in answer.results] == [
            (r.index, r.document, r.score, r.raw, r.kept) for r in ranked
        ]
        assert [r.id for r in answer.results] == [r.document.id for r in ranked]
        assert answer.model == MODEL_NAME
        assert answer.usage.prompt_tokens > answer.usage.cached_tokens
        assert {"queue", "score", "total"} <= answer.timings.keys()

    @pytest.mark.parametrize("text_first", [False, True])
    def test_pixels_and_queries_of_pictures(self, server, tiny_reranker, text_first):
        image = Image.effect_noise((40, 30), 90).convert("RGBA")
        text, picture = "Which shows the same?", Image.open(BytesIO(PICTURES[1]))
        mixed = {"text": text, "image": picture} if text_first else {"image": picture, "text": text}
        pairs = [(mixed, Document(image)), (QUERY, image), (picture, Document(text=TEXTS[0]))]

        async def score():
            async with AsyncClient(server.url) as client:
                return await client.score(pairs)

        assert list(asyncio.run(score()).scores) == tiny_reranker.score(pairs).tolist()

    def test_says_what_is_wrong(self, guarded):
        with Client(guarded.url, api_key="no-key-of-this") as client:
            client.health()
            with pytest.raises(ApiError, match=r"401: .*API key"):
                client.models()
        with Client(guarded.url, api_key=KEY) as client:
            assert client.models() == (MODEL_NAME,)
            with pytest.raises(ApiError) as refused:
                client.rerank(QUERY, self.DOCUMENTS)
            assert (refused.value.status, refused.value.kind) == (413, "too_large")
            with pytest.raises(ApiError) as refused:
                client.rerank(QUERY, [self.DOCUMENTS[0], {"id": "never put"}])
            assert (refused.value.status, refused.value.param) == (404, "documents[1].id")
            assert refused.value.request_id
            truncated = PICTURES[0][:-30]
            with pytest.raises(ApiError) as refused:
                client.rerank(QUERY, [self.DOCUMENTS[0], truncated])
            assert refused.value.status == 422
            assert refused.value.param.startswith("documents[1]")

    def test_asks_again_when_there_is_room(self, make_services, tiny_reranker, gate):
        expected = tiny_reranker.rank(QUERY, self.DOCUMENTS, progress=False)
        with (
            live(make_services(gate, max_pairs=len(self.DOCUMENTS))) as server,
            Client(server.url) as client,
            ThreadPoolExecutor(3) as threads,
        ):
            asked = [threads.submit(client.rerank, QUERY, self.DOCUMENTS) for _ in range(3)]
            was_refused = self.wait_for_refusal(server)
            gate.let_all_pass()
            answers = [answer.result(30) for answer in asked]
        assert was_refused
        for answer in answers:
            assert [r.raw for r in answer.results] == [r.raw for r in expected]

    @staticmethod
    def wait_for_refusal(server):
        """Whether the server refused a request, within half a minute."""
        until = time.monotonic() + 30
        while b'status="429"' not in server.services.metrics.text():
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def test_keeps_documents(self, server, tiny_reranker):
        names = ["ours/a b?", "ours/ü", "ours/c", "ours/d"]
        bodies = [
            {"image": PICTURES[0], "caption": CAPTIONS[0]},
            {"image": Image.open(BytesIO(PICTURES[1]))},
            {"text": TEXTS[1]},
            {"parts": [TEXTS[3], PICTURES[2], "before it"]},
        ]
        documents = [Document(**body, id=id) for body, id in zip(bodies, names, strict=True)]
        known = [{"id": id} for id in names]
        with Client(server.url) as client:
            kept = client.put_documents(documents)
            assert [document.id for document in kept.documents] == names
            again = client.put_documents(documents)
            assert [document.prefix for document in again.documents] == ["known"] * 4
            scores = client.score([(QUERY, document) for document in known])
            assert (
                list(scores.scores)
                == tiny_reranker.score([(QUERY, document) for document in documents]).tolist()
            )
            assert scores.usage.cached_tokens > 0
            assert scores.built == 0
            found = client.get_document(names[0])
            assert (found.id, found.source, found.text) == (names[0], "stored", CAPTIONS[0])
            assert (found.num_pictures, found.warm) == (1, True)
            first = client.list_documents(after="ours/", limit=3)
            rest = client.list_documents(after=first.documents[-1].id, limit=3)
            assert (first.has_more, rest.has_more) == (True, False)
            listed = [document.id for document in (*first.documents, *rest.documents)]
            assert listed == sorted(names)
            assert [client.delete_document(id) for id in names] == [True] * 4
            assert not client.delete_document(names[0])
            with pytest.raises(ApiError, match="404"):
                client.get_document(names[0])
            with pytest.raises(ApiError, match=r"404: documents\[0\].id"):
                client.rerank(QUERY, known)

    @pytest.mark.slow
    def test_is_told_of_a_body_that_is_too_large(self, make_services):
        noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)

        async def ask(url):
            async with AsyncClient(url) as client:
                await client.rerank(QUERY, [noise])

        with live(make_services(max_body_bytes=100_000)) as server:
            with (
                Client(server.url) as client,
                pytest.raises(ApiError, match=r"413: the body is larger than 97\.7 KiB"),
            ):
                client.rerank(QUERY, [noise])
            with pytest.raises(ApiError, match="413"):
                asyncio.run(ask(server.url))

    def test_one_bad_document_keeps_none(self, server):
        documents = [Document(text="one", id="good"), Document(PICTURES[0][:-30], id="bad")]
        with Client(server.url) as client:
            with pytest.raises(ApiError) as refused:
                client.put_documents(documents)
            assert refused.value.status == 422
            assert refused.value.param.startswith("documents[1]")
            with pytest.raises(ApiError, match="404"):
                client.get_document("good")

    def test_searches_and_answers_as_the_library_does(self, with_index, demo):
        rag = RagVL(demo.retriever, demo.reranker, demo.generator, num_candidates=6)
        question = demo.examples[0]
        expected = rag.answer(question, max_new_tokens=8)
        ranked = [(r.index, r.score, r.raw, r.kept, r.document.caption) for r in expected.ranked]

        async def ask():
            async with AsyncClient(with_index.url) as client:
                return await asyncio.gather(
                    client.search(question, num_candidates=6),
                    client.search(question, num_candidates=6, top_k=1, threshold="natural"),
                    client.answer(question, num_candidates=6, max_new_tokens=8),
                )

        found, cut, answer = asyncio.run(ask())
        for results in (found.results, answer.results):
            assert [(r.index, r.score, r.raw, r.kept, r.text) for r in results] == ranked
            assert [r.retrieval_score for r in results] == [
                expected.retrieved[r.index].score for r in results
            ]
        assert [r.index for r in cut.results] == [ranked[0][0]]
        assert cut.threshold == 0.5
        assert (answer.text, answer.grounded) == (expected.text, expected.grounded)
        assert [r.index for r in answer.evidence] == [r.index for r in expected.evidence]
        assert {"retrieve", "score", "generate", "total"} <= answer.timings.keys()

    def test_answers_from_what_it_is_given(self, with_index, demo):
        question = demo.examples[1]
        documents = [hit.document for hit in demo.retriever.retrieve(question, 3)]
        given = [{"id": documents[0].id}, *documents[1:]]
        ranked = demo.reranker.rank(question, documents, threshold=0.0, progress=False)
        evidence = [r.document for r in ranked[:2]]
        with Client(with_index.url) as client:
            answer = client.answer(question, documents=given, threshold=0.0, max_new_tokens=8)
            assert [r.document for r in answer.evidence] == [given[r.index] for r in ranked[:2]]
            assert answer.text == demo.generator.answer(question, evidence, max_new_tokens=8)
            with pytest.raises(ApiError, match="409"):
                client.delete_document(documents[0].id)
            assert client.get_document(documents[0].id).source == "index"

    def test_a_server_without_an_index(self, server):
        with Client(server.url) as client, pytest.raises(ApiError, match="index"):
            client.search(QUERY)
