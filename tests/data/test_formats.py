"""Data sets are known by their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import (
    karpathy_image,
    mmqa_question,
    webqa_sample,
    write_karpathy,
    write_mmqa,
    write_picture,
    write_webqa,
)
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.data.captions import Captions
from ragvl.data.checking import check_questions, check_splits
from ragvl.data.formats import UnknownFormatError, open_questions
from ragvl.data.jsonl import JsonlQuestions
from ragvl.data.multimodalqa import MultimodalQA
from ragvl.data.problems import DataError
from ragvl.data.sources import Documents
from ragvl.data.webqa import WebQA


def test_each_format_is_known_by_its_files(tmp_path: Path) -> None:
    for name in ("webqa", "mmqa", "flickr"):
        (tmp_path / name).mkdir()
    write_webqa(tmp_path / "webqa", {"a": webqa_sample(), "b": webqa_sample(split="val")})
    write_mmqa(tmp_path / "mmqa", [mmqa_question()])
    write_karpathy(
        tmp_path / "flickr" / "dataset_flickr30k.json", [karpathy_image("1.jpg", "A dog.")]
    )
    write_picture(tmp_path / "flickr" / "1.jpg")
    (tmp_path / "flickr" / "captions.txt").write_text("image,caption\n1.jpg,A cat.\n")
    own = {"id": "q", "question": "Who?", "images": ["flickr/1.jpg"]}
    (tmp_path / "own.jsonl").write_text(json.dumps(own))

    webqa = open_questions(tmp_path / "webqa")
    assert isinstance(webqa, WebQA)
    assert list(webqa.gold) == ["b"]  # val, if nothing is said
    assert list(open_questions(tmp_path / "webqa", split="test").gold) == ["a"]
    assert isinstance(open_questions(tmp_path / "mmqa"), MultimodalQA)
    for source in ("flickr", "flickr/dataset_flickr30k.json", "flickr/captions.txt"):
        assert isinstance(open_questions(tmp_path / source), Captions)
    assert isinstance(open_questions(tmp_path / "own.jsonl"), JsonlQuestions)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no"):
        open_questions(tmp_path / "none")
    with pytest.raises(UnknownFormatError, match="no data set that is known"):
        open_questions(tmp_path)
    write_webqa(tmp_path, {"a": webqa_sample(split="val")})
    with pytest.raises(ValueError, match="is of Flickr30K and MSCOCO"):
        open_questions(tmp_path, protocol="1k")
    with pytest.raises(ValueError, match="where its pictures are"):
        open_questions(tmp_path, images=tmp_path)
    (tmp_path / "own.jsonl").write_text("{}")
    (tmp_path / "captions.txt").write_text("image,caption")
    for name in ("own.jsonl", "captions.txt"):
        with pytest.raises(ValueError, match="is one split"):
            open_questions(tmp_path / name, split="test")
    for name in ("flickr8k", "flickr30k"):
        write_karpathy(tmp_path / f"dataset_{name}.json", [karpathy_image("1.jpg", "A dog.")])
    with pytest.raises(ValueError, match="several data sets"):
        open_questions(tmp_path)


def test_a_folder_of_your_own_questions_has_a_file_a_split(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    for split in ("train", "test"):
        line = {"id": split, "question": "Who?", "images": ["a.png"]}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(line))
    assert list(open_questions(tmp_path).gold) == ["test"]
    assert list(open_questions(tmp_path, purpose="train").gold) == ["train"]
    with pytest.raises(FileNotFoundError, match=r"val\.jsonl"):
        open_questions(tmp_path, split="val")


def test_the_command_line_sets_how_large_pictures_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGVL_MAX_PIXELS", "")
    write_picture(tmp_path / "a.png")
    line = {"id": "q", "question": "Who?", "images": ["a.png"]}
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    check = ["data", "check", "--pictures", "--strict", str(tmp_path / "own.jsonl")]
    assert CliRunner().invoke(app, check).exit_code == 0
    refused = CliRunner().invoke(app, ["--max-pixels", "63", *check])
    assert refused.exit_code == 1
    assert "it is 8x8, above the limit of 63 pixels" in refused.output


def test_any_format_is_checked_picture_by_picture(tmp_path: Path) -> None:
    samples = {"a": webqa_sample(split="val"), "b": webqa_sample(split="val", Q=3)}
    write_webqa(tmp_path, samples)
    report = check_questions(tmp_path, pictures=True)
    assert (report.questions, report.documents) == (0, 2)
    assert report.problems.counts == {
        "broken sample": 1,
        "broken picture": 2,
        "gold picture broken": 1,
    }
    assert "30000000" in report.problems.messages["broken picture"][0]


def test_every_split_is_checked_and_named(tmp_path: Path) -> None:
    own, webqa, karpathy = (tmp_path / name for name in ("own", "webqa", "karpathy"))
    webqa.mkdir()
    write_picture(own / "a.png")
    (own / "documents.jsonl").write_text('{"id": "listed", "image": "a.png"}')
    for split, gold in {"train": "listed", "test": "lost", "val": "listed"}.items():
        line = {"id": "q", "question": "Who?", "gold": [gold]}
        (own / f"{split}.jsonl").write_text(json.dumps(line))
    reports = check_splits(own)
    assert {split: one.questions for split, one in reports.items()} == {
        "test": 0,
        "train": 1,
        "val": 1,
    }
    assert reports["test"].problems.counts == {"gold not among documents": 1, "of no use": 1}
    # Splits that are not there are not reported, and broken ones are
    write_webqa(webqa, {"a": webqa_sample(split="val"), "b": webqa_sample(split="train", Q=3)})
    reports = check_splits(webqa)
    assert {split: one.questions for split, one in reports.items()} == {"train": 0, "val": 1}
    write_picture(karpathy / "1.jpg")
    write_karpathy(karpathy / "dataset_k.json", [karpathy_image("1.jpg", "A dog.", split="val")])
    assert list(check_splits(karpathy)) == ["val"]
    # A split is there whose file has nothing in it, or whose pictures are all lost
    (own / "train.jsonl").write_text("")
    reports = check_splits(own)
    assert {split: one.questions for split, one in reports.items()} == {
        "test": 0,
        "train": 0,
        "val": 1,
    }
    images = [karpathy_image(f"{n}.jpg", "A dog.", split=s) for n, s in ((1, "val"), (2, "test"))]
    write_karpathy(karpathy / "dataset_k.json", images)
    reports = check_splits(karpathy)
    assert {split: one.questions for split, one in reports.items()} == {"val": 1, "test": 0}
    assert reports["test"].problems.counts == {"missing pictures": 1}
    assert list(check_splits(own, split="val")) == ["val"]
    for source in (own, webqa):
        with pytest.raises(FileNotFoundError if source == own else DataError):
            open_questions(source, split="other")
    with pytest.raises(FileNotFoundError):
        check_splits(own, split="other")


def test_a_list_of_documents_alone_is_checked(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    lines = [{"image": f"{name}.png", "split": "test"} for name in "abc"] + [{"text": "One."}]
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    for source in (tmp_path, file):
        ((split, report),) = check_splits(source).items()
        assert (split, report.questions, report.documents) == (None, None, 3)
        assert report.problems.counts == {"missing picture": 1}
        ((split, report),) = check_splits(source, split="val", pictures=True).items()
        assert (split, report.documents, len(report.problems)) == ("val", 1, 0)
    report = check_splits(tmp_path, pictures=True)[None]
    assert report.documents == 2
    assert report.problems.counts == {"missing picture": 1, "broken picture": 1}
    file.write_text("{}")
    ((_, report),) = check_splits(file).items()
    assert not report.is_of_use
    assert "one of image, text and parts" in str(report.problems.messages)
    with pytest.raises(FileNotFoundError, match=r"test.jsonl is missing: there is documents.jsonl"):
        open_questions(tmp_path)
    (tmp_path / "val.jsonl").touch()
    with pytest.raises(FileNotFoundError, match=r"is missing: the folder's splits are val"):
        open_questions(tmp_path)


def test_a_folder_with_lines_of_captions_is_a_data_set(tmp_path: Path) -> None:
    write_picture(tmp_path / "Images" / "1.jpg")
    write_picture(tmp_path / "Images" / "2.jpg")
    (tmp_path / "captions.txt").write_text("image,caption\n1.jpg,A dog.\n")
    assert open_questions(tmp_path).document_ids() == ["1.jpg"]
    assert {split: one.questions for split, one in check_splits(tmp_path).items()} == {None: 1}
    # To index or rank is to take every picture, not those only that have a caption
    assert [one.id for one in Documents(tmp_path)] == ["Images/1.jpg", "Images/2.jpg"]


@pytest.mark.parametrize("content", ['{"default": {"splits": {}}}', "[]", "", "{", '{"images": 3}'])
def test_another_datasets_json_makes_no_captions_of_a_folder(content: str, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "dataset_infos.json").write_text(content)
    line = {"id": "q", "question": "Who?", "images": ["a.png"]}
    (tmp_path / "test.jsonl").write_text(json.dumps(line))
    assert isinstance(open_questions(tmp_path), JsonlQuestions)


def test_of_what_is_of_no_use_the_problems_are_reported(tmp_path: Path) -> None:
    write_webqa(
        tmp_path, {"a": webqa_sample(split="val", Q=3), "b": webqa_sample(split="val", A=1)}
    )
    report = check_questions(tmp_path)
    assert (report.questions, report.documents) == (0, 0)
    assert report.problems.counts == {"broken sample": 2, "of no use": 1}
    assert "sample b: A:" in report.problems.messages["broken sample"][1]


def test_a_check_takes_the_pictures_folder_and_the_protocol(tmp_path: Path) -> None:
    write_picture(tmp_path / "elsewhere" / "1.jpg")
    path = write_karpathy(tmp_path / "dataset.json", [karpathy_image("1.jpg", "A dog.")])
    assert check_questions(path, images=tmp_path / "elsewhere").questions == 1
    report = check_questions(path, images=tmp_path / "elsewhere", protocol="1k")
    assert "no folds of 1000" in report.problems.messages["of no use"][0]
    (tmp_path / "own.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="where its pictures are"):
        check_questions(tmp_path / "own.jsonl", images=tmp_path)


def test_document_names_tell_files_of_one_name_apart(tmp_path: Path) -> None:
    opened = []
    for folder in ("a", "b"):
        write_picture(tmp_path / folder / "1.png")
        line = {"id": "q", "question": "Who?", "images": ["1.png"]}
        (tmp_path / folder / "test.jsonl").write_text(json.dumps(line))
        opened.append(open_questions(tmp_path / folder))
    first, second = opened
    assert (first.name, second.name) == ("a, test", "b, test")
    assert first.document_name("1.png") != second.document_name("1.png")
