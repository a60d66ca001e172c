"""The reranker's prompts.

`caption`, `plain` and `retrieval` are the paper's, word for word (arXiv 2407.21439, appendix),
since trained checkpoints depend on them. Everything before the query is the same for every query,
so a document's prefix can be computed once.
"""

from __future__ import annotations

from dataclasses import dataclass

from ragvl.messages import quoted


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with one picture: `<image>`, `{query}` and, if it needs one, `{caption}`.

    Attributes:
        name: what it is called.
        text: the user's turn.
        system_turn: the turn before it; None leaves it to the checkpoint's chat template.
        caption_optional: a document without a caption leaves `{caption}` empty.

    Raises:
        ValueError: the text has not exactly one `<image>` and one `{query}`.
    """

    name: str
    text: str
    system_turn: str | None = None
    caption_optional: bool = False

    def __post_init__(self) -> None:
        for part in ("<image>", "{query}"):
            if self.text.count(part) != 1:
                raise ValueError(f"template {self.name!r} must hold {part} exactly once")

    @property
    def needs_caption(self) -> bool:
        """Whether a document without a caption cannot be put into it."""
        return "{caption}" in self.text and not self.caption_optional


CAPTION = PromptTemplate(
    "caption",
    "<image>\nImage Caption: {caption}\nQuestion: {query}\n"
    "Based on the image and its caption, is the image relevant to the question? "
    "Answer 'Yes' or 'No'.",
)
PLAIN = PromptTemplate(
    "plain",
    "<image>\nQuestion: {query}\nIs this image relevant to the question? Answer 'Yes' or 'No'.",
)
RETRIEVAL = PromptTemplate(
    "retrieval",
    "<image>\nImage Caption: {query}\nIs the image relevant to the caption? Answer 'Yes' or 'No'.",
)
INSTRUCTION_FIRST = PromptTemplate(
    "instruction-first",
    "<image>\nImage Caption: {caption}\n"
    "Based on the image and its caption, is the image relevant to the question? "
    "Answer 'Yes' or 'No'.\nQuestion: {query}",
)

TEMPLATES = {template.name: template for template in (CAPTION, PLAIN, RETRIEVAL, INSTRUCTION_FIRST)}


def resolve_template(template: PromptTemplate | str) -> PromptTemplate | None:
    """The template that a name means; None for "auto".

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(template, PromptTemplate):
        return template
    if template != "auto" and template not in TEMPLATES:
        known = ", ".join(["auto", *TEMPLATES])
        raise ValueError(f"unknown template {quoted(template)}; known: {known}")
    return TEMPLATES.get(template)
