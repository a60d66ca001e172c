"""What can be asked of a server: functions that make a request, and say how its answer is read.

`Client` and `AsyncClient` have them as methods: a `Call[X]` gives an X.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from ragvl.client.bodies import GivenDocument, document_body, listed, query_body
from ragvl.client.exchange import Call
from ragvl.client.results import (
    Answer,
    Kept,
    KnownDocument,
    KnownDocuments,
    Reranking,
    Scores,
    Search,
)
from ragvl.data.document import Document
from ragvl.data.query import Query, QueryLike
from ragvl.messages import quoted

_DOCUMENTS = "/v1/documents"


def rerank(
    query: QueryLike,
    documents: Iterable[GivenDocument],
    *,
    top_k: int | None = None,
    threshold: float | str | None = None,
    instruction: str | None = None,
) -> Call[Reranking]:
    """Documents by relevance to `query`, the most relevant first.

    Args:
        query: a text, a picture, or a `Query` of both.
        documents: what the library takes: `Document`s, or paths and pictures (a string is a path);
            or `{"id": ...}` for a document that the server knows.
        top_k: how many to return; all by default.
        threshold: the relevance that decides `kept`, or the name of one that was estimated for the
            server's model; that model's own by default.
        instruction: what is to be judged, for a model that takes one; the query's by default.

    Raises:
        ImageError: a picture cannot be read; nothing was sent.
        ApiError: the server refused, or had no room in time.
        TimeoutError: there was no answer in time.
        ConnectionError: there is no such server.
    """
    asked, given = Query.of(query), listed(documents)
    body = {
        "query": query_body(asked),
        "documents": [document_body(document) for document in given],
        "top_n": top_k,
        "threshold": threshold,
        "instruction": instruction or asked.instruction,
    }

    def read(answer: Any) -> Reranking:
        return Reranking.model_validate({**answer, "results": _found(answer["results"], given)})

    return Call.with_json("POST", "/v1/rerank", body, read)


def score(
    pairs: Iterable[tuple[QueryLike, GivenDocument]], *, instruction: str | None = None
) -> Call[Scores]:
    """Relevance of each (query, document), in the order of `pairs`.

    Args:
        pairs: queries and documents as `rerank` takes them. An instruction is of all pairs.
        instruction: see `rerank`.

    Raises:
        ValueError: queries have different instructions.
        ImageError, ApiError, TimeoutError, ConnectionError: see `rerank`.
    """
    given = [(Query.of(query), document) for query, document in pairs]
    instructions = {query.instruction for query, _ in given}
    if instruction is None:
        if len(instructions) > 1:
            raise ValueError("the queries of one request must have the same instruction")
        instruction = next(iter(instructions), None)
    body = {
        "queries": [query_body(query) for query, _ in given],
        "documents": [document_body(document) for _, document in given],
        "instruction": instruction,
    }

    def read(answer: Any) -> Scores:
        scores = [entry["score"] for entry in answer["data"]]
        if len(scores) != len(given):
            raise ValueError(f"{len(scores)} scores of {len(given)} pairs")
        return Scores.model_validate({**answer, "scores": scores})

    return Call.with_json("POST", "/v1/score", body, read)


def search(
    query: QueryLike,
    *,
    documents: Iterable[GivenDocument] | None = None,
    num_candidates: int | None = None,
    top_k: int | None = None,
    threshold: float | str | None = None,
    instruction: str | None = None,
) -> Call[Search]:
    """Retrieves documents from the server's index, and reranks them.

    Args:
        query: a text, a picture, or a `Query` of both.
        documents: rerank these instead; see `rerank`.
        num_candidates: how many documents are retrieved; 20 by default.
        top_k: how many to return; all by default.
        threshold: see `rerank`.
        instruction: see `rerank`.

    Raises:
        ImageError, ApiError, TimeoutError, ConnectionError: see `rerank`.
    """
    given = None if documents is None else listed(documents)
    body = _search_body(query, given, num_candidates, threshold, instruction)

    def read(answer: Any) -> Search:
        return Search.model_validate({**answer, "results": _found(answer["results"], given)})

    return Call.with_json("POST", "/v1/search", {**body, "top_n": top_k}, read)


def answer(
    query: QueryLike,
    *,
    documents: Iterable[GivenDocument] | None = None,
    num_candidates: int | None = None,
    top_k: int | None = None,
    threshold: float | str | None = None,
    instruction: str | None = None,
    max_new_tokens: int | None = None,
) -> Call[Answer]:
    """Retrieves documents, reranks them, and answers from the most relevant: the whole of RagVL.

    Args:
        query: the question.
        documents: answer from these instead of the index; see `rerank`.
        num_candidates: how many documents are retrieved; 20 by default.
        top_k: from how many documents it is answered at most; 2 by default.
        threshold: the relevance that a document must reach; see `rerank`.
        instruction: see `rerank`.
        max_new_tokens: how long the answer is at most.

    Raises:
        ImageError, ApiError, TimeoutError, ConnectionError: see `rerank`.
    """
    given = None if documents is None else listed(documents)
    body = _search_body(query, given, num_candidates, threshold, instruction)

    def read(answer: Any) -> Answer:
        found = _found(answer["results"], given)
        by_index = {result["index"]: result for result in found}
        evidence = [by_index[index] for index in answer["evidence"]]
        return Answer.model_validate({**answer, "results": found, "evidence": evidence})

    body |= {"top_k": top_k, "max_tokens": max_new_tokens}
    return Call.with_json("POST", "/v1/answer", body, read)


def put_documents(documents: Iterable[Document]) -> Call[Kept]:
    """Has the server keep documents under their ids, all or none, and make them warm.

    They take the place of others of these ids. A request holds as many as the server takes at once:
    see its limits.

    Args:
        documents: each with an id.

    Raises:
        TypeError: one is no `Document`.
        ValueError: one has no id.
        ImageError, ApiError, TimeoutError, ConnectionError: see `rerank`.
    """
    given = listed(documents)
    for number, document in enumerate(given):
        if not isinstance(document, Document):
            raise TypeError(
                f"documents[{number}] must be a Document, not {type(document).__name__}"
            )
        if document.id is None:
            raise ValueError(f"documents[{number}] has no id: {document.name}")
    body = {"documents": [document_body(document) for document in given]}
    return Call.with_json("PUT", _DOCUMENTS, body, Kept.model_validate)


def get_document(id: str) -> Call[KnownDocument]:
    """What the server knows of a document.

    Raises:
        ApiError: it knows none of that id (404), and see `rerank`.
        TimeoutError, ConnectionError: see `rerank`.
    """
    return Call("GET", _path_of(id), KnownDocument.model_validate)


def list_documents(*, after: str = "", limit: int = 100) -> Call[KnownDocuments]:
    """Documents that the server knows, in the order of their ids.

    Args:
        after: begin behind this id, such as the last of the page before.
        limit: how many at most.

    Raises:
        ApiError, TimeoutError, ConnectionError: see `rerank`.
    """
    page = (("after", after), ("limit", str(limit)))
    return Call("GET", _DOCUMENTS, KnownDocuments.model_validate, query=page)


def delete_document(id: str) -> Call[bool]:
    """Has the server forget a document that was put; False if it knew none of that id.

    Raises:
        ApiError: it is the index's (409), and see `rerank`.
        TimeoutError, ConnectionError: see `rerank`.
    """
    # Asked again after a broken connection, the server may have forgotten it already
    return Call("DELETE", _path_of(id), lambda answer: "deleted" in answer, refusals=(404,))


def models() -> Call[tuple[str, ...]]:
    """Names of the models that the server answers with.

    Raises:
        ApiError, TimeoutError, ConnectionError: see `rerank`.
    """
    return Call("GET", "/v1/models", lambda answer: tuple(m["id"] for m in answer["data"]))


def health() -> Call[None]:
    """Returns when the server answers at all.

    Raises:
        ApiError, TimeoutError, ConnectionError: see `rerank`.
    """
    return Call("GET", "/health", _nothing)


def _search_body(
    query: QueryLike,
    documents: list[GivenDocument] | None,
    num_candidates: int | None,
    threshold: float | str | None,
    instruction: str | None,
) -> dict[str, Any]:
    asked = Query.of(query)
    return {
        "query": query_body(asked),
        "documents": None if documents is None else [document_body(d) for d in documents],
        "num_candidates": num_candidates,
        "threshold": threshold,
        "instruction": instruction or asked.instruction,
        "return_documents": True,
    }


def _found(results: Any, given: list[GivenDocument] | None) -> list[dict[str, Any]]:
    """Results with the documents that they are, where these were given."""
    return [
        {
            **result,
            "text": (result.get("document") or {}).get("text"),
            "document": None if given is None else given[result["index"]],
        }
        for result in results
    ]


def _path_of(id: str) -> str:
    if id in ("", ".", ".."):  # which a URL cannot end with
        raise ValueError(f"{quoted(id)} is no document's id")
    return f"{_DOCUMENTS}/{quote(id, safe='')}"


def _nothing(_: object) -> None:
    """Of an answer that says no more than that it is one."""
