"""The prompts are the paper's, word for word."""

from __future__ import annotations

import pytest

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


def test_instruction_first_ends_with_the_query() -> None:
    assert TEMPLATES["instruction-first"].text.endswith("Question: {query}")


@pytest.mark.parametrize(
    "text", ["{query}", "<image>", "<image><image>{query}", "<image>{query}{query}"]
)
def test_a_template_without_its_parts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        PromptTemplate("mine", text)
