"""The paper's prompts, word for word, and what templates have a place for."""

from __future__ import annotations

import dataclasses

import pytest
from plain import picture

from ragvl import Document, Query
from ragvl.data.images import DocumentError
from ragvl.reranker import TEMPLATES, PromptTemplate


def test_the_papers_templates_word_for_word() -> None:
    fields = {"query": "Who?", "caption": "A tower"}
    assert TEMPLATES["caption"].text.format(**fields) == (
        "<image>\nImage Caption: A tower\nQuestion: Who?\nBased on the image and its caption, "
        "is the image relevant to the question? Answer 'Yes' or 'No'."
    )
    assert TEMPLATES["plain"].text.format(**fields) == (
        "<image>\nQuestion: Who?\nIs this image relevant to the question? Answer 'Yes' or 'No'."
    )
    assert TEMPLATES["retrieval"].text.format(**fields) == (
        "<image>\nImage Caption: Who?\nIs the image relevant to the caption? Answer 'Yes' or 'No'."
    )


@pytest.mark.parametrize(
    "document",
    [
        Document(picture(0), caption="A lake.", id="captioned"),
        Document(picture(0), id="plain"),
        Document(text="A lake.", id="text"),
        Document(parts=[picture(0), "A lake.", picture(1)], id="mixed"),
    ],
    ids=lambda document: document.id,
)
def test_instruction_first_asks_what_auto_asks_with_the_query_last(document: Document) -> None:
    usual = TEMPLATES["auto"].of(document).text
    other = TEMPLATES["instruction-first"].of(document).text
    question = "\nQuestion: {query}"
    head, asked = usual.split(question)
    assert other == head + "\n" + asked.strip() + question


@pytest.mark.parametrize(
    "text", ["{query}", "<image>", "<image><image>{query}", "<image>{query}{query}"]
)
def test_a_template_without_its_parts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        PromptTemplate("mine", text)


EMPTY = Document(parts=[], id="blank page")
WITH_DOCUMENT = PromptTemplate("mine", "{document}: {query}")


@pytest.mark.parametrize("template", [*TEMPLATES.values(), WITH_DOCUMENT])
def test_what_is_empty_has_no_place(template: PromptTemplate) -> None:
    with pytest.raises(DocumentError, match="blank page"):
        template.of(EMPTY)
    with pytest.raises(ValueError, match="empty"):
        template.check_query(Query(instruction="Judge."))


def test_what_is_empty_has_a_place_where_it_is_named() -> None:
    template = dataclasses.replace(WITH_DOCUMENT, empty="NULL")
    assert template.of(EMPTY) is template


def test_bare_text_has_no_system_turn() -> None:
    with pytest.raises(ValueError, match="system turn"):
        PromptTemplate("mine", "{document}: {query}", "Judge.", chat=False)


@pytest.mark.parametrize("parts", [["a", "b"], [picture(0), "a"], [picture(0), picture(1)]])
def test_one_part_alone_where_they_do_not_mix(parts: list) -> None:
    template = dataclasses.replace(WITH_DOCUMENT, mixes=False)
    assert template.of(Document(parts=parts[:1])) is template
    with pytest.raises(DocumentError, match="one picture or one text, not 2 parts"):
        template.of(Document(parts=parts))
