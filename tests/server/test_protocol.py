"""Bodies: whatever way a document is written, it means the same; what is wrong is said by place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from ragvl.server.bodies import parsed
from ragvl.server.errors import BadRequest, ServerError, TooLarge, Unprocessable
from ragvl.server.protocol.ranking import RankingBody
from ragvl.server.protocol.rerank import RerankBody
from ragvl.server.protocol.score import ScoreBody
from ragvl.server.protocol.tei import TeiRerankBody
from ragvl.server.settings import ServerSettings

SETTINGS = ServerSettings()
PICTURE = "data:image/png;base64,iVBORw0KGgo="
URL = "https://example.org/tower.png"


def read(body: Any, model: type[BaseModel] = RerankBody) -> Any:
    return parsed(json.dumps(body).encode(), lambda _: model, SETTINGS)


def parts(document: Any) -> list[tuple[str, str]]:
    (body,) = read({"query": "q", "documents": [document]}).documents
    return [(part.kind, part.content) for part in body.parts]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("a tower", [("text", "a tower")]),
        (URL, [("text", URL)]),
        (PICTURE, [("image", PICTURE)]),
        ({"text": "a tower"}, [("text", "a tower")]),
        ({"image": URL}, [("image", URL)]),
        ({"image_url": URL}, [("image", URL)]),
        ({"image_url": {"url": URL, "detail": "low"}}, [("image", URL)]),
        ({"text": "a tower", "image": PICTURE}, [("image", PICTURE), ("text", "a tower")]),
        ({"text": "", "image": PICTURE}, [("image", PICTURE)]),
        ({"content": "a tower"}, [("text", "a tower")]),
        (
            {
                "content": [
                    {"type": "image_url", "image_url": {"url": URL}, "uuid": "x"},
                    {"type": "text", "text": "a tower"},
                    {"type": "image", "image": PICTURE},
                    {"image_url": URL},
                ]
            },
            [("image", URL), ("text", "a tower"), ("image", PICTURE), ("image", URL)],
        ),
        ({"id": "tower-1"}, []),
        ({"id": "tower-1", "text": "a tower"}, [("text", "a tower")]),
    ],
)
def test_every_way_to_write_a_document(document: Any, expected: list[tuple[str, str]]) -> None:
    assert parts(document) == expected


def test_one_document_may_stand_without_a_list() -> None:
    (document,) = read({"query": "q", "documents": {"content": "a"}}).documents
    assert [part.content for part in document.parts] == ["a"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": "a"}, "documents"),
        ({"query": "q", "documents": ["a", 3]}, "documents[1]"),
        ({"query": "q", "documents": ["a", " \n"]}, "documents[1]"),
        ({"query": "q", "documents": [{}]}, "documents[0]"),
        ({"query": "q", "documents": [{"text": ""}]}, "documents[0]"),
        ({"query": "q", "documents": [{"id": ""}]}, "documents[0].id"),
        ({"query": "q", "documents": [{"image": ""}]}, "documents[0].image"),
        ({"query": "q", "documents": [{"image": URL, "image_url": URL}]}, "documents[0]"),
        ({"query": "q", "documents": [{"text": "a", "content": "a"}]}, "documents[0]"),
        ({"query": "q", "documents": [{"content": []}]}, "documents[0].content"),
        ({"query": "q", "documents": [{"video": URL}]}, "documents[0].video"),
        (
            {"query": "q", "documents": [{"content": [{"type": "video_url", "video_url": {}}]}]},
            "documents[0].content[0].type",
        ),
        (
            {"query": "q", "documents": [{"content": [{"image_embeds": "x"}]}]},
            "documents[0].content[0].image_embeds",
        ),
        (
            {"query": "q", "documents": [{"content": [{"type": "text", "image": URL}]}]},
            "documents[0].content[0]",
        ),
        (
            {"query": "q", "documents": [{"content": [{"image_url": {"url": 3}}]}]},
            "documents[0].content[0].image_url.url",
        ),
        ({"query": " ", "documents": ["a"]}, "query"),
        ({"query": {"content": ["a", "b"]}, "documents": ["a"]}, "query.content[0]"),
        (
            {"query": {"content": [{"text": "a"}, {"text": "b"}]}, "documents": ["a"]},
            "query",
        ),
        ({"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
        ({"query": "q", "documents": ["a"], "top_n": True}, "top_n"),
        ({"query": "q", "documents": ["a"], "top_n": "1"}, "top_n"),
        ({"query": "q", "documents": ["a"], "threshold": 1.5}, "threshold"),
        ({"query": "q", "documents": ["a"], "instruction": ""}, "instruction"),
        (
            {"query": "q", "documents": ["a"], "mm_processor_kwargs": {"a": 1}},
            "mm_processor_kwargs",
        ),
        ({"query": "q", "documents": ["a"], "rank_fields": ["text"]}, "rank_fields"),
        ([], None),
        (None, None),
    ],
)
def test_what_is_wrong_with_a_body_is_said_by_its_place(body: Any, place: str | None) -> None:
    with pytest.raises(Unprocessable) as caught:
        read(body)
    assert caught.value.param == place
    assert caught.value.message.startswith(f"{place}: " if place else "")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b'{"query": NaN}', b'{"query": "\\ud800"}', b"[" * 100_000]
)
def test_what_is_no_json_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(BadRequest, match="no JSON"):
        parsed(data, lambda _: RerankBody, SETTINGS)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b'{"documents":[' + b"1," * 2**20 + b"1]}", None),
        (b'{"query":"q","documents":[' + b'"a",' * 1000 + b'"a"]}', "documents"),
        (
            b'{"query":"q","documents":[{"content":[' + b"{}," * 32 + b"{}]}]}",
            "documents[0].content",
        ),
        (b"{" + b",".join(b'"k%d":1' % i for i in range(101)) + b"}", None),
    ],
)
def test_what_has_too_many_values_is_not_looked_at(data: bytes, place: str | None) -> None:
    with pytest.raises(TooLarge) as caught:
        parsed(data, lambda _: pytest.fail("it was"), SETTINGS)
    assert caught.value.param == place


def test_fields_of_other_servers_that_change_nothing_are_taken() -> None:
    taken = {
        "model": None,
        "user": "someone",
        "priority": 3,
        "cache_salt": "x",
        "request_id": "r",
        "top_n": 0,
        "max_tokens_per_query": 0,
        "max_tokens_per_doc": 4096,
        "truncate_prompt_tokens": -1,
        "truncation_side": None,
        "padding": True,
        "chat_template_kwargs": None,
        "mm_processor_kwargs": {},
    }
    body = read({"query": "q", "documents": ["a"], **taken})
    assert body.token_limit == 4096


@pytest.mark.parametrize("names", [("queries", "documents"), ("text_1", "text_2")])
@pytest.mark.parametrize("query", ["q", ["q"], {"text": "q"}, [{"content": "q"}]])
def test_a_query_and_a_document_may_stand_alone(names: tuple[str, str], query: Any) -> None:
    first, second = names
    body = read({first: query, second: "a"}, ScoreBody)
    assert body.first[0] == first and body.second[0] == second
    assert [[part.content for part in one.parts] for one in body.first[1]] == [["q"]]
    assert [[part.content for part in one.parts] for one in body.second[1]] == [["a"]]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"queries": "q"},
        {"queries": "q", "text_2": "a"},
        {"queries": "q", "documents": "a", "items": "a"},
        {"queries": ["q", "r"], "documents": "a"},
        {"queries": ["q", "r"], "documents": ["a", "b", "c"]},
        {"queries": [], "documents": []},
    ],
)
def test_pairs_that_do_not_match_are_refused(body: Any) -> None:
    with pytest.raises(Unprocessable):
        read(body, ScoreBody)


_FIELDS = (
    "query documents text image image_url url content type id texts queries text_1 text_2 passages "
    "top_n threshold instruction x"
)
_NAMES = st.sampled_from(_FIELDS.split())
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50)
@given(st.dictionaries(_NAMES, _JSON, max_size=5), st.sampled_from([0, 1, 2, 3]))
def test_any_json_is_a_body_or_is_refused(body: Any, which: int) -> None:
    model = (RerankBody, ScoreBody, RankingBody, TeiRerankBody)[which]
    try:
        read(body, model)
    except ServerError as error:
        assert error.status == 422
        assert len(error.message) < 1500


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_texts_stay_as_they_are(texts: list[str]) -> None:
    body = read({"query": texts[0], "documents": [{"text": text} for text in texts]})
    assert [body.query.parts[0].content] == texts[:1]
    assert [document.parts[0].content for document in body.documents] == texts
