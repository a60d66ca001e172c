"""sentence-transformers' CrossEncoder on the same checkpoint: the same calls, types and orders."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baselines import CrossEncoderBaseline
from models import write_model
from PIL import Image
from sentence_transformers import CrossEncoder
from shapes import SHAPES

from ragvl import Document, RankedDocument, Reranker, fast_rerank

QUERY = "Who wrote 'To Kill a Mockingbird'?"  # of CrossEncoder.rank's documented example
CAPTIONS = ["A novel by Harper Lee", "Moby-Dick", "Harper Lee, born in 1926 in Monroeville", "Emma"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    write_model(folder, SHAPES["tiny"])
    return folder


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Reranker:
    return Reranker.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def cross_encoder(folder: Path, reranker: Reranker) -> CrossEncoder:
    return CrossEncoderBaseline(folder, reranker).model


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (48, 60, 3), np.uint8) for _ in CAPTIONS]
    return [
        {"image": Image.fromarray(picture), "text": caption}
        for picture, caption in zip(pictures, CAPTIONS, strict=True)
    ]


@pytest.fixture
def paths(documents: list[dict[str, Any]], tmp_path: Path) -> list[str]:
    paths = []
    for number, document in enumerate(documents):
        paths.append(str(tmp_path / f"{number}.png"))
        document["image"].save(paths[-1])
    return paths


PREDICT: dict[str, Callable[[Any, list], Any]] = {  # of the documented keywords
    "a list of pairs": lambda model, pairs: model.predict(pairs),
    "sentences": lambda model, pairs: model.predict(sentences=pairs),
    "one pair": lambda model, pairs: model.predict(pairs[0]),
    "one pair as a list": lambda model, pairs: model.predict(list(pairs[0])),
    "a tuple of lists": lambda model, pairs: model.predict(tuple(map(list, pairs))),
    "a tensor": lambda model, pairs: model.predict(pairs, convert_to_tensor=True),
    "one tensor": lambda model, pairs: model.predict(pairs[0], convert_to_tensor=True),
    "tensors": lambda model, pairs: model.predict(pairs, convert_to_numpy=False),
    "no pairs": lambda model, _: model.predict([]),
    "no pairs, a tensor": lambda model, _: model.predict([], convert_to_tensor=True),
    "every default": lambda model, pairs: model.predict(
        pairs,
        prompt_name=None,
        prompt=None,
        batch_size=2,
        show_progress_bar=False,
        activation_fn=torch.nn.Sigmoid(),
        apply_softmax=False,
        convert_to_numpy=True,
        convert_to_tensor=False,
        device="cpu",
        pool=None,
        chunk_size=None,
    ),
    "raw": lambda model, pairs: model.predict(pairs, activation_fn=torch.nn.Identity()),
    "raw, one pair": lambda model, pairs: model.predict(
        pairs[0], activation_fn=torch.nn.Identity(), convert_to_tensor=True
    ),
    "a function": lambda model, pairs: model.predict(pairs, activation_fn=torch.tanh),
    "no workers": lambda model, pairs: model.predict(pairs, num_workers=0),
}


def dtypes(scores: Any) -> list[Any]:
    return [score.dtype for score in (scores if isinstance(scores, list) else [scores])]


@pytest.mark.parametrize("call", PREDICT.values(), ids=PREDICT)
def test_predict_is_cross_encoders(
    call: Callable[[Any, list], Any],
    reranker: Reranker,
    cross_encoder: CrossEncoder,
    documents: list[dict[str, Any]],
) -> None:
    pairs = [(QUERY, document) for document in documents]
    ours, theirs = call(reranker, pairs), call(cross_encoder, pairs)
    assert type(ours) is type(theirs)
    assert np.shape(ours) == np.shape(theirs)
    if 0 not in np.shape(ours):
        assert dtypes(ours) == dtypes(theirs)  # CrossEncoder's empty array is of float64
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_rank_is_cross_encoders(
    reranker: Reranker, cross_encoder: CrossEncoder, documents: list[dict[str, Any]]
) -> None:
    for arguments in ((), (2,), (None, True), (3, True)):
        ours = reranker.rank(QUERY, documents, *arguments, batch_size=32, show_progress_bar=False)
        theirs = cross_encoder.rank(QUERY, documents, *arguments)
        assert [dict(result).keys() for result in ours] == [result.keys() for result in theirs]
        assert [list(result) for result in ours] == [list(result) for result in theirs]
        for result, expected in zip(ours, theirs, strict=True):
            assert result["corpus_id"] == expected["corpus_id"]
            assert result["score"] == pytest.approx(expected["score"], abs=1e-5)
            assert {name: type(result[name]) for name in result} == {
                name: type(value) for name, value in expected.items()
            }
            assert result.get("text") is expected.get("text")


def test_a_result_is_a_mapping_and_a_frozen_dataclass(
    reranker: Reranker, documents: list[dict[str, Any]]
) -> None:
    plain, *_ = reranker.rank(QUERY, documents)
    assert dict(plain) == {**plain} == {"corpus_id": plain.index, "score": plain.score}
    assert "score" in plain and "text" not in plain and 0 not in plain
    assert plain.get("text", "none") == "none"
    assert len(plain) == 2
    with pytest.raises(KeyError, match="corpus_id"):
        plain["text"]
    with pytest.raises(AttributeError):
        plain.score = 1.0  # type: ignore[misc]
    full, *_ = reranker.rank(QUERY, documents, return_documents=True)
    assert list(full.items()) == [*plain.items(), ("text", documents[full.index])]
    assert isinstance(full, RankedDocument)
    assert full.document.caption == documents[full.index]["text"]


class Column:
    """What a pandas Series has of a list: its truth is undefined, its index may begin anywhere."""

    def __init__(self, values: list) -> None:
        self.values = values

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")

    def __getitem__(self, label: int) -> Any:
        return dict(zip("xyzw", self.values, strict=False))[label]

    def __iter__(self) -> Any:
        return iter(self.values)


class Frame:
    """And a DataFrame: iterating over it gives the names of its columns."""

    columns = ("query", "document")

    def __init__(self, rows: list) -> None:
        self.rows, self.shape = rows, (len(rows), 2)

    def __iter__(self) -> Any:
        return iter(self.columns)

    def itertuples(self, index: bool, name: None) -> Any:
        assert index is False and name is None
        return iter(self.rows)


def test_lists_of_documents_of_every_kind(
    reranker: Reranker, paths: list[str], documents: list[dict[str, Any]]
) -> None:
    expected = [(r.index, r.score) for r in reranker.rank(QUERY, paths)]
    as_arrays = np.stack([np.asarray(document["image"]) for document in documents])
    for given in (
        tuple(paths),
        (path for path in paths),
        np.array(paths),
        np.array(paths, dtype=object),
        Column(paths),
        dict(enumerate(paths)).values(),
        as_arrays,
        [Document(path) for path in paths],
        [{"image": path} for path in paths],
    ):
        ranked = reranker.rank(np.str_(QUERY), given)
        assert [r.index for r in ranked] == [index for index, _ in expected]
        np.testing.assert_allclose([r.score for r in ranked], [s for _, s in expected], atol=1e-6)
    assert [r.index for r in reranker.rank(QUERY, np.array(paths[:1]))] == [0]


def test_lists_of_pairs_of_every_kind(reranker: Reranker, paths: list[str]) -> None:
    pairs = [(QUERY, path) for path in paths]
    expected = reranker.score(pairs)
    for given in (np.array(pairs), np.array(pairs, dtype=object), iter(pairs), Frame(pairs)):
        assert torch.equal(reranker.score(given), expected)
    for rows in (np.array(pairs), list(np.array(pairs)), Column(pairs), Frame(pairs)):
        np.testing.assert_array_equal(reranker.predict(rows), expected.numpy())
    one = reranker.predict(np.array(pairs[0]))
    assert type(one) is np.float32 and one == expected[0]


@pytest.fixture
def no_work(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object) -> None:
        raise AssertionError("refused after the work had begun")

    monkeypatch.setattr(type(reranker._scorer), "score", work)


@pytest.mark.usefixtures("no_work")
def test_what_is_no_list_of_documents_is_refused_by_name(
    reranker: Reranker, paths: list[str]
) -> None:
    picture = Image.open(paths[0])
    for one in (
        paths[0],
        Path(paths[0]),
        picture,
        np.asarray(picture),
        torch.zeros(3, 48, 64),
        Path(paths[0]).read_bytes(),
        io.BytesIO(Path(paths[0]).read_bytes()),
        Document(paths[0]),
        {"image": paths[0]},
    ):
        with pytest.raises(TypeError, match=r"documents is (one|a mapping).*put it into a list"):
            reranker.rank(QUERY, one)
    for one in (paths[0], picture, Path(paths[0]).read_bytes(), {"image": paths[0]}):
        with pytest.raises(TypeError, match=r"documents is (one|a mapping).*put it into a list"):
            reranker.warm(one, on_error="skip")
    with pytest.raises(TypeError, match=r"documents\[1\]: .* not NoneType"):
        reranker.warm([paths[0], None], progress=False)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="on_error='ignore'"):
        reranker.warm(paths, on_error="ignore")  # type: ignore[arg-type]
    for none in ([], (), np.array([]), iter(()), Column([])):
        with pytest.raises(ValueError, match="documents is empty"):
            reranker.rank(QUERY, none)
    for wrong, message in (
        (None, "documents must be a list, not NoneType"),
        (7, "documents must be a list, not int"),
        ({paths[0], paths[1]}, "documents must have an order"),
        (Frame([(QUERY, paths[0])]), "documents is a table: give one of its columns"),
        (np.array([paths]), r"documents is an array .* expected paths in one dimension"),
        (np.array([b"a"]), "documents is an array"),
        ([paths[0], None], r"documents\[1\]: .* not NoneType"),
        ([paths[0], 3], r"documents\[1\]: .* not int"),
        ([{"image": paths[0], "audio": "a.wav"}], r"documents\[0\]: unknown keys \['audio'\]"),
        ([{"image": paths[0], "text": 3}], r"documents\[0\]: .*caption must be a string"),
    ):
        with pytest.raises(TypeError, match=message):
            reranker.rank(QUERY, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=message):
            fast_rerank(QUERY, wrong, model=reranker)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"documents\[0\]: .*text is empty"):
        reranker.rank(QUERY, [{"text": " "}])


@pytest.mark.usefixtures("no_work")
def test_what_is_no_list_of_pairs_is_refused_by_name(reranker: Reranker, paths: list[str]) -> None:
    pair = (QUERY, paths[0])
    for method, name in ((reranker.score, "pairs"), (reranker.predict, "inputs")):
        for wrong, message in (
            (None, f"{name} must be a list, not NoneType"),
            ("ab", f"{name} must be a list of pairs, not str"),
            ([pair, "ab"], rf"{name}\[1\] must be a pair \(query, document\), not str"),
            ([pair, (*pair, 3)], rf"{name}\[1\] must be a pair .* has 3 parts"),
            (np.zeros((2, 2)), f"{name} is an array of float64"),
        ):
            with pytest.raises(TypeError, match=message):
                method(wrong)
        with pytest.raises(TypeError, match=r"pairs\[1\]: .* not NoneType"):
            method([pair, (QUERY, None)])
    with pytest.raises(TypeError, match=r"pairs\[0\] must be a pair .*make a list"):
        reranker.score(pair)
    with pytest.raises(TypeError, match=r"inputs\[0\] must be a pair .* has 3 parts"):
        reranker.predict([QUERY, *paths[:2]])
    with pytest.raises(TypeError, match=r"a query must be a string, .* not list"):
        reranker.rank([QUERY], paths)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    "keyword",
    [
        {"prompt": "Rank these"},
        {"prompt_name": "query"},
        {"apply_softmax": True},
        {"device": "meta"},
        {"device": ["cuda:0", "cuda:1"]},
        {"pool": {"processes": []}},
        {"chunk_size": 5},
        {"processing_kwargs": {"text": {}}},
    ],
    ids=str,
)
def test_keywords_that_cannot_be_heeded_are_refused_by_name(
    keyword: dict[str, Any], reranker: Reranker, paths: list[str]
) -> None:
    (name,) = keyword
    with pytest.raises(ValueError, match=rf"rank\({name}=\) cannot be heeded"):
        reranker.rank(QUERY, paths, **keyword)
    with pytest.raises(ValueError, match=rf"predict\({name}=\) cannot be heeded"):
        reranker.predict([(QUERY, paths[0])], **keyword)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", ["activation_fn", "activation_fct"])
def test_ranked_documents_have_relevance_and_raw_scores_already(
    name: str, reranker: Reranker, paths: list[str]
) -> None:
    with pytest.raises(ValueError, match=rf"rank\({name}=\) cannot be heeded: .* score and raw"):
        reranker.rank(QUERY, paths, **{name: torch.nn.Identity()})


def test_an_activation_gives_a_score_a_pair(reranker: Reranker, paths: list[str]) -> None:
    pairs = [(QUERY, path) for path in paths]
    raw = reranker.score(pairs, raw=True).numpy()
    assert np.array_equal(reranker.predict(pairs, activation_fct=torch.nn.Identity()), raw)
    with pytest.raises(ValueError, match="does not give a score for each of the"):
        reranker.predict(pairs, activation_fn=torch.sum)
    with pytest.raises(TypeError, match="expected a function"):
        reranker.predict(pairs, activation_fn="tanh")  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_work")
def test_numbers_are_checked_before_the_work(reranker: Reranker, paths: list[str]) -> None:
    for name in ("top_k", "batch_size"):
        for wrong in (2.0, True, "2", np.float32(2)):
            with pytest.raises(TypeError, match=f"{name}=.* whole number"):
                reranker.rank(QUERY, paths, **{name: wrong})
        for small in (0, -1, np.int64(0)):
            with pytest.raises(ValueError, match=f"{name}=.* at least 1"):
                reranker.rank(QUERY, paths, **{name: small})
    for wrong in (float("nan"), 1e9, -1, np.float32("nan"), True, [0.5]):
        with pytest.raises(ValueError, match="threshold="):
            reranker.rank(QUERY, paths, threshold=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"rank\(\) has no keyword 'topk'"):
        reranker.rank(QUERY, paths, topk=2)


def test_numpys_numbers_are_numbers(reranker: Reranker, paths: list[str]) -> None:
    expected = reranker.rank(QUERY, paths, 2, threshold=0.25, batch_size=3)
    ranked = reranker.rank(
        QUERY, paths, np.int64(2), threshold=np.float32(0.25), batch_size=np.int32(3)
    )
    assert [(r.index, r.score, r.kept) for r in ranked] == [
        (r.index, r.score, r.kept) for r in expected
    ]
