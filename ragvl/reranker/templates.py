"""The reranker's prompts.

`caption`, `plain` and `retrieval` are the paper's, word for word (arXiv 2407.21439, appendix),
since trained checkpoints depend on them. Everything before the query is the same for every query,
so a document's prefix can be computed once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from ragvl.data.document import Document, Part
from ragvl.data.images import DocumentError
from ragvl.data.picture import Picture
from ragvl.data.query import Query
from ragvl.messages import quoted
from ragvl.mllm import Prompting

_IMAGE = "<image>"
_SLOTS = re.compile(r"<image>|\{document\}")


class Template(Protocol):
    """Writes the prompts of queries and documents."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def instruction(self) -> str | None:
        """What is asked where a query brings no instruction of its own."""

    @property
    def query_first(self) -> bool:
        """Whether the query stands before the document, so that no two queries share a prefix."""

    @property
    def query_pictures_first(self) -> bool:
        """Whether a query's pictures stand before a document's, wherever its text stands."""

    @property
    def takes_instruction(self) -> bool:
        """Whether a query may bring an instruction, on which all of its prompts depend."""

    @property
    def ending(self) -> tuple[int, ...]:
        """Ids of tokens that are put behind every prompt once it is tokenised."""

    @property
    def content(self) -> object:
        """All that shapes its prompts, as `name_of` takes it."""

    def for_model(self, prompting: Prompting) -> Template:
        """The template for one model.

        Raises:
            ValueError: it is none for that model's chat template.
        """

    def instruction_named(self, name: str) -> str | None:
        """The instruction of this name that the checkpoint brought.

        Raises:
            ValueError: there is none.
        """

    def check(self, prompting: Prompting, query: Query, document: Document) -> None:
        """Refuses what the template has no place for.

        Raises:
            ValueError: the query holds it.
            DocumentError: the document does; the message names it.
        """

    def write(self, prompting: Prompting, query: Query, document: Document) -> str:
        """The whole prompt, chat template included, with a placeholder for each picture."""

    def before_query(
        self, prompting: Prompting, document: Document, instruction: str | None = None
    ) -> str:
        """What a document's prompts begin with, whatever the query."""


