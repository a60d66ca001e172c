"""The generator's prompt: the kept documents, each picture with its caption, then the question."""

from __future__ import annotations

from collections.abc import Sequence

INSTRUCTION = "Answer the question in one word or a short phrase."


def generator_prompt(query: str, captions: Sequence[str | None]) -> tuple[str, dict[str, str]]:
    """The template and its fields for `query`, with one `<image>` for each of `captions`.

    The pictures come first, as in the reranker's prompts. No captions: a prompt without a picture.
    """
    fields = {"query": query}
    evidence = ""
    for i, caption in enumerate(captions):
        evidence += "<image>\n"
        if caption is not None:
            evidence += f"Image Caption: {{caption_{i}}}\n"
            fields[f"caption_{i}"] = caption
    return f"{evidence}Question: {{query}}\n{INSTRUCTION}", fields
