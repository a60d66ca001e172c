"""MultimodalQA's published files: gzipped lines of questions and of pictures.

Layout as released with Talmor et al., "MultiModalQA: Complex Question Answering over Text, Tables
and Images" (ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ragvl.data.document import Document
from ragvl.data.files import existing, read_json_lines
from ragvl.data.problems import Problems
from ragvl.data.questions import Pool, Question, QuestionSet

PICTURES = "MMQA_images.jsonl.gz"


class MultimodalQA(QuestionSet):
    """One split of MultimodalQA: questions that are answered from pictures.

    A question's documents are its `image_doc_ids`; gold are those of its `supporting_context` that
    are pictures; a document's caption is its page's title. Of the test split neither gold documents
    nor answers are published.

    Args:
        folder: holds MMQA_{split}.jsonl.gz, MMQA_images.jsonl.gz and the pictures.
        split: "train", "dev" or "test".
        images: the folder of the pictures; by default final_dataset_images in `folder`.
        types: which questions, by `metadata.type`. RagVL takes ImageQ.
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
        types: Collection[str] = ("ImageQ",),
        strict: bool = False,
    ) -> None:
        folder = Path(folder)
        hint = "a MultimodalQA folder holds MMQA_{train,dev,test}.jsonl.gz and " + PICTURES
        path = existing(folder / f"MMQA_{split}.jsonl.gz", hint)
        pictures = existing(folder / PICTURES, hint)
        self._folder = folder / "final_dataset_images" if images is None else Path(images)
        self.name = f"MultimodalQA, {split}"
        self.problems = Problems(strict)
        self._pictures: dict[str, tuple[str, str]] = {}  # file and title by id
        for number, line in read_json_lines(pictures, self.problems):
            try:
                id, file, title = line["id"], line["path"], line["title"]
                if not all(isinstance(value, str) for value in (id, file, title)):
                    raise TypeError("id, path and title must be text")
            except (KeyError, TypeError) as error:
                self.problems.add("broken line", f"{pictures}, line {number}: {error!r}")
                continue
            if id in self._pictures:
                self.problems.add("duplicate id", f"{pictures}, line {number}: picture {id}")
                continue
            self._pictures[id] = file, title
        self._types = frozenset(types)
        self._ids: dict[str, bool] = {}  # documents in order, and whether their picture is there
        self._gold: dict[str, None] = {}
        self.questions: list[Question] = []
        seen: set[str] = set()
        for number, line in read_json_lines(path, self.problems):
            try:
                qid = line["qid"]
                if line["metadata"]["type"] not in self._types:
                    continue
                if qid in seen:
                    self.problems.add("duplicate id", f"{path}, line {number}: question {qid}")
                    continue
                seen.add(qid)
                self._add(line)
            except (KeyError, TypeError, AttributeError) as error:
                self.problems.add("broken line", f"{path}, line {number}: {error!r}")
        self.check()

    def _add(self, line: dict[str, Any]) -> None:
        supporting = line.get("supporting_context", ())
        gold = [part["doc_id"] for part in supporting if part["doc_part"] == "image"]
        listed = line["metadata"]["image_doc_ids"]
        question = Question(
            id=line["qid"],
            text=line["question"].strip(),
            answers=tuple(str(answer["answer"]) for answer in line.get("answers", ())),
            category=line["metadata"]["type"],
            gold=tuple(dict.fromkeys(gold)),
            negatives=tuple(id for id in listed if id not in gold and self._is_there(id, line))
            if supporting
            else (),
        )
        there = [self._is_there(id, line) for id in question.gold]
        if all(there):
            self.questions.append(question)
            self._gold |= dict.fromkeys(question.gold)
        for id in listed:  # the test split's too, of which no one knows what is gold
            self._is_there(id, line)

    def _is_there(self, id: str, line: dict[str, Any]) -> bool:
        """Whether a document has a picture; notes the document, and the problem, once."""
        if id not in self._ids:
            known = self._pictures.get(id)
            self._ids[id] = known is not None and (self._folder / known[0]).is_file()
            if not self._ids[id]:
                what = "is not listed" if known is None else f"lacks its file {known[0]}"
                message = f"document {id} of question {line['qid']} {what}"
                self.problems.add("missing picture", message)
        return self._ids[id]

    def document_ids(self, pool: Pool = "full") -> list[str]:
        """Every picture that the split's questions list, or gold ones only; see `QuestionSet`."""
        if pool == "gold":
            return list(self._gold)
        return [id for id, is_there in self._ids.items() if is_there]

    def document(self, document_id: str) -> Document:
        """One document; see `QuestionSet`."""
        file, title = self._pictures[document_id]
        return Document(self._folder / file, caption=title, id=document_id)
