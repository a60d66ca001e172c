"""Train a reranker on questions of your own, and see what it gains:

    python examples/train_on_your_questions.py [FOLDER]

FOLDER holds `train.jsonl` and `val.jsonl`, a question a line, with the documents that answer it and
others that do not (docs/evaluation.md has the format):

    {"id": "q1", "question": "What color is the largest slice in the staff chart of Dabefis farm?",
     "gold": ["charts/17.png"], "distractors": ["charts/18.png", "charts/40.png"],
     "images": ["charts/17.png", "charts/18.png", "charts/40.png"],
     "captions": ["farm Dabefis: chart, 2001", "farm Dabefis: chart, 1990", null]}

Without FOLDER such files are written first, of drawn charts, which the tiny reranker that comes
along has never seen. The trained one is kept in FOLDER/reranker. Minutes on a CPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ragvl import Reranker
from ragvl.data.formats import open_questions
from ragvl.data.questions import QuestionSet
from ragvl.data.synthetic import SUBJECTS, Split, write_world
from ragvl.server.settings import TINY_RERANKER
from ragvl.training.command import run
from ragvl.training.ranking import RankingSample, write_ranking

NO_FOR_EACH_YES = 3
SETTINGS = (
    "--lora.rank=0",
    "--freeze_vision=false",
    "--num_train_epochs=4",
    "--per_device_train_batch_size=16",
    "--learning_rate=5e-4",
    "--warmup_steps=0.1",
    "--logging_steps=20",
    "--save_strategy=no",
    "--report_to=none",
    "--use_cpu=true",
)


def write_charts(folder: Path, companies: Mapping[Split, int]) -> None:
    """Writes questions about companies' charts, which are drawn; each split has its own."""
    world = write_world(folder / "world", SUBJECTS["charts"], counts=companies, questions_each=4)
    (folder / "charts").mkdir()
    for split in companies:
        drawn = open_questions(world, split=split)
        for id in drawn.document_ids():
            (folder / f"charts/{id}.png").write_bytes(drawn.document(id).image)
        with (folder / f"{split}.jsonl").open("w") as file:
            for question in drawn.questions:
                ids = [*question.gold, *question.negatives]
                line = {
                    "id": question.id,
                    "question": question.text,
                    "answer": question.answers[0],
                    "gold": [f"charts/{id}.png" for id in question.gold],
                    "distractors": [f"charts/{id}.png" for id in question.negatives],
                    "images": [f"charts/{id}.png" for id in ids],
                    "captions": [drawn.document(id).caption for id in ids],
                }
                file.write(json.dumps(line) + "\n")


def samples(questions: QuestionSet) -> list[RankingSample]:
    """A Yes for each document that answers a question, and a few No."""
    found = []
    for question in questions.questions:
        no = question.negatives[: NO_FOR_EACH_YES * len(question.gold)]
        for answer, ids in (("Yes", question.gold), ("No", no)):
            found += [
                RankingSample(question.text, id, answer, question_id=question.id) for id in ids
            ]
    return found


def found_first(reranker: Reranker, questions: QuestionSet) -> float:
    """The share of questions of which the first among their own documents answers them."""
    hits = 0
    for question in questions.questions:
        documents = [questions.document(id) for id in (*question.gold, *question.negatives)]
        (first,) = reranker.rank(question.text, documents, top_k=1, progress=False)
        hits += first.document.id in question.gold
    return hits / len(questions.questions)


def main(arguments: Sequence[str], settings: Sequence[str] = SETTINGS) -> None:
    """Measures, trains, measures again; `settings` are flags of `ragvl train reranker`."""
    folder = Path(arguments[0] if arguments else tempfile.mkdtemp())
    if not (folder / "train.jsonl").exists():
        write_charts(folder, {"train": 60, "val": 20})
    held_out = open_questions(folder, split="val")
    before = found_first(Reranker.from_pretrained(TINY_RERANKER), held_out)
    ranking, trained = folder / "ranking.jsonl", folder / "reranker"
    write_ranking(samples(open_questions(folder, split="train")), ranking)
    flags = {"model": TINY_RERANKER, "data": folder, "ranking": ranking, "output_dir": trained}
    run("reranker", [*settings, *(f"--{name}={value}" for name, value in flags.items())])
    after = found_first(Reranker.from_pretrained(trained), held_out)
    print(f"found first: {before:.0%} before, {after:.0%} after training; {trained}")


if __name__ == "__main__":
    main(sys.argv[1:])
