"""How right an answer is, as each data set's own evaluation counts it.

- `webqa_accuracy`: WebQA's published approximation of its leaderboard's accuracy (eval_webqa.md in
  its repository), with the change that RagVL's release makes to it.
- `multimodalqa_em` and `multimodalqa_f1`: MultimodalQA's evaluate.py, which follows DROP's.
- `is_correct`: SQuAD's exact match.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from ragvl.data.questions import Question, QuestionSet

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PUNCTUATION_BUT_POINT = str.maketrans("", "", string.punctuation.replace(".", ""))
_POINT_OF_NO_NUMBER = re.compile(r"\.(?!\d)")

# What a single word can say of numbers
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety hundred"
_NUMBERS = {word: value for value, word in enumerate(_ONES.split())}
_NUMBERS |= {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)}
_NUMBERS |= {"thousand": 10**3, "million": 10**6, "billion": 10**9}

# The words that count in an answer of a category: WebQA's own lists, odd ones among them
_COLORS = (
    "aqua beige black blonde blue bluere bluewhite bronze brown chrome gold golden gray green grey "
    "ivory maroon orange orangebrown orangepurple pink purple rainbow red redorange rust silver "
    "spot tan teal transparent turquoise violet white yellow yes"
)
_SHAPES = (
    "arch ball bell bellshaped bow circle circular concave cone conical convex corkscrew "
    "crescent crest cross crosse cube cuboid curl curve cylinder cylindrical diamond dome "
    "domeshape dot flat flower fold fork globe globular h heart hexagon hook hoop keyhole "
    "obelisk octagon octagonal octogon oval pentagon point pyramid pyramidal rectangle "
    "rectangular ring round rounded semicircle shamrock slope sphere spherical spiral square "
    "star step straight teardrop torus triangle triangular tube wavy xs"
)
_DOMAINS = {
    category: frozenset(words.split())
    for category, words in (("color", _COLORS), ("shape", _SHAPES), ("YesNo", "yes no"))
}


def answer_metrics(source: QuestionSet) -> dict[str, Callable[[str, Question], float]]:
    """The measures of a data set's answers by name, the main one first; each is 0 to 1."""
    if source.answer_metric == "webqa":
        return {
            "accuracy": lambda answer, question: webqa_accuracy(
                answer, question.answers, question.category
            )
        }
    if source.answer_metric == "multimodalqa":
        return {
            "em": lambda answer, question: multimodalqa_em(answer, question.answers),
            "f1": lambda answer, question: multimodalqa_f1(answer, question.answers),
        }
    return {"accuracy": lambda answer, question: float(is_correct(answer, question.answers))}


# --- exact match --------------------------------------------------------------------------------


def is_correct(answer: str, accepted: Sequence[str]) -> bool:
    """Whether `answer` equals one of `accepted` up to case, punctuation, articles and spaces."""
    return _squad_normalised(answer) in {_squad_normalised(text) for text in accepted}


