from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_files import write_picture
from integrations.conftest import Asked
from later import Later

from ragvl import Document as Ours
from ragvl.server.stages import Stages

pa = Later("pyarrow")
lancedb = Later("lancedb")
index = Later("lancedb.index")
integration = Later("ragvl.integrations.lancedb")


@pytest.fixture(scope="module")
def table(
    asked: Asked, demo: Stages, tmp_path_factory: pytest.TempPathFactory
) -> lancedb.table.Table:
    vectors = demo.retriever.encoder.encode_documents(asked.documents, progress=False)
    rows = [
        {"id": one.id, "text": one.caption, "image": one.image, "vector": vector}
        for one, vector in zip(asked.documents, vectors, strict=True)
    ]
    table = lancedb.connect(tmp_path_factory.mktemp("lance")).create_table("pictures", rows)
    table.create_index("text", config=index.FTS())
    return table


@pytest.fixture(scope="module")
def vector(asked: Asked, demo: Stages) -> Any:
    return demo.retriever.encoder.encode_queries([asked.question])[0]


def scores(found: pa.Table) -> list[tuple[str, float]]:
    assert found.schema.field("_relevance_score").type == pa.float32()
    return list(zip(found["id"].to_pylist(), found["_relevance_score"].to_pylist(), strict=True))


@pytest.mark.slow
def test_orders_what_a_vector_search_found(
    asked: Asked, demo: Stages, table: lancedb.table.Table, vector: Any
) -> None:
    search = table.search(vector, query_type="vector").limit(8)
    found = search.rerank(integration.RagVLReranker(demo.reranker), asked.question).to_arrow()
    assert scores(found) == asked.scores
    given = {row["id"]: row for row in table.to_arrow().to_pylist()}
    for row in found.to_pylist():
        assert row.keys() - given[row["id"]].keys() == {"_relevance_score"}
        assert row.items() >= given[row["id"]].items()
    reranker = integration.RagVLReranker(demo.reranker, return_score="all")
    found = table.search(vector, query_type="vector").rerank(reranker, asked.question).to_arrow()
    assert scores(found) == asked.scores and "_distance" in found.column_names


def test_orders_what_a_full_text_search_found(
    asked: Asked, demo: Stages, table: lancedb.table.Table
) -> None:
    search = table.search(asked.question, query_type="fts").limit(8)
    expected = {row["id"] for row in search.to_list()}
    found = search.rerank(integration.RagVLReranker(demo.reranker)).to_arrow()
    assert scores(found) == [(id, score) for id, score in asked.scores if id in expected]
    assert 0 < len(found) < 8


@pytest.mark.parametrize("return_score", ["relevance", "all"])
def test_orders_what_a_hybrid_search_found_each_once(
    asked: Asked, demo: Stages, table: lancedb.table.Table, vector: Any, return_score: Any
) -> None:
    search = table.search(query_type="hybrid").vector(vector).text(asked.question).limit(8)
    reranker = integration.RagVLReranker(demo.reranker, return_score=return_score)
    found = search.rerank(reranker).to_arrow()
    assert scores(found) == asked.scores
    assert ("_score" in found.column_names) == (return_score == "all")


def test_finds_nothing(asked: Asked, demo: Stages, table: lancedb.table.Table, vector: Any) -> None:
    reranker = integration.RagVLReranker(demo.reranker)
    search = table.search(vector, query_type="vector").where("id = 'none'")
    assert scores(search.rerank(reranker, asked.question).to_arrow()) == []
    search = table.search("nothingofthesort", query_type="fts")
    assert scores(search.rerank(reranker).to_arrow()) == []
    search = table.search(query_type="hybrid").vector(vector).text("nothingofthesort").limit(8)
    assert scores(search.rerank(reranker).to_arrow()) == [
        (one.document.id, one.score)
        for one in demo.reranker.rank("nothingofthesort", asked.documents, progress=False)
    ]


def test_pictures_in_any_form_and_texts(asked: Asked, demo: Stages, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", "red")
    data = path.read_bytes()
    reranker = integration.RagVLReranker(demo.reranker, column="caption", image_column="page")
    cells = [[data, None], [str(path), None], [{"bytes": data, "path": None}, None]]
    pairs = [(asked.question, Ours(data, "a caption")), (asked.question, Ours(text="a text"))]
    expected = demo.reranker.score(pairs).tolist()
    for pages in cells:
        rows = pa.table({"id": ["p", "t"], "caption": ["a caption", "a text"], "page": pages})
        found = reranker.rerank_vector(asked.question, rows)
        assert dict(scores(found)) == dict(zip(["p", "t"], expected, strict=True))
    pictures = integration.RagVLReranker(demo.reranker, column=None, image_column="page")
    (score,) = demo.reranker.score([(asked.question, Ours(data))]).tolist()
    found = pictures.rerank_fts(asked.question, pa.table({"id": ["p"], "page": [data]}))
    assert scores(found) == [("p", score)]


def test_refuses_by_name(asked: Asked, demo: Stages) -> None:
    reranker = integration.RagVLReranker(demo.reranker)
    rows = pa.table({"text": ["a caption", "another"]})
    with pytest.raises(ValueError, match=r"no column 'image'.*they have text"):
        reranker.rerank_vector(asked.question, rows)
    for page, reason in (("missing.png", "there is no such file"), ("https://a/b.png", "URL")):
        pages = rows.append_column("image", [[None, page]])
        with pytest.raises(ValueError, match=rf"documents\[1\].*{reason}"):
            reranker.rerank_vector(asked.question, pages)
    empty = pa.table({"text": ["a", None], "image": pa.nulls(2, pa.binary())})
    with pytest.raises(ValueError, match=r"documents\[1\] has neither"):
        reranker.rerank_fts(asked.question, empty)
    with pytest.raises(ValueError, match="nothing to rank by"):
        integration.RagVLReranker(demo.reranker, None, None)
    with pytest.raises(ValueError, match="relevance"):
        integration.RagVLReranker(demo.reranker, return_score="some")  # type: ignore[arg-type]


@pytest.mark.slow
def test_retrieves_reranks_and_answers(
    run_example: Callable[[str], dict[str, Any]],
    demo: Stages,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = run_example("with_lancedb.py")
    question, found = example["question"], example["found"]
    assert len(found) == 20
    ours = [demo.retriever.get(row["id"]) for row in found]
    ranked = demo.reranker.rank(question, ours, progress=False)
    expected = [(one.document.id, one.score) for one in ranked]
    assert [(row["id"], row["_relevance_score"]) for row in found] == expected
    evidence = [one.document for one in ranked[:2] if one.kept]
    answer = demo.generator.answer(question, evidence)
    assert capsys.readouterr().out.splitlines()[-1] == answer