@dataclass(frozen=True)
class PromptTemplate:
    r"""A text about a query and a document.

    Attributes:
        name: what it is called.
        text: the user's turn: `{query}`, and either `<image>`, with `{caption}` if it needs one,
            for documents that are one picture, or `{document}` for any; perhaps `{instruction}`.
        system_turn: the turn before it; None leaves it to the checkpoint's chat template.
        caption_optional: a document without a caption leaves `{caption}` empty.
        instruction: what stands for `{instruction}` where a query brings none.
        separator: what stands between the parts of a document, and of a query.
        query_pictures: whether a query may be, or have, a picture.
        mixes: whether a document or a query may have several parts; else it is one picture or one
            text.
        pictures_first: a document's, or a query's, pictures go before its texts.
        empty: what stands for a document or a query without parts; None refuses those.
        chat: the text is a user's turn in the checkpoint's chat template; else the whole prompt.
        picture: how a picture is written, for a text that is the whole prompt: the model's own
            image token with the marks around it.
        ending: ids of tokens that are put behind every prompt once it is tokenised.

    Raises:
        ValueError: the text has not exactly one place for the query and one for the document, no
            instruction for its place, or a system turn without a chat.

    Examples:
        >>> PromptTemplate("mine", "{document}\nIs this about {query}? Answer 'Yes' or 'No'.")
    """

    name: str
    text: str
    system_turn: str | None = None
    caption_optional: bool = False
    instruction: str | None = None
    separator: str = "\n"
    query_pictures: bool = True
    mixes: bool = True
    pictures_first: bool = False
    empty: str | None = None
    chat: bool = True
    picture: str = _IMAGE
    ending: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.text.count("{query}") != 1:
            raise ValueError(f"template {self.name!r} must hold {{query}} exactly once")
        if len(_SLOTS.findall(self.text)) != 1:
            raise ValueError(
                f"template {self.name!r} must hold one of {_IMAGE} and {{document}}, exactly once"
            )
        if "{instruction}" in self.text and not self.instruction:
            raise ValueError(f"template {self.name!r} holds {{instruction}}: give it one")
        if not self.chat and self.system_turn is not None:
            raise ValueError(f"template {self.name!r} has a system turn and is no chat")

    @property
    def query_first(self) -> bool:
        """Whether the query stands before the document, so that no two queries share a prefix."""
        slot = _SLOTS.search(self.text)
        assert slot is not None  # see __post_init__
        return self.text.index("{query}") < slot.start()

    @property
    def query_pictures_first(self) -> bool:
        """Whether a query's pictures stand before a document's: beside its text, as they do."""
        return self.query_first

    @property
    def variants(self) -> tuple[PromptTemplate, ...]:
        """The templates that `of` may return."""
        return (self,)

    @property
    def settings(self) -> dict[str, Any]:
        """All that shapes its prompts, by name: what is not as usual."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, usual) in values.items() if value != usual}

    @property
    def content(self) -> object:
        """All that shapes its prompts, as `name_of` takes it."""
        return [variant.settings for variant in self.variants]

    def for_model(self, prompting: Prompting) -> PromptTemplate:
        """Itself, once it is seen that the model's chat template writes what it needs.

        Raises:
            ValueError: the chat template writes no user's turn.
        """
        if self.chat and not prompting.takes_user_turns:
            raise ValueError(
                f"template {self.name!r} is a user's turn, and the checkpoint's chat template "
                "writes none: its prompts are of a query and a document"
            )
        return self

    def instruction_named(self, name: str) -> str | None:
        """Refuses: instructions have names in sentence-transformers' format only.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"template {self.name!r} has no prompt {quoted(name)}")

    def check(self, prompting: Prompting, query: Query, document: Document) -> None:  # noqa: ARG002
        """Refuses what the template has no place for; see `of` and `check_query`."""
        self.check_query(query)
        self.of(document)

    def of(self, document: Document) -> PromptTemplate:
        """The template of a document's prompts.

        Raises:
            DocumentError: it has no place for what the document holds, or needs a caption and the
                document has none; the message names the document.
        """
        if "{document}" in self.text:
            if problem := self._problem(document.parts):
                raise DocumentError(f"{document.name}: {problem}")
            return self
        if not _is_picture(document):
            raise DocumentError(
                f"template {self.name!r} is about one picture, and {document.name} is not one"
            )
        if document.caption is None and "{caption}" in self.text and not self.caption_optional:
            raise DocumentError(
                f"{document.name} has no caption and template {self.name!r} needs one; "
                "give it one, or use template='auto'"
            )
        return self

    def check_query(self, query: Query) -> None:
        """Refuses a query that the template has no place for.

        Raises:
            ValueError: it holds a picture, or an instruction, and must not.
        """
        if query.pictures and not self.query_pictures:
            raise ValueError(f"template {self.name!r} takes texts as queries: {query.name}")
        if problem := self._problem(query.parts):
            raise ValueError(f"{query.name}: {problem}")
        if query.instruction is not None and not self.takes_instruction:
            raise ValueError(
                f"template {self.name!r} has no place for the instruction of {query.name}"
            )

    def _problem(self, parts: Sequence[Part]) -> str | None:
        """Why the parts of a document or query have no place, if they have none."""
        if not parts and self.empty is None:
            return "it is empty"
        if len(parts) > 1 and not self.mixes:
            return f"template {self.name!r} takes one picture or one text, not {len(parts)} parts"
        return None

    @property
    def takes_instruction(self) -> bool:
        """Whether a query may bring an instruction, on which all of its prompts depend."""
        return any("{instruction}" in variant.text for variant in self.variants)

    def write(self, prompting: Prompting, query: Query, document: Document) -> str:
        """The whole prompt, chat template included, with a placeholder for each picture.

        Raises:
            DocumentError: see `of`.
        """
        template = self.of(document)
        text, fields = template._filled(document, query.parts, query.instruction)
        turn = template.system_turn
        return prompting.render(text, template.chat, system_turn=turn, **fields)

    def before_query(
        self, prompting: Prompting, document: Document, instruction: str | None = None
    ) -> str:
        """What a document's prompts begin with, whatever the query.

        Args:
            prompting: the model's.
            document: the document.
            instruction: the queries'; None for the template's own.

        Raises:
            DocumentError: see `of`.
        """
        template = self.of(document)
        text, fields = template._filled(document, ("",), instruction)
        fields.pop("query_0")
        turn = template.system_turn
        return prompting.text_before(text, "query_0", template.chat, system_turn=turn, **fields)

    def _filled(
        self, document: Document, query: Sequence[Part], instruction: str | None
    ) -> tuple[str, dict[str, str]]:
        """The text with a field for each text, and the fields."""
        text = self.text
        fields: dict[str, str] = {}
        if "{document}" in text:
            text = text.replace("{document}", self._slots("document", document.parts, fields))
        if "{caption}" in text:
            fields["caption"] = document.caption or ""
        if "{instruction}" in text:
            fields["instruction"] = instruction or self.instruction or ""
        return text.replace("{query}", self._slots("query", query, fields)), fields

    def _slots(self, name: str, parts: Sequence[Part], fields: dict[str, str]) -> str:
        """Places for parts; `fields` gets their texts."""
        if not parts:
            return self.empty or ""
        if self.pictures_first:
            parts = sorted(parts, key=lambda part: isinstance(part, str))
        places = []
        for i, part in enumerate(parts):
            if isinstance(part, str):
                fields[f"{name}_{i}"] = part
            places.append(f"{{{name}_{i}}}" if isinstance(part, str) else self.picture)
        return self.separator.join(places)


