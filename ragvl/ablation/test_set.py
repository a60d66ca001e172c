"""What every model of a grid is tested on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ragvl.ablation.grid import AblationSettings
from ragvl.ablation.jobs import data_name
from ragvl.ablation.robustness import TEST_NOISE, Condition, accuracy, conditions
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
from ragvl.reranker.presets import TRAINED_TEMPLATE
from ragvl.retriever import DualEncoder

_RERANKER_MEASURES = ("recall@1", "f1")


@dataclass(frozen=True)
class TestSet:
    """Questions, and what measures a model on them.

    Attributes:
        settings: of the grid.
        source: the data.
        questions: of a generator: those with known documents and answers.
        conditions: of a generator: what it answers from.
        encoder: of a reranker.
        fingerprints: of the `encoder`, and of the `reranker` that a generator answers behind.
        lemmatizer: of WebQA's answers.
        name: names all of it.
    """

    __test__ = False  # no test of pytest's

    settings: AblationSettings
    source: QuestionSet
    questions: Sequence[Question]
    conditions: Sequence[Condition]
    encoder: DualEncoder | None
    fingerprints: dict[str, str]
    lemmatizer: str | None
    name: str

    @classmethod
    def prepare(cls, settings: AblationSettings, work: Path) -> TestSet:
        """Opens the data, loads the encoder, and finds what a generator answers from.

        Args:
            settings: the grid.
            work: keeps what retrieval and reranking computed.

        Raises:
            ValueError: a generator's data have no question to test it on.
            OSError: data or models are not there.
        """
        test = settings.test
        source = open_questions(test.data, split=test.split, modality=test.modality)
        encoder, words, questions, shown = None, None, [], []
        fingerprints: dict[str, str] = {}
        if settings.stage == "reranker":
            encoder = DualEncoder.from_pretrained(str(test.encoder))
            fingerprints["encoder"] = encoder.fingerprint
        else:
            questions = [q for q in source.questions if q.gold and q.answers][: test.num_questions]
            refuse_pictures(questions)
            words = lemmatizer()[0] if source.answer_metric == "webqa" else None
            if not questions:
                raise ValueError(
                    settings.in_file(f"{source.name} has no question with documents and an answer")
                )
            shown = list(
                conditions(
                    source, questions, distractors=test.distractors, timesteps=test.timesteps
                )
            )
            if test.noise_ratios:
                found, fingerprints = _end_to_end(settings, source, questions, work)
                shown += found
        name = name_of(
            "test",
            test.model_dump_json(exclude={"data", "encoder", "reranker"}),
            data_name(test.data, source),
            None if encoder is None else encoder.fingerprint,
            words,
            dict(TEST_NOISE),
            [asdict(condition) for condition in shown],
        )
        return cls(settings, source, questions, shown, encoder, fingerprints, words, name)

    def measure(self, mllm: MLLM, work: Path) -> tuple[dict[str, float], int]:
        """A model's measures by name, and over how many questions; `work` keeps vectors."""
        if self.encoder is None:
            return self._measure_generator(mllm)
        return self._measure_reranker(mllm, self.encoder, work)

    def _measure_generator(self, mllm: MLLM) -> tuple[dict[str, float], int]:
        judged = accuracy(
            Generator(mllm),
            self.source,
            self.questions,
            self.conditions,
            max_new_tokens=self.settings.test.max_new_tokens,
        )
        measures = {name: statistics.fmean(values) for name, values in judged.items()}
        return measures, len(self.questions)

    def _measure_reranker(
        self, mllm: MLLM, encoder: DualEncoder, work: Path
    ) -> tuple[dict[str, float], int]:
        trained_with = getattr(mllm.model.config, TRAINED_TEMPLATE, None)
        result = evaluate(
            self.source,
            Models(encoder, Reranker(mllm, template=trained_with or self.source.template)),
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


def _end_to_end(
    settings: AblationSettings, source: QuestionSet, questions: Sequence[Question], work: Path
) -> tuple[list[Condition], dict[str, str]]:
    """What retrieval and reranking keep at each noise ratio, and fingerprints of the two models."""
    test = settings.test
    models = Models.load(str(test.encoder), str(test.reranker))
    last = source.questions.index(questions[-1])
    found = []
    for ratio in test.noise_ratios:
        chosen = EvaluationSettings(
            pools=("full",),
            num_candidates=test.num_candidates,
            noise_ratio=ratio,
            num_questions=last + 1,
            num_timed=0,
        )
        evaluation = evaluate(
            source,
            models,
            chosen,
            work=work / "test",
            progress=False,
        )
        threshold = evaluation.result.thresholds[evaluation.result.first_threshold]
        kept = {
            ranking.question.id: ranking.kept(chosen.top_k_of(source), threshold)
            for ranking in evaluation.rankings["full"]
        }
        for question in questions:
            if question.id not in kept:
                raise ValueError(
                    settings.in_file(f"question {question.id!r}: its gold documents cannot be read")
                )
        documents = [kept[question.id] for question in questions]
        found.append(Condition(f"end to end {ratio:g}", documents))
    return found, {
        "encoder": models.retriever_name,
        "reranker": models.reranker.fingerprint,
    }
