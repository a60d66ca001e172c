from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from integrations.conftest import Asked
from later import Later
from PIL import Image
from torch.utils.data import DataLoader

from ragvl import Document, Query, Reranker
from ragvl.server.settings import TINY_RERANKER
from ragvl.server.stages import Stages

models = Later("mteb.models")
wrappers = Later("mteb.models.search_wrappers")
integration = Later("ragvl.integrations.mteb")

OF_A_TASK: dict[str, Any] = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}


def loader(rows: list[dict[str, Any]], batch_size: int = 3) -> DataLoader[Any]:
    """Batches as mteb makes them: a list a column."""

    def columns(batch: list[dict[str, Any]]) -> dict[str, list[Any]]:
        return {name: [row[name] for row in batch] for name in batch[0]}

    return DataLoader(rows, batch_size=batch_size, collate_fn=columns)  # type: ignore[arg-type]


def opened(document: Document) -> Image.Image:
    """Another object each time, as from a data set."""
    assert isinstance(document.image, bytes)
    return Image.open(BytesIO(document.image))


@pytest.mark.slow
def test_a_picture_that_comes_again_is_known(asked: Asked, demo: Stages) -> None:
    documents = asked.documents[:4]
    questions = [asked.question, *demo.examples[1:3]]
    pairs = [(question, document) for question in questions for document in documents]
    cached = Reranker(demo.reranker.mllm, prefix_cache="16MiB")
    model = integration.RagVLCrossEncoder(cached)
    assert isinstance(model, models.CrossEncoderProtocol)
    scores = model.predict(
        loader([{"text": question} for question, _ in pairs]),
        loader([{"id": d.id, "text": d.caption, "image": opened(d)} for _, d in pairs]),
        show_progress_bar=False,
        batch_size=3,
        **OF_A_TASK,
    )
    expected = demo.reranker.score(pairs, progress=False, raw=True).numpy()
    assert scores.dtype == np.float32
    assert np.array_equal(scores, expected)
    assert len(cached.prefix_cache) == len(documents)
    assert model.predict(loader([]), loader([]), **OF_A_TASK).shape == (0,)


@pytest.mark.slow
def test_texts_and_queries_with_pictures(asked: Asked, demo: Stages) -> None:
    model = integration.RagVLCrossEncoder(demo.reranker)
    texts = ["Velmora has a red tower.", "Ashby has a blue mill."]
    scores = model.predict(
        loader([{"text": asked.question}] * 2),
        loader([{"text": text} for text in texts]),
        show_progress_bar=False,
        **OF_A_TASK,
    )
    pairs = [(asked.question, Document(text=text)) for text in texts]
    assert np.array_equal(scores, demo.reranker.score(pairs, raw=True).numpy())
    query = {"text": asked.question, "image": opened(asked.documents[0])}
    rows = loader([query]), loader([{"text": texts[0]}])
    both = Query(asked.question, opened(asked.documents[0]))
    expected = demo.reranker.score([(both, Document(text=texts[0]))], raw=True)
    assert np.array_equal(model.predict(*rows, **OF_A_TASK), expected.numpy())
    assert expected[0] != scores[0]


def test_what_cannot_be_scored(asked: Asked, demo: Stages) -> None:
    model = integration.RagVLCrossEncoder(demo.reranker)
    query = {"text": asked.question}
    with pytest.raises(ValueError, match="cannot score audio"):
        model.predict(loader([query]), loader([{"audio": b"", "text": "a"}]), **OF_A_TASK)
    with pytest.raises(ValueError, match=r"documents\[1\] \(d2\) has neither"):
        rows = [{"id": "d1", "text": "a text"}, {"id": "d2", "text": ""}]
        model.predict(loader([query] * 2), loader(rows), **OF_A_TASK)
    with pytest.raises(ValueError):  # more queries than documents
        model.predict(loader([query] * 2), loader([{"text": "a"}]), **OF_A_TASK)
    with pytest.raises(ValueError, match="device cannot be set"):
        integration.RagVLCrossEncoder(demo.reranker, device="cpu")


def test_results_are_kept_by_what_they_depend_on(demo: Stages) -> None:
    meta = integration.RagVLCrossEncoder(
        str(TINY_RERANKER), device="cpu", dtype="float32"
    ).mteb_model_meta
    assert meta.name == "ragvl/tiny-reranker"
    assert meta.is_cross_encoder and set(meta.modalities) == {"text", "image"}
    assert meta.revision == integration.RagVLCrossEncoder(demo.reranker).mteb_model_meta.revision
    shorter = Reranker(demo.reranker.mllm, template="plain")
    assert meta.revision != integration.RagVLCrossEncoder(shorter).mteb_model_meta.revision


@pytest.mark.slow
def test_evaluates_what_a_retriever_found(
    run_example: Callable[[str], dict[str, Any]],
    demo: Stages,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = run_example("with_mteb.py")
    assert 0 < example["first"] < example["second"] <= 1
    assert "reranked" in capsys.readouterr().out
    # The same way that mteb goes, for two of the questions
    split = example["reranking"].dataset["default"]["test"]
    queries = split["queries"].select(range(2))
    searched = wrappers.SearchCrossEncoderWrapper(example["reranker"])
    of_a_task = {**OF_A_TASK, "task_metadata": example["task"].metadata}
    kwargs: dict[str, Any] = {"encode_kwargs": {"show_progress_bar": False}, **of_a_task}
    searched.index(split["corpus"], **kwargs)
    found = searched.search(queries, top_k=8, top_ranked=split["top_ranked"], **kwargs)
    rows = {row["id"]: row for row in split["corpus"]}
    for query in queries:
        ids = split["top_ranked"][query["id"]]
        pairs = [(query["text"], Document(rows[id]["image"], rows[id]["text"])) for id in ids]
        expected = demo.reranker.score(pairs, progress=False, raw=True).tolist()
        assert found[query["id"]] == dict(zip(ids, expected, strict=True))