@dataclass(frozen=True)
class _ByContent(PromptTemplate):
    """One of three: for a picture with a caption, for one without, and for all else."""

    kinds: tuple[PromptTemplate, ...] = ()

    @property
    def variants(self) -> tuple[PromptTemplate, ...]:
        return self.kinds

    def of(self, document: Document) -> PromptTemplate:
        captioned, plain, mixed = self.kinds
        if not _is_picture(document):
            return mixed.of(document)
        return plain if document.caption is None else captioned


def _is_picture(document: Document) -> bool:
    return document.image is not None or (
        len(document.parts) == 1 and isinstance(document.parts[0], Picture)
    )


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
    query_pictures=False,
)
DOCUMENT = PromptTemplate(
    "document",
    "{document}\nQuestion: {query}\nIs this document relevant to the question? "
    "Answer 'Yes' or 'No'.",
)
AUTO = _ByContent("auto", CAPTION.text, kinds=(CAPTION, PLAIN, DOCUMENT))
# The same questions with the query last: what is computed for a known document is little more
_CAPTION_LAST = (
    "<image>\nImage Caption: {caption}\n"
    "Based on the image and its caption, is the image relevant to the question? "
    "Answer 'Yes' or 'No'.\nQuestion: {query}"
)
INSTRUCTION_FIRST = _ByContent(
    "instruction-first",
    _CAPTION_LAST,
    kinds=(
        PromptTemplate("caption, instruction first", _CAPTION_LAST),
        PromptTemplate(
            "plain, instruction first",
            "<image>\nIs this image relevant to the question? Answer 'Yes' or 'No'.\n"
            "Question: {query}",
        ),
        PromptTemplate(
            "document, instruction first",
            "{document}\nIs this document relevant to the question? Answer 'Yes' or 'No'.\n"
            "Question: {query}",
        ),
    ),
)

TEMPLATES = {
    template.name: template
    for template in (AUTO, CAPTION, PLAIN, RETRIEVAL, INSTRUCTION_FIRST, DOCUMENT)
}
"""The prompts that `from_pretrained(template=...)` takes by name."""


def pictures_in_order(template: Template, query: Query, document: Document) -> tuple[Picture, ...]:
    """The pictures of a prompt, in the order of their places in it."""
    if template.query_pictures_first:
        return query.pictures + document.pictures
    return document.pictures + query.pictures


def resolve_template(template: Template | str) -> Template:
    """The template that a name means.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(template, str):
        return template
    if template not in TEMPLATES:
        raise ValueError(f"unknown template {quoted(template)}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[template]
