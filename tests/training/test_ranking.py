"""Ranking samples: who is Yes, who may be No, and files that people edit."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_files import write_picture
from tiny_encoders import save_checkpoint, save_text_encoder
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.data.jsonl import JsonlQuestions
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.retriever import (
    DualEncoder,
    FusedRetriever,
    IndexMismatchError,
    MixedIndex,
    Order,
    Retriever,
    TextEncoder,
    VectorIndex,
    View,
    WeightedSum,
)
from ragvl.training.ranking import (
    RankingFileError,
    RankingSample,
    index_documents,
    ranking_samples,
    read_ranking,
    write_ranking,
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return DualEncoder.from_pretrained(
        save_checkpoint(tmp_path_factory.mktemp("clip"), "clip"), device="cpu"
    )


Views = dict[Order, View]


@pytest.fixture(scope="module")
def views(questions: WebQA, encoder: DualEncoder) -> Views:
    return index_documents(questions, {"picture": encoder})


def test_yes_is_gold_and_no_is_a_near_miss(
    questions: WebQA, encoder: DualEncoder, views: Views
) -> None:
    samples = list(
        ranking_samples(questions, views, negatives_per_positive=2, depth=4, batch_size=5)
    )
    retriever = Retriever(encoder, questions.documents(), progress=False)
    by_question: dict[str | None, list[RankingSample]] = {}
    for sample in samples:
        by_question.setdefault(sample.question_id, []).append(sample)
    assert list(by_question) == [q.id for q in questions.questions]
    for question in questions.questions:
        own_samples = by_question[question.id]
        yes = [s.document for s in own_samples if s.answer == "Yes"]
        no = [s.document for s in own_samples if s.answer == "No"]
        assert tuple(yes) == question.gold
        assert len(no) == 2 * len(yes)
        order = [hit.id for hit in retriever.retrieve(question.text, k=100)]
        misses = [id for id in order if id not in question.gold][:4]
        assert len(set(no)) == len(no)
        assert set(no) <= set(misses)
        for sample in own_samples:
            assert sample.question == question.text
            assert sample.caption == questions.document(sample.document).caption
            if sample.rank is not None:
                assert order[sample.rank - 1] == sample.document
            else:
                assert sample.answer == "Yes"


def test_every_near_miss_is_drawn_sometimes(questions: WebQA, views: Views) -> None:
    first = questions.questions[0]
    drawn: Counter[str] = Counter()
    for seed in range(60):
        for sample in ranking_samples(questions, views, depth=3, seed=seed):
            if sample.question_id == first.id and sample.answer == "No":
                drawn[sample.document] += 1
    assert len(drawn) == 3
    assert min(drawn.values()) > 60 * len(first.gold) / 3 / 3


def test_the_seed_decides(questions: WebQA, views: Views) -> None:
    def made(seed: int) -> list[RankingSample]:
        return list(ranking_samples(questions, views, seed=seed))

    assert made(1) == made(1)
    assert made(1) != made(2)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.5])
def test_a_ratio_may_be_a_fraction(ratio: float, questions: WebQA, views: Views) -> None:
    counts: Counter[str] = Counter()
    for seed in range(20):
        counts += Counter(
            sample.answer
            for sample in ranking_samples(questions, views, negatives_per_positive=ratio, seed=seed)
        )
    assert counts["No"] / counts["Yes"] == pytest.approx(ratio, abs=0.15)


def test_the_gold_pool_has_other_questions_gold_only(
    questions: WebQA, encoder: DualEncoder
) -> None:
    views = index_documents(questions, {"picture": encoder}, pool="gold")
    gold = {id for question in questions.questions for id in question.gold}
    assert set(views["picture"].index.ids) == gold
    samples = ranking_samples(questions, views, negatives_per_positive=3)
    assert {sample.document for sample in samples} <= gold


def test_the_data_sets_own_negatives(questions: WebQA, views: Views) -> None:
    def negatives(share: float, seed: int = 0) -> dict[str | None, list[str]]:
        drawn: dict[str | None, list[str]] = {}
        samples = ranking_samples(
            questions, views, negatives_per_positive=2, labelled_share=share, seed=seed
        )
        for sample in samples:
            if sample.answer == "No":
                drawn.setdefault(sample.question_id, []).append(sample.document)
        return drawn

    answerable = {question.id: question for question in questions.questions}
    for id, drawn in negatives(1.0).items():
        own = answerable[str(id)].negatives
        assert len(drawn) == len(set(drawn)) == 2 * len(answerable[str(id)].gold)
        assert len(set(drawn) & set(own)) == min(len(drawn), len(own))

    def share_of_own(share: float) -> float:
        own = total = 0
        for seed in range(10):
            for id, drawn in negatives(share, seed).items():
                own += len(set(drawn) & set(answerable[str(id)].negatives))
                total += len(drawn)
        return own / total

    # What the retriever finds as well comes on top of the share.
    by_chance = share_of_own(0.0)
    assert by_chance < 0.9
    assert share_of_own(0.5) > by_chance + 0.5 * (1 - by_chance) - 0.15


def test_own_negatives_stay_in_the_pool(questions: WebQA, encoder: DualEncoder) -> None:
    views = index_documents(questions, {"picture": encoder}, pool="gold")
    samples = ranking_samples(questions, views, negatives_per_positive=3, labelled_share=1.0)
    assert {sample.document for sample in samples} <= set(views["picture"].index.ids)


def test_bad_arguments(questions: WebQA, encoder: DualEncoder, views: Views) -> None:
    with pytest.raises(ValueError, match="negatives_per_positive=-1"):
        next(ranking_samples(questions, views, negatives_per_positive=-1))
    with pytest.raises(ValueError, match="depth=0"):
        next(ranking_samples(questions, views, depth=0))
    with pytest.raises(ValueError, match=r"labelled_share=1.1"):
        next(ranking_samples(questions, views, labelled_share=1.1))
    other = VectorIndex(encoder.dim, encoder_fingerprint="another")
    with pytest.raises(IndexMismatchError, match="encoder another"):
        next(ranking_samples(questions, {"picture": View(encoder, MixedIndex(other, ()))}))
    strange = VectorIndex(encoder.dim, encoder_fingerprint=encoder.fingerprint)
    vector = np.eye(1, encoder.dim, dtype=np.float32)
    strange.add(["no such document"], vector)
    with pytest.raises(IndexMismatchError, match="'no such document'"):
        next(ranking_samples(questions, {"picture": View(encoder, MixedIndex(strange, ()))}))


def test_near_misses_of_pictures_and_captions(
    questions: WebQA, encoder: DualEncoder, tmp_path: Path
) -> None:
    text_encoder = TextEncoder.from_pretrained(save_text_encoder(tmp_path), device="cpu")
    fusion = WeightedSum(0.4)
    views = index_documents(questions, {"picture": encoder, "caption": text_encoder})
    samples = list(ranking_samples(questions, views, fusion=fusion, depth=6))
    pair = Retriever(encoder), Retriever(text_encoder)
    retriever = FusedRetriever(*pair, fusion, questions.documents(), progress=False)
    order = {q.id: [hit.id for hit in retriever.retrieve(q.text, 8)] for q in questions.questions}
    misses = [sample for sample in samples if sample.answer == "No"]
    assert misses
    for sample in misses:
        assert sample.rank is not None
        assert order[str(sample.question_id)][sample.rank - 1] == sample.document


# --- files --------------------------------------------------------------------------------------

YES = RankingSample("Wo ist die Mühle?", "7", "Yes", "Die Mühle, 1987", 3, "q1")
NO = RankingSample("Wo ist die Mühle?", "8", "No", None, None, None)


def test_texts_are_near_misses_beside_pictures(tmp_path: Path, encoder: DualEncoder) -> None:
    """They take turns, though a text is always nearer to a question; the file shows their words."""
    lines = []
    for number in range(4):
        write_picture(tmp_path / f"{number}.png", f"#{number * 40:02x}0000")
        texts = [f"Mill {number} is red.", f"Mill {number} was built in 187{number}."]
        line = {"id": f"q{number}", "question": f"What color is mill {number}?"}
        lines.append({**line, "images": [f"{number}.png"], "texts": texts, "gold": texts[:1]})
    own = tmp_path / "own.jsonl"
    own.write_text("\n".join(map(json.dumps, lines)))
    source = JsonlQuestions(own)
    views = index_documents(source, {"picture": encoder})
    assert sorted(views["picture"].index.ids) == sorted(source.document_ids())
    samples = list(ranking_samples(source, views, negatives_per_positive=4, depth=4, seed=0))
    for question in source.questions:
        mine = [s for s in samples if s.question_id == question.id]
        assert [s.document for s in mine if s.answer == "Yes"] == list(question.gold)
        no = [s for s in mine if s.answer == "No"]
        assert len(no) == 4
        of_kinds = Counter(s.document.endswith(".png") for s in no)
        assert of_kinds[True] in (2, 3), "every other one is a picture"
        for sample in mine:
            text = source.document(sample.document).text
            assert sample.caption == text


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "ranking.jsonl"
    assert write_ranking([YES, NO, YES], path) == {"Yes": 2, "No": 1}
    assert read_ranking(path) == [YES, NO, YES]
    assert "Mühle" in path.read_text(encoding="utf-8"), "for people to read"


def test_what_people_write_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "ranking.jsonl"
    line = {"question": "q", "document": "d", "answer": "No", "why": "a note"}
    path.write_text(f"\n{json.dumps(line)}\r\n\n")
    assert read_ranking(path) == [RankingSample("q", "d", "No")]


def test_what_stood_there_stays_until_the_new_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "ranking.jsonl"
    write_ranking([YES], path)

    def broken():
        yield NO
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_ranking(broken(), path)
    assert read_ranking(path) == [YES]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("not JSON", "line 2"),
        ("[1]", "line 2"),
        ('{"question": "q", "document": "d"}', "answer"),
        ('{"question": "q", "document": "d", "answer": "Maybe"}', "answer"),
        ('{"question": "", "document": "d", "answer": "Yes"}', "question"),
        ('{"question": "q", "document": 7, "answer": "Yes"}', "document"),
    ],
)
def test_a_broken_line_is_named(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "ranking.jsonl"
    path.write_text('{"question": "q", "document": "d", "answer": "Yes"}\n' + line + "\n")
    with pytest.raises(RankingFileError, match=complaint) as raised:
        read_ranking(path)
    assert f"{path}, line 2" in str(raised.value)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "ranking.jsonl"
    path.write_text("\n\n")
    with pytest.raises(RankingFileError, match="no samples"):
        read_ranking(path)
    with pytest.raises(FileNotFoundError):
        read_ranking(tmp_path / "missing.jsonl")


def test_a_broken_picture_costs_its_own_samples(tmp_path: Path, encoder: DualEncoder) -> None:
    write_world(tmp_path, Places(), counts={"train": 6}, seed=3)
    lost = WebQA(tmp_path, split="train").questions[0].gold[0]
    rows = (tmp_path / "imgs.tsv").read_bytes()
    start = rows.index(lost.encode() + b"\t") + len(lost) + 1
    (tmp_path / "imgs.tsv").write_bytes(rows[:start] + b"%" + rows[start + 1 :])
    source = WebQA(tmp_path, split="train")
    views = index_documents(source, {"picture": encoder})
    assert set(source.document_ids()) - set(views["picture"].index.ids) == {lost}
    assert source.problems.counts == {"broken picture": 1}
    samples = list(ranking_samples(source, views))
    assert lost not in {sample.document for sample in samples}
    answerable = {q.id for q in source.questions if lost not in q.gold}
    assert {sample.question_id for sample in samples} == answerable


def test_a_broken_picture_is_left_out_and_counted(small_world: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_world, tmp_path / "world")
    lost = WebQA(folder, split="train").questions[0].gold[0]
    rows = (folder / "imgs.tsv").read_bytes()
    start = rows.index(lost.encode() + b"\t") + len(lost) + 1
    (folder / "imgs.tsv").write_bytes(rows[:start] + b"AAAA" + rows[start + 4 :])
    out = tmp_path / "ranking.jsonl"
    assets = Path(__file__).parents[2] / "ragvl" / "assets"
    command = ["data", "ranking", str(folder), "--encoder", str(assets / "tiny-retriever")]
    command += ["--out", str(out), "--device", "cpu"]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    assert "broken picture: 1" in outcome.output
    assert lost not in {sample.document for sample in read_ranking(out)}
    outcome = CliRunner().invoke(app, [*command, "--strict"])
    assert outcome.exit_code == 1
    assert lost in outcome.output
