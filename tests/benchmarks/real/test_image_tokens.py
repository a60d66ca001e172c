"""Fewer image tokens on real pictures, with tiny models on made-up ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from data_files import write_picture
from real.image_tokens import CONTROL, SETTINGS, TRAINED, measure
from real.layout import Layout
from runs.real_tables import TABLES
from tiny_encoders import save_text_encoder

RETRIEVER = Path(__file__).parents[3] / "ragvl" / "assets" / "tiny-retriever"


@pytest.fixture
def layout(tiny_model: Callable[[str], Path], tmp_path: Path) -> Layout:
    made = Layout(tmp_path)
    for folder in (made.models, made.weights, made.sets / "blind"):
        folder.mkdir(parents=True)
    for name in ("reranker", TRAINED, CONTROL):
        folder = made.models / name
        folder.mkdir()
        for file in tiny_model("llava").iterdir():
            (folder / file.name).symlink_to(file)
    (made.models / TRAINED / "trainer_state.json").write_text('{"global_step": 7}')
    (made.models / "retriever").symlink_to(RETRIEVER)
    (made.weights / "minilm").symlink_to(save_text_encoder(tmp_path / "text"))
    documents, questions = [], []
    for number in range(6):
        image = f"{number}.png"
        write_picture(made.sets / "blind" / image, f"hsl({60 * number}, 100%, 50%)")
        documents.append({"id": f"d{number}", "image": image, "caption": f"thing {number}"})
        questions.append({"id": f"q{number}", "question": f"{number}?", "gold": [f"d{number}"]})
    for name, lines in (("documents", documents), ("test", questions)):
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (made.sets / "blind" / f"{name}.jsonl").write_text(text)
    return made


@pytest.mark.slow
def test_every_setting_ranks_the_same_candidates(layout: Layout) -> None:
    result = measure(layout, sets=("blind",), num_questions=5, num_candidates=4)
    rows = result["rows"]
    assert [(row["reranker"], row["share"], row["compression"]) for row in rows] == [*SETTINGS]
    assert {row["questions"] for row in rows} == {5}
    sizes = [row["bytes_per_document"] for row in rows]
    assert sizes[0] == sizes[4] > sizes[1] == sizes[2] > sizes[3]
    # The same weights: only the share changes what is found
    assert rows[0]["recall@1"] == rows[4]["recall@1"]
    assert rows[1]["mrr"] == rows[2]["mrr"]

    text = TABLES["image_tokens_real"]({"image_tokens_real": result})
    assert "| blind | real | all | exact | 100 % |" in text
    assert "| blind | trained | 1/4 | int4 |" in text
    assert "after 7 steps more" in text
    assert "not measured" in TABLES["image_tokens_real"]({})


def test_what_is_not_trained_is_named(layout: Layout) -> None:
    (layout.models / CONTROL / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"no .*{CONTROL} yet"):
        measure(layout, sets=("blind",), num_questions=1)
