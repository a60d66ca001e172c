"""What the callables make of a batch, in each of Ray Data's formats; Ray itself is not needed."""

from __future__ import annotations

import base64
import math
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_encoders import save_checkpoint, save_text_encoder

from ragvl import Document, PrefixCache, Reranker
from ragvl.blocks import Done, MapBlocks, Works, timed
from ragvl.data.images import DocumentError
from ragvl.data.query import Query
from ragvl.distributed import (
    EmbedDocuments,
    RerankPairs,
    VersionMismatchError,
    WarmPrefixes,
    versions,
)
from ragvl.distributed.batches import UnknownColumnError
from ragvl.distributed.warm import warm_documents, warming_works
from ragvl.distributed.worker import BlockWorker, load_works
from ragvl.evaluation.works import score_pairs
from ragvl.server.settings import TINY_RERANKER

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")

Rows = dict[str, list[Any]]
QUERIES = ("Which is red?", "What is the tower's color?", "a boat")


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


FORMATS: dict[str, Callable[[Rows], Any]] = {
    "pandas": lambda rows: pd.DataFrame(rows),
    "pyarrow": lambda rows: pa.table(rows),
    "numpy": lambda rows: {name: objects(values) for name, values in rows.items()},
}


def values(batch: Any, name: str) -> list[Any]:
    """A column that was added, null where it is missing."""
    column = batch[name]
    listed = column.to_pylist() if isinstance(batch, pa.Table) else list(column)
    return [None if one is None or one != one else one for one in listed]  # NaN is not NaN


@pytest.fixture(scope="session")
def rerank() -> RerankPairs:
    return RerankPairs(TINY_RERANKER, device="cpu", dtype="float32", prefix_cache="64MiB")


@pytest.mark.parametrize("form", FORMATS)
def test_pairs_get_bitwise_the_scores_of_one_process(
    form: str, rerank: RerankPairs, tiny_reranker: Reranker, pictures: list[Path]
) -> None:
    rows = [(query, str(path), path.stem) for path in pictures[:4] for query in QUERIES]
    query, image, caption = map(list, zip(*rows, strict=True))
    batch = FORMATS[form]({"query": query, "image": image, "caption": caption, "other": query})
    found = rerank(batch)
    assert type(found) is type(batch) and values(found, "other") == query
    expected = tiny_reranker.score(
        [(asked, Document(path, caption=text)) for asked, path, text in rows], progress=False
    )
    assert np.array_equal(np.array(values(found, "score"), np.float32), expected.numpy())
    assert values(found, "error") == [None] * len(rows)


@pytest.mark.parametrize("form", FORMATS)
def test_a_row_that_cannot_be_used_has_its_error_and_the_others_their_scores(
    form: str, rerank: RerankPairs, pictures: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:50])
    images = [str(pictures[0]), str(broken), "gone.png", None, str(pictures[1])]
    queries = ["a", "a", "a", "a", None]
    found = rerank(FORMATS[form]({"query": queries, "image": images}))
    scores, errors = values(found, "score"), values(found, "error")
    assert [score is None for score in scores] == [False, True, True, True, True]
    assert errors[0] is None
    for error, part in zip(errors[1:], ("broken.png", "gone.png", "one of", "query"), strict=True):
        assert part in error


def forms_of(path: Path) -> dict[str, list[Any]]:
    data = path.read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {
        "path": [str(path)],
        "bytes": [data],
        "data URL": [url],
        "cell": [{"bytes": data, "path": None}],
        "PIL": [Image.open(path).convert("RGB")],
        "array": [np.asarray(Image.open(path).convert("RGB"))],
    }


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["path", "bytes", "data URL", "cell", "PIL", "array"])
def test_pictures_of_every_form_score_alike(
    form: str, kind: str, rerank: RerankPairs, pictures: list[Path]
) -> None:
    if form == "pyarrow" and kind in ("PIL", "array"):
        pytest.skip("a table of Ray's own types; see the test on a cluster")
    image = forms_of(pictures[2])[kind]
    found = rerank(FORMATS[form]({"query": [QUERIES[0]], "image": image}))
    expected = rerank.reranker.score([(QUERIES[0], pictures[2])]).tolist()
    assert values(found, "score") == expected


