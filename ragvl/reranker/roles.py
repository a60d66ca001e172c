"""Prompts of rerankers whose chat template takes a query and a document by their roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ragvl.data.document import Document, Part
from ragvl.data.images import DocumentError
from ragvl.data.query import Query
from ragvl.messages import shown
from ragvl.mllm import Prompting, UnsupportedModelError
from ragvl.mllm.conversation import Conversations, Turn

_PROBE = "Is it a mill?"


@dataclass(frozen=True)
class RolesTemplate:
    """The messages `[{"role": "query", ...}, {"role": "document", ...}]` in a chat template.

    That is how sentence-transformers asks a reranker. An instruction, which it calls a prompt, is a
    system turn before them. What the chat template makes of them is the checkpoint's; which of the
    two comes first in the prompt shows by rendering.

    Attributes:
        name: what it is called.
        add_generation_prompt: prompts end with the beginning of an answer.
        variables: values for variables of the chat template.
        instructions: texts by name, of which `CrossEncoder.predict(prompt_name=)` names one.
        instruction: what stands in the system turn where a query brings none; None for no such
            turn.
        query_first: the query stands before the document, so that no two queries share a prefix;
            as `for_model` finds it.
        query_pictures_first: a query's pictures stand before a document's, which may be so where
            its text does not; as `for_model` finds it.
        takes_instruction: the chat template writes a system turn; as `for_model` finds it.
        ending: see `PromptTemplate`.
    """

    name: str = "roles"
    add_generation_prompt: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    instructions: Mapping[str, str] = field(default_factory=dict)
    instruction: str | None = None
    query_first: bool = True
    query_pictures_first: bool = True
    takes_instruction: bool = False
    ending: tuple[int, ...] = ()

    @property
    def content(self) -> object:
        """All that shapes its prompts beside the chat template, as `name_of` takes it."""
        return self.add_generation_prompt, dict(self.variables), self.instruction

    def for_model(self, prompting: Prompting) -> RolesTemplate:
        """The template with what can be said of one model's prompts.

        Raises:
            UnsupportedModelError: its chat template does not write a query and a document.
        """
        conversations = self._conversations(prompting)
        problems = []
        for part in (_PROBE, None):  # a document of text, or else of a picture
            turns = [Turn("query", (_PROBE,)), Turn("document", (part,))]
            try:
                form = conversations.form(turns)
            except ValueError as error:
                problems.append(str(error))
                continue
            if form.lost or form.num_images != (part is None):
                problems.append("one of them is not in the prompt")
                continue
            if part is None:
                document = conversations.write(turns).index(prompting.processor.image_token)
            else:
                document = conversations.position(turns, 1)
            query_first = conversations.position(turns, 0) < document
            image = prompting.processor.image_token
            pictures_turned = _pictures_turned(conversations, image, query_first=query_first)
            return replace(
                self,
                query_first=query_first,
                query_pictures_first=query_first != pictures_turned,
                takes_instruction=_writes_instruction(conversations, turns),
            )
        raise UnsupportedModelError(
            "the chat template does not write a query and a document, each by its role: "
            f"{problems[0]}"
        )

    def check(self, prompting: Prompting, query: Query, document: Document) -> None:
        """Refuses what the chat template has no place for.

        Raises:
            ValueError: the query holds it.
            DocumentError: the document does; the message names it.
        """
        self._checked(prompting, query, document)

    def write(self, prompting: Prompting, query: Query, document: Document) -> str:
        """The whole prompt, with a placeholder for each picture.

        Raises:
            ValueError: see `check`.
        """
        conversations, turns = self._checked(prompting, query, document)
        return conversations.write(turns)

    def before_query(
        self, prompting: Prompting, document: Document, instruction: str | None = None
    ) -> str:
        """What a document's prompts begin with, whatever the query.

        Args:
            prompting: the model's.
            document: the document.
            instruction: the queries'; None for the template's own.

        Raises:
            DocumentError: see `check`.
        """
        query = Query(_PROBE, instruction=instruction)
        conversations, turns = self._checked(prompting, query, document)
        return conversations.before(turns, len(turns) - 2)

    def instruction_named(self, name: str) -> str | None:
        """The instruction of this name; None where it says nothing.

        Raises:
            ValueError: the checkpoint has none of that name.
        """
        if name not in self.instructions:
            raise ValueError(
                f"the checkpoint has no prompt {name!r}; it has "
                f"{shown(', '.join(self.instructions)) or 'none'}"
            )
        return self.instructions[name] or None

    def _checked(
        self, prompting: Prompting, query: Query, document: Document
    ) -> tuple[Conversations, list[Turn]]:
        """What writes a pair, and the pair as turns; see `check`."""
        if query.instruction is not None and not self.takes_instruction:
            raise ValueError(f"the chat template has no place for the instruction of {query.name}")
        conversations = self._conversations(prompting)
        turns = self._turns(query.instruction, query.parts, document.parts)
        try:
            form = conversations.form(turns)
        except ValueError as error:
            raise DocumentError(f"{document.name}, for {query.name}: {error}") from error
        own = 1 if turns[0].role == "system" else 0  # a default's turn may be left out
        lost = [number - own for number in form.lost if number >= own]
        misplaced = _misplaced(query, document, lost, form.num_images)
        if misplaced is not None:
            raise misplaced
        return conversations, turns

    def _conversations(self, prompting: Prompting) -> Conversations:
        return prompting.conversations(
            add_generation_prompt=self.add_generation_prompt, variables=self.variables
        )

    def _turns(
        self, instruction: str | None, query: tuple[Part, ...], document: tuple[Part, ...]
    ) -> list[Turn]:
        said = instruction or self.instruction
        system = [] if said is None else [Turn("system", (said,))]
        return [*system, Turn("query", _texts(query)), Turn("document", _texts(document))]


def _texts(parts: tuple[Part, ...]) -> tuple[str | None, ...]:
    return tuple(part if isinstance(part, str) else None for part in parts)


def _misplaced(
    query: Query, document: Document, lost: list[int], num_images: int
) -> ValueError | None:
    """What is wrong with a prompt that lacks texts, by number, or has so many pictures."""
    num_query_texts = len(query.parts) - len(query.pictures)
    no_place = "the chat template has no place for"
    if lost and lost[0] < num_query_texts:
        return ValueError(f"{no_place} the text of {query.name}")
    if lost:
        return DocumentError(f"{no_place} the text of {document.name}")
    num_pictures = len(query.pictures) + len(document.pictures)
    if num_images == num_pictures:
        return None
    written = f"it writes {num_images} of {num_pictures}"
    if not document.pictures:
        return ValueError(f"{no_place} the pictures of {query.name}: {written}")
    whose = f"{document.name} and {query.name}" if query.pictures else document.name
    return DocumentError(f"{no_place} the pictures of {whose}: {written}")


def _pictures_turned(conversations: Conversations, image: str, *, query_first: bool) -> bool:
    """Whether pictures of the side whose text comes second stand before the other's.

    A chat template may write one side's pictures before all texts. Whose the first picture is shows
    where the other side has none: the prompt up to it stays the same.
    """
    pictured, bare = (_PROBE, None), (_PROBE,)
    try:
        both, with_queries, with_documents = (
            conversations.write([Turn("query", query), Turn("document", document)])
            for query, document in ((pictured, pictured), (pictured, bare), (bare, pictured))
        )
    except ValueError:  # no prompt of this model has pictures on both sides
        return False
    first, _, rest = both.partition(image)
    if image not in rest:
        return False
    beginning = first + image
    queries, documents = (x.startswith(beginning) for x in (with_queries, with_documents))
    return documents and not queries if query_first else queries and not documents


def _writes_instruction(conversations: Conversations, turns: list[Turn]) -> bool:
    try:
        return 0 not in conversations.form([Turn("system", (_PROBE,)), *turns]).lost
    except ValueError:
        return False
