"""OpenAPI is complete and true: requests made from it, right and wrong, are answered as it says."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from server.live import LiveServer, MakeServices, live

from ragvl.server.stages import Stages

# A deadline of a nanosecond is missed, and a schema cannot say which bytes are a picture
LEFT_OUT = [not_a_server_error, positive_data_acceptance]
# Of what is wrong and too large, either may be told
OF_LIMITS = {413: [negative_data_rejection]}
EXAMPLES = 3  # of a route; most of the time goes into reading its schema


@pytest.fixture(scope="module")
def server(demo: Stages, make_services: MakeServices) -> Iterator[LiveServer]:
    """A server that has all there is, of its own: documents are put into it."""
    services = make_services(
        reranker=demo.reranker, retriever=demo.retriever, generator=demo.generator
    )
    with live(services) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_route_answers_as_it_is_described(mode: GenerationMode, server: LiveServer) -> None:
    described = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        for operation in _operations(described):
            # Of a route that takes nothing, nothing can be wrong
            with contextlib.suppress(Unsatisfiable):
                _check(operation, mode, session, statuses)
    assert statuses[422 if mode.is_negative else 200]


def _operations(described: Any) -> Iterator[Any]:
    """One of those that differ in their paths alone."""
    seen: list[dict[str, Any]] = []
    for found in described.get_all_operations():
        operation = found.ok()
        told = {**operation.definition.raw, "operationId": None}
        if told not in seen:
            seen.append(told)
            yield operation


def _check(
    operation: Any,
    mode: GenerationMode,
    session: requests.Session,
    statuses: Counter[int],
) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if mode.is_positive and isinstance(case.body, dict):
            case.body.pop("model", None)  # of all strings one is right
        answer = case.call(session=session, timeout=30)
        case.validate_response(
            answer, excluded_checks=[*LEFT_OUT, *OF_LIMITS.get(answer.status_code, ())]
        )
        assert answer.status_code != 500, answer.text
        statuses[answer.status_code] += 1

    check()


@pytest.fixture(scope="module")
def described(server: LiveServer) -> Any:
    return requests.get(f"{server.url}/openapi.json", timeout=30).json()


def test_every_example_is_answered(described: Any, server: LiveServer) -> None:
    """Those of scores: others need an index, or a document that was put."""
    scored = [path for path, one in described["paths"].items() if "scores" in _tags(one)]
    assert {"/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/ranking"} <= set(scored)
    for path in scored:
        content = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        references = content["schema"].get("anyOf", [content["schema"]])
        for reference in references:
            schema = described["components"]["schemas"][reference["$ref"].rpartition("/")[2]]
            answer = requests.post(f"{server.url}{path}", json=schema["example"], timeout=30)
            assert answer.status_code == 200, answer.text


def test_every_error_has_the_same_body(described: Any) -> None:
    for path in described["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}
    assert not {"HTTPValidationError", "ValidationError"} & set(described["components"]["schemas"])
    assert "$defs" not in json.dumps(described)


def _tags(path: dict[str, Any]) -> list[str]:
    return [tag for operation in path.values() for tag in operation.get("tags", [])]
