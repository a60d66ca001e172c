"""MultimodalQA's published files: gzipped lines of questions, of pictures and of texts.

Layout as released with Talmor et al., "MultiModalQA: Complex Question Answering over Text, Tables
and Images" (ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from ragvl.data.document import Document
from ragvl.data.problems import Problems, brief, brief_quoted
from ragvl.data.questions import SHOWN_MODALITY, Modality, Pool, Question, QuestionSet
from ragvl.data.reading import existing, is_file, place, read_json_lines
from ragvl.data.schemas import FIRST_ERROR, String, StringOrNumber, Text, parsed
from ragvl.data.validation import MissingPictures, each_once, given_answers, pictures_are_there

PICTURES = "MMQA_images.jsonl.gz"
TEXTS = "MMQA_texts.jsonl.gz"
_TYPES: dict[Modality, tuple[str, ...]] = {
    "image": ("ImageQ",),
    "text": ("TextQ",),
    "both": ("ImageQ", "TextQ"),
}
_PARTS: dict[Modality, tuple[str, ...]] = {
    "image": ("image",),
    "text": ("text",),
    "both": ("image", "text"),
}


class _Picture(BaseModel):
    id: Text
    path: Text
    title: String


class _Text(BaseModel):
    id: Text
    text: Text


class _Answer(BaseModel):
    answer: StringOrNumber


class _Metadata(BaseModel):
    type: String
    image_doc_ids: Annotated[list[Text], FIRST_ERROR]
    text_doc_ids: Annotated[list[Text], FIRST_ERROR] = []


class _Part(BaseModel):
    doc_id: Text
    doc_part: str


class _Question(BaseModel):
    qid: Text
    question: Text
    metadata: _Metadata
    answers: Annotated[list[_Answer], FIRST_ERROR] = []  # the test split has neither these
    supporting_context: Annotated[list[_Part], FIRST_ERROR] = []  # nor these

    def gold(self, modality: Modality) -> list[str]:
        """The documents that answer it."""
        wanted = _PARTS[modality]
        return [part.doc_id for part in self.supporting_context if part.doc_part in wanted]

    def listed(self, modality: Modality) -> list[str]:
        """Its documents."""
        images = [] if modality == "text" else self.metadata.image_doc_ids
        texts = [] if modality == "image" else self.metadata.text_doc_ids
        return [*images, *texts]


class MultimodalQA(QuestionSet):
    """One split of MultimodalQA: questions that are answered from pictures, texts, or either.

    A question's documents are its `image_doc_ids` and `text_doc_ids`; gold are those of its
    `supporting_context`; a picture's caption is its page's title. Of the test split neither gold
    documents nor answers are published.

    Args:
        folder: holds MMQA_{split}.jsonl.gz, MMQA_images.jsonl.gz and the pictures; for texts also
            MMQA_texts.jsonl.gz, alone where pictures are not wanted.
        split: "train", "dev" or "test".
        images: the folder of the pictures; by default final_dataset_images in `folder`.
        modality: which documents.
        types: which questions, by `metadata.type`; by default ImageQ, as RagVL takes, TextQ for
            texts, and both for both.
        strict: stop at the first problem.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: no question is left, or `strict` met a problem.
    """

    answer_metric = "multimodalqa"

    def __init__(
        self,
        folder: str | Path,
        *,
        split: str = "dev",
        images: str | Path | None = None,
        modality: Modality = "image",
        types: Collection[str] | None = None,
        strict: bool = False,
    ) -> None:
        folder = Path(folder)
        files = {"image": PICTURES, "text": TEXTS, "both": f"{PICTURES}, {TEXTS}"}[modality]
        hint = "a MultimodalQA folder holds MMQA_{train,dev,test}.jsonl.gz and " + files
        path = existing(folder / f"MMQA_{split}.jsonl.gz", hint)
        self._folder = folder / "final_dataset_images" if images is None else Path(images)
        self.name = f"MultimodalQA, {split}{SHOWN_MODALITY[modality]}"
        self.problems = Problems(strict)
        self._modality = modality
        self._listed: dict[str, _Picture] = {}
        self._texts: dict[str, str] = {}
        if modality != "text":
            self._listed = self._read_pictures(existing(folder / PICTURES, hint))
        if modality != "image":
            self._texts = self._read_texts(existing(folder / TEXTS, hint))
        self._missing = MissingPictures(self._why_missing, self.problems)
        self._ids: dict[str, None] = {}  # ordered set
        self._gold: dict[str, None] = {}
        self.questions: list[Question] = []
        seen: set[str] = set()
        for number, line in read_json_lines(path, self.problems):
            if _is_of_another_type(line, _TYPES[modality] if types is None else types):
                continue
            where = place(path, number)
            question = parsed(_Question.model_validate, line, "broken line", where, self.problems)
            if question is None:
                continue
            where += f", question {brief(question.qid)}"
            if question.qid in seen:
                self.problems.add("duplicate id", where)
                continue
            seen.add(question.qid)
            self._add(question, where)
        self.check()

    def _read_pictures(self, path: Path) -> dict[str, _Picture]:
        listed: dict[str, _Picture] = {}
        for number, line in read_json_lines(path, self.problems):
            where = place(path, number)
            picture = parsed(_Picture.model_validate, line, "broken line", where, self.problems)
            if picture is not None and picture.id in listed:
                self.problems.add("duplicate id", f"{where}: picture {brief(picture.id)}")
            elif picture is not None:
                listed[picture.id] = picture
        return listed

    def _read_texts(self, path: Path) -> dict[str, str]:
        texts: dict[str, str] = {}
        for number, line in read_json_lines(path, self.problems):
            where = place(path, number)
            text = parsed(_Text.model_validate, line, "broken line", where, self.problems)
            if text is not None and (text.id in texts or text.id in self._listed):
                self.problems.add("duplicate id", f"{where}: text {brief(text.id)}")
            elif text is not None:
                texts[text.id] = text.text
        return texts

    def _add(self, line: _Question, where: str) -> None:
        listed = each_once(line.listed(self._modality), where, self.problems)
        gold = each_once(line.gold(self._modality), where, self.problems)
        if strangers := [id for id in gold if id not in listed]:
            names = " or ".join(f"{part}_doc_ids" for part in _PARTS[self._modality])
            message = f"{where}: {brief_quoted(strangers[0])} is none of its {names}"
            self.problems.add("gold not among images", message)
            return
        if not gold and "supporting_context" in line.model_fields_set:
            wanted = " or ".join(_PARTS[self._modality])
            self.problems.add("no gold picture", f"{where}: supporting_context has no {wanted}")
        missing = self._missing.among(listed, where)
        if not pictures_are_there(gold, missing, where, self.problems):
            return
        there = [id for id in listed if id not in missing]
        answers = (
            given_answers([given.answer for given in line.answers], where, self.problems)
            if "answers" in line.model_fields_set
            else ()
        )
        self._ids |= dict.fromkeys(there)
        self._gold |= dict.fromkeys(gold)
        self.questions.append(
            Question(
                id=line.qid,
                text=line.question,
                answers=answers,
                category=line.metadata.type,
                gold=gold,
                # Where no gold is known, the others are not known to be distractors either
                negatives=tuple(id for id in there if id not in gold and line.supporting_context),
            )
        )

    def _why_missing(self, id: str) -> str | None:
        if id in self._texts:
            return None
        listed = self._listed.get(id)
        if listed is None:
            return f"document {brief(id)} is not listed"
        if is_file(self._folder / listed.path):
            return None
        return f"document {brief(id)}: {place(listed.path)}"

    def document_ids(self, pool: Pool = "full") -> list[str]:
        """Every document that the split's questions list, or gold ones only; see `QuestionSet`."""
        return list(self._gold if pool == "gold" else self._ids)

    def document(self, document_id: str) -> Document:
        """One document; see `QuestionSet`."""
        if document_id in self._texts:
            return Document(text=self._texts[document_id], id=document_id)
        listed = self._listed[document_id]
        return Document(self._folder / listed.path, caption=listed.title, id=document_id)

    def other_documents(self) -> Iterator[Document]:
        """Texts; see `QuestionSet`."""
        return (self.document(id) for id in self._ids if id in self._texts)


def _is_of_another_type(line: dict[str, Any], types: Collection[str]) -> bool:
    metadata = line.get("metadata")
    own = metadata.get("type") if isinstance(metadata, dict) else None
    return isinstance(own, str) and own not in types
