"""The generator's prompt: the kept documents, then the question."""

from __future__ import annotations

from collections.abc import Sequence

from ragvl.data.document import Document

INSTRUCTION = "Answer the question in one word or a short phrase."


def generator_prompt(query: str, documents: Sequence[Document]) -> tuple[str, dict[str, str]]:
    """The template and its fields for `query`, with an `<image>` for each picture, in order.

    Documents come first, as in the reranker's prompts: a picture with its caption, a text, or parts
    one after the other. No documents: a prompt without evidence.
    """
    fields = {"query": query}
    evidence = ""
    for i, document in enumerate(documents):
        for j, part in enumerate(document.parts):
            if not isinstance(part, str):
                evidence += "<image>\n"
                continue
            name = f"text_{i}_{j}"
            fields[name] = part
            evidence += f"{'Image Caption' if document.image is not None else 'Text'}: {{{name}}}\n"
    return f"{evidence}Question: {{query}}\n{INSTRUCTION}", fields