@pytest.mark.parametrize("form", FORMATS)
def test_documents_are_those_of_lines_of_json(
    form: str, rerank: RerankPairs, pictures: list[Path]
) -> None:
    parts = [{"text": "A red tower."}, {"image": str(pictures[0])}]
    rows = {
        "question": [QUERIES[0]] * 3,
        "picture": [str(pictures[0]), None, None],
        "words": [None, "The tower is red.", None],
        "parts": [None, None, parts],
    }
    named = RerankPairs(
        TINY_RERANKER,
        query_column="question",
        image_column="picture",
        text_column="words",
        device="cpu",
        dtype="float32",
        prefix_cache="64MiB",
    )
    found = named(FORMATS[form](rows))
    documents = [
        Document(pictures[0]),
        Document(text="The tower is red."),
        Document(parts=["A red tower.", pictures[0]]),
    ]
    expected = rerank.reranker.score([(QUERIES[0], one) for one in documents]).tolist()
    assert values(found, "score") == expected and values(found, "error") == [None] * 3


def test_a_column_that_is_not_there_is_refused_by_name(rerank: RerankPairs) -> None:
    with pytest.raises(UnknownColumnError, match=r"no column 'query', but \['image'\]"):
        rerank(FORMATS["pandas"]({"image": ["a.png"]}))
    with pytest.raises(UnknownColumnError, match=r"no column has documents: there is \['query'\]"):
        rerank(FORMATS["pyarrow"]({"query": ["a"]}))


@pytest.mark.parametrize("form", FORMATS)
def test_a_batch_without_rows_stays_one(form: str, rerank: RerankPairs) -> None:
    for rows in ({}, {"query": [], "image": []}):
        found = rerank(FORMATS[form](rows))
        assert values(found, "score") == values(found, "error") == []


@pytest.mark.parametrize("form", FORMATS)
def test_prefixes_are_built_once_for_a_document_however_often_it_stands_in_a_batch(
    form: str, pictures: list[Path], tmp_path: Path
) -> None:
    warm = WarmPrefixes(
        TINY_RERANKER,
        PrefixCache("scratch", folder=tmp_path / "cache"),
        device="cpu",
        dtype="float32",
    )
    images = [str(pictures[0]), str(pictures[1]), str(pictures[0]), "gone.png"]
    batch = FORMATS[form]({"image": images, "caption": ["one", "two", "one", None]})
    found = warm(batch)
    assert values(found, "prefix") == ["built", "built", "known", None]
    assert values(found, "error")[:3] == [None] * 3 and "gone.png" in values(found, "error")[3]
    assert len(list(tmp_path.glob("cache/??/*.safetensors"))) == 2
    assert values(warm(batch), "prefix") == ["known"] * 3 + [None]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("reads", ["pictures", "texts"])
def test_documents_get_the_vectors_of_one_process(
    form: str, reads: Any, pictures: list[Path], tmp_path: Path
) -> None:
    make = save_text_encoder if reads == "texts" else lambda folder: save_checkpoint(folder, "clip")
    embed = EmbedDocuments(make(tmp_path), reads=reads, device="cpu")
    images = [str(pictures[0]), "gone.png", str(pictures[1])]
    captions = ["a red square", None, "two blue circles"]
    found = embed(FORMATS[form]({"image": images, "caption": captions}))
    documents = [Document(images[i], caption=captions[i]) for i in (0, 2)]
    expected = embed.encoder.encode_documents(documents, progress=False)
    column = found["vector"].to_pylist() if form == "pyarrow" else list(found["vector"])
    assert column[1] is None
    assert np.array_equal(np.array([column[0], column[2]], np.float32), expected)
    errors = values(found, "error")
    assert errors[0] is None and errors[1] is not None and errors[2] is None


