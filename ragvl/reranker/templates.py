"""The reranker's prompts.

`caption`, `plain` and `retrieval` are the paper's, word for word (arXiv 2407.21439, appendix),
since trained checkpoints depend on them. Everything before the query is the same for every query,
so a document's prefix can be computed once.
"""

from __future__ import annotations

from dataclasses import dataclass

from ragvl.data.document import Document
from ragvl.data.images import ImageError
from ragvl.messages import quoted


class CaptionError(ImageError):
    """A document whose caption cannot be used; it is passed over like one without a picture."""


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
    def query_first(self) -> bool:
        """Whether the query stands before the picture, so that no two queries share a prefix."""
        return self.text.index("{query}") < self.text.index("<image>")

    @property
    def variants(self) -> tuple[PromptTemplate, ...]:
        """The templates that `of` may return."""
        return (self,)

    def of(self, document: Document) -> PromptTemplate:
        """The template of a document's prompts.

        Raises:
            CaptionError: it needs a caption and the document has none.
        """
        if document.caption is None and "{caption}" in self.text and not self.caption_optional:
            raise CaptionError(
                f"{document.name} has no caption and template {self.name!r} needs one; "
                "give it one, or use template='auto'"
            )
        return self


class _ByCaption(PromptTemplate):
    """`caption` for a document that has a caption, `plain` for one that has none."""

    @property
    def variants(self) -> tuple[PromptTemplate, ...]:
        return (CAPTION, PLAIN)

    def of(self, document: Document) -> PromptTemplate:
        return PLAIN if document.caption is None else CAPTION


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

AUTO = _ByCaption("auto", CAPTION.text)

TEMPLATES = {
    template.name: template for template in (AUTO, CAPTION, PLAIN, RETRIEVAL, INSTRUCTION_FIRST)
}


def resolve_template(template: PromptTemplate | str) -> PromptTemplate:
    """The template that a name means.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(template, PromptTemplate):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"unknown template {quoted(template)}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[template]
