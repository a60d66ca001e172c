"""Examples are worded as at inference, and labels stand under the answer's tokens alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data_files import karpathy_image, mmqa_question, write_karpathy, write_mmqa, write_picture
from PIL import Image
from tiny_models import ARCHITECTURES

from ragvl.data.captions import Captions
from ragvl.data.document import Document
from ragvl.data.images import DocumentError, ImageError
from ragvl.data.jsonl import JsonlQuestions
from ragvl.data.multimodalqa import MultimodalQA
from ragvl.data.query import Query
from ragvl.data.questions import QuestionSet
from ragvl.data.webqa import WebQA
from ragvl.generator import Generator
from ragvl.mllm import MLLM, PromptTooLongError
from ragvl.reranker import Reranker
from ragvl.reranker.templates import INSTRUCTION_FIRST, resolve_template
from ragvl.training.examples import IGNORE, AnswerExamples, Collator, Example, RankingExamples
from ragvl.training.ranking import RankingSample


class Some(QuestionSet):
    """A data set with other questions over the same documents."""

    def __init__(self, source: WebQA, questions) -> None:
        self.questions, self._source = questions, source

    def document_ids(self, pool="full"):
        return self._source.document_ids(pool)

    def document(self, document_id):
        return self._source.document(document_id)


@pytest.fixture(scope="module")
def mllm(tiny_mllm: Callable[[str], MLLM]) -> MLLM:
    return tiny_mllm("llava")


# --- answers ------------------------------------------------------------------------------------


def test_every_question_with_answer_and_gold_is_an_example(questions: WebQA, mllm: MLLM) -> None:
    first, second, third, *others = questions.questions
    left_out = [replace(first, answers=()), replace(second, gold=())]
    examples = AnswerExamples(Some(questions, [*left_out, third, *others]), mllm.prompting)
    assert len(examples) == len(others) + 1
    example = examples[0]
    assert example.answer == third.answers[0]
    assert {document.id for document in example.documents} == set(third.gold)
    with pytest.raises(ValueError, match="no question has both"):
        AnswerExamples(Some(questions, left_out), mllm.prompting)


def test_an_example_is_worded_as_the_generator_words_it(questions: WebQA, mllm: MLLM) -> None:
    example = AnswerExamples(questions, mllm.prompting, num_pictures=2)[0]
    images = [mllm.prompting.encode_image(document.load()) for document in example.documents]
    expected = Generator(mllm)._encode(0, questions.questions[0].text, example.documents, images)
    assert mllm.prompting.encode_prompt(example.prompt, images).input_ids == expected.input_ids


@pytest.mark.parametrize("hard", [True, False])
def test_irrelevant_pictures_fill_up(hard: bool, questions: WebQA, mllm: MLLM) -> None:
    examples = AnswerExamples(questions, mllm.prompting, num_pictures=3, hard=hard, seed=5)
    places: Counter[int] = Counter()
    from_list = 0
    for example, question in zip(examples, questions.questions, strict=True):
        ids = [document.id for document in example.documents]
        assert len(ids) == len(set(ids)) == 3
        assert set(question.gold) < set(ids)
        places[ids.index(question.gold[0])] += 1
        from_list += set(ids) - set(question.gold) <= set(question.negatives)
    assert len(places) == 3, "the order is shuffled"
    assert (from_list == len(examples)) is hard


def test_random_pictures_take_the_place_of_missing_distractors(
    questions: WebQA, mllm: MLLM
) -> None:
    lonely = [replace(question, negatives=()) for question in questions.questions]
    for example in AnswerExamples(Some(questions, lonely), mllm.prompting, num_pictures=4):
        assert len({document.id for document in example.documents}) == 4


def test_the_draw_depends_on_seed_and_place_alone(questions: WebQA, mllm: MLLM) -> None:
    def ids(seed: int, order) -> dict[int, list[str | None]]:
        examples = AnswerExamples(questions, mllm.prompting, num_pictures=3, seed=seed)
        return {i: [document.id for document in examples[i].documents] for i in order}

    numbers = range(len(questions.questions))
    assert ids(1, numbers) == ids(1, reversed(numbers))
    assert ids(1, numbers) != ids(2, numbers)


def test_no_more_pictures_than_there_are(questions: WebQA, mllm: MLLM) -> None:
    examples = AnswerExamples(questions, mllm.prompting, num_pictures=10_000)
    assert len(examples[0].documents) == len(questions.document_ids())


# --- ranking ------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, INSTRUCTION_FIRST], ids=["auto", "instruction-first"])
def test_a_sample_is_worded_as_the_reranker_words_it(
    template, questions: WebQA, mllm: MLLM
) -> None:
    question = questions.questions[0]
    sample = RankingSample(question.text, question.gold[0], "Yes")
    example = RankingExamples([sample], questions, mllm.prompting, template)[0]
    reranker = Reranker(mllm, **({} if template is None else {"template": template.name}))
    assert example.prompt == reranker.prompt(question.text, example.documents[0])
    assert (example.answer, example.documents[0].id) == ("Yes", question.gold[0])


def test_captions_are_cut_as_they_are_used(questions: WebQA, mllm: MLLM) -> None:
    question = questions.questions[0]
    sample = RankingSample(question.text, question.gold[0], "Yes")
    (example,) = RankingExamples([sample], questions, mllm.prompting, caption_tokens=3)
    document = example.documents[0]
    reranker = Reranker(mllm, caption_tokens=3)
    assert example.prompt == reranker.prompt(question.text, document)
    assert example.prompt != Reranker(mllm).prompt(question.text, document)
    answer = AnswerExamples(questions, mllm.prompting, caption_tokens=3)[0]
    images = [mllm.prompting.encode_image(document.load()) for document in answer.documents]
    generator = Generator(mllm, caption_tokens=3)
    expected = generator._encode(0, question.text, answer.documents, images)
    assert mllm.prompting.encode_prompt(answer.prompt, images).input_ids == expected.input_ids


MIXED = {
    "id": "q",
    "question": "Who built it?",
    "answer": "Anna",
    "images": ["a.png"],
    "captions": ["The mill"],
    "texts": ["Anna Brandt built it in 1871."],
    "documents": [{"id": "page", "parts": [{"image": "a.png"}, "Deed", {"image": "b.png"}]}],
    "gold": ["Anna Brandt built it in 1871.", "page"],
}


@pytest.fixture
def mixed(tmp_path: Path) -> JsonlQuestions:
    """A question answered from a text and a page of two pictures."""
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name)
    (tmp_path / "own.jsonl").write_text(json.dumps(MIXED))
    return JsonlQuestions(tmp_path / "own.jsonl")


def test_documents_of_every_kind_are_learned_from(mixed: JsonlQuestions, mllm: MLLM) -> None:
    """Worded as reranker and generator word them, and a batch of each gives a finite loss."""
    samples = [RankingSample("Who built it?", id, "Yes") for id in mixed.document_ids()]
    ranking = RankingExamples(samples, mixed, mllm.prompting)
    reranker = Reranker(mllm)
    for example, sample in zip(ranking, samples, strict=True):
        assert example.prompt == reranker.prompt(sample.question, mixed.document(sample.document))
    answers = AnswerExamples(mixed, mllm.prompting, num_pictures=3)
    (example,) = answers
    assert {document.id for document in example.documents} == set(mixed.document_ids())
    images = [
        mllm.prompting.encode_image(picture.load())
        for document in example.documents
        for picture in document.pictures
    ]
    expected = Generator(mllm)._encode(0, "Who built it?", example.documents, images)
    assert mllm.prompting.encode_prompt(example.prompt, images).input_ids == expected.input_ids
    for examples in (list(ranking), [example]):
        batch = Collator(mllm)(examples)
        with torch.no_grad():
            assert torch.isfinite(mllm.model(**batch).loss)


@pytest.mark.usefixtures("mixed")
def test_a_sample_about_a_picture_is_worded_with_it(mllm: MLLM, tmp_path: Path) -> None:
    write_picture(tmp_path / "asked.png", "blue")
    (tmp_path / "own.jsonl").write_text(json.dumps({**MIXED, "question_image": "asked.png"}))
    source = JsonlQuestions(tmp_path / "own.jsonl")
    samples = [
        RankingSample("Who built it?", id, "No", question_id="q") for id in source.document_ids()
    ]
    examples = list(RankingExamples(samples, source, mllm.prompting))
    query = Query("Who built it?", tmp_path / "asked.png")
    for example in examples:
        (document,) = example.documents
        assert example.prompt == Reranker(mllm).prompt(query, document)
        assert example.pictures is not None
        asked = example.pictures[-1]  # the template has documents first
        assert asked.path == str(tmp_path / "asked.png")
        assert [*example.pictures[:-1]] == [*document.pictures]
    with torch.no_grad():
        assert torch.isfinite(mllm.model(**Collator(mllm)(examples)).loss)
    with pytest.raises(ValueError, match="'retrieval'"):
        RankingExamples(samples[:1], source, mllm.prompting, resolve_template("retrieval"))
    with pytest.raises(ValueError, match="question 'q' has a picture"):
        AnswerExamples(source, mllm.prompting)


def test_documents_that_the_template_has_no_place_for_are_refused_at_once(
    mixed: JsonlQuestions, mllm: MLLM
) -> None:
    template = resolve_template("caption")
    of_picture, *others = [RankingSample("Who?", id, "Yes") for id in mixed.document_ids()]
    assert len(RankingExamples([of_picture], mixed, mllm.prompting, template)) == 1
    for sample in others:
        with pytest.raises(
            DocumentError, match=f"'caption' is about one picture.*{sample.document}"
        ):
            RankingExamples([of_picture, sample], mixed, mllm.prompting, template)


def test_samples_of_another_data_set_are_refused(questions: WebQA, mllm: MLLM) -> None:
    good = RankingSample("q", questions.document_ids()[0], "No")
    with pytest.raises(ValueError, match=r"sample 1 .*'nowhere'"):
        RankingExamples([good, RankingSample("q", "nowhere", "No")], questions, mllm.prompting)
    with pytest.raises(ValueError, match="no samples"):
        RankingExamples([], questions, mllm.prompting)


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_labels_are_the_answers_tokens(
    architecture: str, questions: WebQA, tiny_mllm: Callable[[str], MLLM]
) -> None:
    mllm = tiny_mllm(architecture)
    examples = AnswerExamples(questions, mllm.prompting, num_pictures=2)
    some = [examples[i] for i in range(3)]
    batch = Collator(mllm)(some)
    assert batch["labels"].shape == batch["input_ids"].shape
    for example, ids, mask, labels in zip(
        some, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        labelled = labels != IGNORE
        assert (labels[labelled] == ids[labelled]).all()
        length = int(mask.sum())
        assert labelled.nonzero()[-1].item() == length - 1, "up to the last token"
        answer = labels[labelled].tolist()
        images = [mllm.prompting.encode_image(document.load()) for document in example.documents]
        prompt = mllm.prompting.encode_prompt(example.prompt, images)
        assert ids[: length - len(answer)].tolist() == prompt.input_ids
        assert mllm.prompting.tokenizer.decode(answer[:-1]).strip() == example.answer
        assert answer[-1] == mllm.prompting.tokenizer.eos_token_id


def test_a_batch_is_made_on_the_cpu(questions: WebQA, mllm: MLLM) -> None:
    batch = Collator(mllm)([AnswerExamples(questions, mllm.prompting)[0]])
    assert {tensor.device for tensor in batch.values()} == {torch.device("cpu")}


def test_an_example_that_does_not_fit_is_refused(mllm: MLLM) -> None:
    document = Document(Image.new("RGB", (40, 40)), id="the long one")
    short = Example(mllm.prompting.render("<image>\nWhy?"), [document], "yes")
    long = replace(
        short,
        prompt=mllm.prompting.render("<image>\n{q}", q="long " * mllm.prompting.max_length),
    )
    with pytest.raises(PromptTooLongError, match=r"'the long one' .* the answer 'yes'") as caught:
        Collator(mllm)([short, long])
    assert caught.value.index == 1


def test_a_picture_that_the_processor_refuses_is_named(tiny_mllm: Callable[[str], MLLM]) -> None:
    mllm = tiny_mllm("qwen2_vl")
    strip = Document(Image.new("RGB", (2000, 4)), id="a strip")
    with pytest.raises(ImageError, match="a strip"):
        Collator(mllm)([Example(mllm.prompting.render("<image>\nWhy?"), [strip], "yes")])


def test_an_answer_in_parts_is_learned_whole(tmp_path: Path, mllm: MLLM) -> None:
    parts = mmqa_question(answers=[{"answer": "red"}, {"answer": 3}])
    examples = AnswerExamples(MultimodalQA(write_mmqa(tmp_path, [parts])), mllm.prompting)
    assert examples[0].answer == "red, 3"


def test_captions_are_asked_for_as_captions(tmp_path: Path, mllm: MLLM) -> None:
    write_picture(tmp_path / "1.jpg")
    path = write_karpathy(tmp_path / "dataset.json", [karpathy_image("1.jpg", "A dog.")])
    sample = RankingSample("A dog.", "1.jpg", "Yes")
    example = RankingExamples([sample], Captions(path), mllm.prompting)[0]
    assert "Image Caption: A dog.\nIs the image relevant to the caption?" in example.prompt