def test_other_versions_than_the_drivers_are_refused_by_name() -> None:
    others = {**versions(), "torch": "1.0", "python": "2.7"}
    with pytest.raises(VersionMismatchError, match=r"node .* python .*2\.7.* torch .*1\.0"):
        RerankPairs(TINY_RERANKER, versions=others)


@pytest.mark.parametrize("callable", [EmbedDocuments, RerankPairs])
def test_a_model_that_is_not_there_is_named_with_the_node(callable: Any, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"on node .*{tmp_path.name}/gone"):
        callable(tmp_path / "gone")


@pytest.mark.slow
def test_a_worker_whose_model_is_gone_or_another_says_which_node_that_is(
    tmp_path: Path, pictures: list[Path]
) -> None:
    """What an actor does before it works."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_RERANKER, folder)
    reranker = Reranker.from_pretrained(folder, device="cpu")
    pickled = pickle.dumps({"score": partial(score_pairs, reranker)})

    def load(versions: dict[str, str]) -> Works:
        return load_works(lambda: pickled, versions, torch.get_num_threads())

    pairs = [(Query(QUERIES[0]), Document(pictures[0])), (Query(QUERIES[0]), None)]
    (score, missing), _ = BlockWorker().do(partial(load, versions()), "score", pairs)
    assert score == reranker.score([pairs[0]], raw=True).item() and math.isnan(missing)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"on node .*{folder}.*was changed"):
        load(versions())
    shutil.rmtree(folder)
    with pytest.raises(OSError, match=f"on node .*{folder}"):
        load(versions())
    with pytest.raises(VersionMismatchError, match="ragvl"):
        load({**versions(), "ragvl": "0"})


def in_turn(*works: Works) -> MapBlocks:
    """Several processes' works, a block each."""

    def map_blocks(work: str, blocks: Iterable[Any]) -> Iterator[Done]:
        turns = cycle(works)
        return (timed(next(turns)[work], block) for block in blocks)

    return map_blocks


@pytest.mark.slow
@pytest.mark.parametrize("first", ["kv", "features"])
def test_what_the_first_prefix_decides_to_keep_all_processes_keep(
    first: str, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though each would measure something else."""
    seconds = cycle([0.0, math.inf] if first == "kv" else [math.inf, 0.0])
    monkeypatch.setattr("ragvl.prefix_cache.tiers._loading_seconds", lambda *_: next(seconds))
    cache = PrefixCache("scratch", folder=tmp_path)
    reranker = Reranker.from_pretrained(TINY_RERANKER, device="cpu", prefix_cache=cache)
    works = [pickle.loads(pickle.dumps(warming_works(reranker))) for _ in range(2)]
    documents = [Document(path, caption=f"{n}") for n in range(8) for path in pictures]
    documents += [documents[3], Document("gone.png"), documents[0]]
    report = warm_documents(reranker, documents, in_turn(*works), on_error="skip", progress=False)
    assert (report.built, report.known, report.skipped) == (len(documents) - 3, 2, 1)
    again = warm_documents(reranker, documents[:50], in_turn(*works), progress=False)
    assert (again.built, again.known, again.skipped) == (0, 50, 0)
    kinds = [one["warm"].args[0].prefix_cache.below.kind for one in works]
    assert kinds == [first, first]
    with pytest.raises(DocumentError, match=r"gone\.png"):
        warm_documents(reranker, documents, in_turn(*works), progress=False)


def test_without_ray_the_message_says_what_to_install() -> None:
    """In a process of its own, since it is imported here."""
    program = (
        "import sys; sys.modules['ray'] = None\n"
        "import ragvl.distributed; assert 'torch' not in sys.modules\n"
        "try: ragvl.distributed.connected\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == 'ray is not installed: pip install "ragvl[ray]"', done.stderr


@pytest.mark.slow
def test_an_address_where_nobody_listens_is_refused() -> None:
    """In a process of its own, which is connected to no cluster."""
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{free.getsockname()[1]}"
        program = f"from ragvl.distributed import connected\nwith connected({address!r}): pass"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert f"ClusterError: no work on the cluster '{address}': " in said and "refused" in said