def _squad_normalised(text: str) -> str:
    """As SQuAD's evaluation script normalises answers."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


# --- WebQA --------------------------------------------------------------------------------------


def webqa_accuracy(answer: str, accepted: Sequence[str], category: str) -> float:
    """F1 of the words that count in a color, shape, number or YesNo question, else recall of words.

    The reference is the first accepted answer, as in RagVL's release. Where it holds no word of its
    category's list, all words count; WebQA's own script gives 0 then.

    Args:
        answer: what was answered.
        accepted: accepted answers; 0 if there are none.
        category: WebQA's `Qcate`.
    """
    if not accepted:
        return 0.0
    given, wanted = _webqa_words(answer), _webqa_words(accepted[0])
    if category == "number":
        given, wanted = _numbers(given), _numbers(wanted)
    elif (domain := _DOMAINS.get(category)) and domain.intersection(wanted):
        given, wanted = list(domain.intersection(given)), list(domain.intersection(wanted))
    same = sum((Counter(given) & Counter(wanted)).values())
    if not same:
        return 0.0
    recall = same / len(wanted)
    if category in (*_DOMAINS, "number"):
        precision = same / len(given)
        return 2 * precision * recall / (precision + recall)
    return recall


@cache
def lemmatizer() -> tuple[str, Callable[[str], list[str]]]:
    """What brings words to their base form: its name, and the function from text to words.

    spaCy's en_core_web_sm, WebQA's own choice, where it is installed; else simplemma, which needs
    no download.
    """
    try:
        import spacy

        nlp = spacy.load("en_core_web_sm", disable=["ner", "textcat", "parser"])
    except (ImportError, OSError):
        import simplemma

        # It takes the s off "torus"; a word of WebQA's lists is in its base form
        listed = frozenset().union(*_DOMAINS.values())

        def lemmas(text: str) -> list[str]:
            return [
                word if word in listed else simplemma.lemmatize(word, lang="en")
                for word in text.split()
            ]

        return f"simplemma {simplemma.__version__}", lemmas
    version = f"spacy {spacy.__version__}, en_core_web_sm {nlp.meta['version']}"
    return version, lambda text: [token.lemma_ for token in nlp(text)]


@cache
def _webqa_words(text: str) -> list[str]:
    """Lower case, numbers as digits, base forms; of a single letter nothing is taken away."""
    text = text.strip().lower()
    if len(text) == 1:
        return [_digits(text)]
    words = text.translate(_PUNCTUATION_BUT_POINT)
    words = _POINT_OF_NO_NUMBER.sub("", words)
    if len(text.split()) > 1:
        words = _ARTICLES.sub(" ", words)
    _, lemmas = lemmatizer()
    return [part for word in lemmas(" ".join(map(_digits, words.split()))) for part in word.split()]


def _digits(word: str) -> str:
    if word.isdecimal():
        return str(int(word))
    return str(_NUMBERS.get(word, word))


def _numbers(words: Sequence[str]) -> list[str]:
    return [str(int(word)) for word in words if re.fullmatch(r"[+-]?\d+", word)]


# --- MultimodalQA -------------------------------------------------------------------------------


def multimodalqa_em(answer: str, accepted: Sequence[str]) -> float:
    """1 if the answer's parts are those of `accepted`, up to case, articles, number words.

    Args:
        answer: what was answered; cut at commas where `accepted` has several parts.
        accepted: the parts of the one answer; 0 if there are none.
    """
    given, wanted = _parts(answer, accepted)
    same = {text for text, _ in given} == {text for text, _ in wanted}
    return float(bool(wanted) and same and len(given) == len(wanted))


def multimodalqa_f1(answer: str, accepted: Sequence[str]) -> float:
    """F1 of the words of each part, for the best match of parts; see `multimodalqa_em`."""
    from scipy.optimize import linear_sum_assignment

    given, wanted = _parts(answer, accepted)
    if not wanted:
        return 0.0
    scores = np.array([[_bag_f1(have, want) for _, have in given] for _, want in wanted])
    rows, columns = linear_sum_assignment(-scores)
    return round(float(scores[rows, columns].sum()) / max(len(given), len(wanted)), 2)


def _parts(
    answer: str, accepted: Sequence[str]
) -> tuple[list[tuple[str, frozenset[str]]], list[tuple[str, frozenset[str]]]]:
    """Normalised text and bag of words of each part of the answer and of the reference."""
    pieces = [part for part in answer.split(",") if part.strip()] if len(accepted) > 1 else []
    given, wanted = (
        [_drop_normalised(part) for part in pieces or [answer]],
        list(map(_drop_normalised, accepted)),
    )
    return [(t, frozenset(t.split())) for t in given], [(t, frozenset(t.split())) for t in wanted]


def _bag_f1(given: frozenset[str], wanted: frozenset[str]) -> float:
    """0 where the reference has numbers and the answer none of them."""
    numbers = set(filter(_is_number, wanted))
    if numbers and not numbers.intersection(given):
        return 0.0
    same = len(given & wanted)
    precision = same / len(given) if given else 1.0
    recall = same / len(wanted) if wanted else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _drop_normalised(text: str) -> str:
    words = []
    for word in re.split("[ -]", text.lower()):
        if not _is_number(word):
            word = word.translate(_PUNCTUATION)
        if word in _NUMBERS:
            word = str(_NUMBERS[word])
        if _is_number(word):
            word = str(float(word))
        words += _ARTICLES.sub(" ", word).split()
    return " ".join(words)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
