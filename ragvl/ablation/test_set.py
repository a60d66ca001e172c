"""What every model of a grid is tested on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ragvl.ablation.grid import AblationSettings
from ragvl.ablation.jobs import data_name
from ragvl.ablation.robustness import TEST_NOISE, accuracy_by_condition
from ragvl.data.formats import open_questions
from ragvl.data.questions import Question, QuestionSet, refuse_pictures
from ragvl.evaluation.answers import lemmatizer
from ragvl.evaluation.evaluate import evaluate
from ragvl.evaluation.models import Models
from ragvl.evaluation.settings import EvaluationSettings
from ragvl.generator import Generator
from ragvl.identity import name_of
from ragvl.mllm import MLLM
from ragvl.reranker import Reranker
from ragvl.retriever import DualEncoder

_RERANKER_MEASURES = ("recall@1", "f1")


@dataclass(frozen=True)
class TestSet:
    """Questions, and what measures a model on them.

    Attributes:
        settings: of the grid.
        source: the data.
        questions: of a generator: those with known documents and answers.
        encoder: of a reranker.
        lemmatizer: of WebQA's answers.
        name: names all of it.
    """

    __test__ = False  # no test of pytest's

    settings: AblationSettings
    source: QuestionSet
    questions: Sequence[Question]
    encoder: DualEncoder | None
    lemmatizer: str | None
    name: str

    @classmethod
    def prepare(cls, settings: AblationSettings) -> TestSet:
        """Opens the data and loads the encoder.

        Raises:
            ValueError: a generator's data have no question to test it on.
            OSError: data or encoder are not there.
        """
        test = settings.test
        source = open_questions(test.data, split=test.split, modality=test.modality)
        encoder, words, questions = None, None, []
        if settings.stage == "reranker":
            encoder = DualEncoder.from_pretrained(str(test.encoder))
        else:
            questions = [q for q in source.questions if q.gold and q.answers][: test.num_questions]
            refuse_pictures(questions)
            words = lemmatizer()[0] if source.answer_metric == "webqa" else None
            if not questions:
                raise ValueError(
                    settings.in_file(f"{source.name} has no question with documents and an answer")
                )
        name = name_of(
            "test",
            test.model_dump_json(),
            data_name(test.data, source),
            encoder and encoder.fingerprint,
            words,
            dict(TEST_NOISE),
        )
        return cls(settings, source, questions, encoder, words, name)

    def measure(self, mllm: MLLM, work: Path) -> tuple[dict[str, float], int]:
        """A model's measures by name, and over how many questions; `work` keeps vectors."""
        if self.encoder is None:
            return self._measure_generator(mllm)
        return self._measure_reranker(mllm, self.encoder, work)

    def _measure_generator(self, mllm: MLLM) -> tuple[dict[str, float], int]:
        by_condition = accuracy_by_condition(
            Generator(mllm),
            self.source,
            self.questions,
            max_new_tokens=self.settings.test.max_new_tokens,
        )
        measures = {name: statistics.fmean(values) for name, values in by_condition.items()}
        return measures, len(self.questions)

    def _measure_reranker(
        self, mllm: MLLM, encoder: DualEncoder, work: Path
    ) -> tuple[dict[str, float], int]:
        result = evaluate(
            self.source,
            Models(encoder, Reranker(mllm, template=self.source.template)),
            EvaluationSettings(
                pools=("full",),
                num_candidates=self.settings.test.num_candidates,
                num_questions=self.settings.test.num_questions,
                num_timed=0,
            ),
            work=work,
            progress=False,
        ).result
        pool = result.pools["full"]
        figures = {**pool.reranked, **pool.kept["natural"]}
        measures = {}
        for name in _RERANKER_MEASURES:
            value = figures[name].value
            assert value is not None  # every question has a gold document
            measures[name] = value
        return measures, result.num_questions
