"""The answers that relevance is read off: their tokens, and whether the model would give them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from transformers import PreTrainedTokenizerBase

from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.data.query import Query
from ragvl.messages import shown
from ragvl.mllm import MLLM, AnswerTokenError, Prompt, Prompting
from ragvl.mllm.answer_tokens import named_token_ids
from ragvl.mllm.inputs import probe_image
from ragvl.reranker.heads import AnswerHead
from ragvl.reranker.prompts import Prompts

logger = logging.getLogger(__name__)

# Of the next token's probability, on both answers together. A model that answers, even if it was
# not trained for it, gives them tenths; chance gives 2 in 32,000 or less, by the sizes of published
# vocabularies; a model that must open a thought there, 1e-7 and less. In a test's vocabulary of a
# few hundred, random weights give anything from 3e-5 on, so the bound shrinks with the vocabulary.
_SMALLEST_SHARE = 1e-4
_SMALLEST_SHARE_BY_TOKEN = 3e-9


@dataclass(frozen=True)
class Answers:
    """The answers that a checkpoint was trained to give: a head of its language-model head's rows.

    Attributes:
        words: the words for relevant and not relevant. Of each one token is read, the one that
            comes after the prompt.
        tokens: the two tokens that its authors read instead, as the vocabulary spells them. A
            vocabulary that has not both is another checkpoint's: a line of the log says so, and
            those of `words` are read.
        token_ids: the ids that its authors read instead; one alone means that the raw score is the
            logit of that token.

    Raises:
        ValueError: `words` are no two words.
    """

    words: tuple[str, str] = ("Yes", "No")
    tokens: tuple[str, str] | None = None
    token_ids: tuple[int, int] | tuple[int] | None = None

    def __post_init__(self) -> None:
        check_answers(self.words)

    def of(self, mllm: MLLM) -> AnswerTokens:
        """What is read of a model's vocabulary.

        Raises:
            AnswerTokenError: the tokenizer cannot spell the words with distinct first tokens, or
                the vocabulary has no such id.
            UnsupportedModelError: the model has no language-model head.
        """
        mllm.check_head()
        return AnswerTokens(self, *self._read(mllm.prompting))

    def _read(self, prompting: Prompting) -> list[list[int]]:
        """The ids that are read for relevant, and those for not relevant."""
        tokenizer = prompting.tokenizer
        if self.token_ids is not None:
            yes, *no = _checked_ids(tokenizer, self.token_ids)
            return [[yes], no]
        if self.tokens and (named := named_token_ids(tokenizer, self.tokens)):
            return named
        token_ids = prompting.answer_token_ids(*self.words)
        if self.tokens:
            logger.warning(
                "the vocabulary has not both of the answer tokens %s: %s are read instead",
                shown(self.tokens),
                shown(tokenizer.convert_ids_to_tokens([*chain(*token_ids)])),
            )
        return token_ids


@dataclass(frozen=True)
class AnswerTokens:
    """The tokens that are read for a checkpoint's answers.

    Attributes:
        answers: the answers.
        yes: the ids of those that are read for relevant.
        no: of those for not relevant; none where the raw score is the others' logit.
    """

    answers: Answers
    yes: list[int]
    no: list[int]

    @property
    def content(self) -> tuple[object, ...]:
        """All that it is, as `name_of` takes it."""
        return (self.answers.words, self.answers.tokens), self.yes, self.no

    def words(self, prompting: Prompting) -> list[str]:
        """The answers as a message may show them."""
        if self.answers.token_ids is None:
            return list(self.answers.words)
        return [prompting.tokenizer.decode([token]) for token in (*self.yes, *self.no)]

    def on(self, mllm: MLLM) -> AnswerHead:
        """The head that reads them."""
        return AnswerHead(mllm, self.yes, self.no)


def check_answers(answers: object) -> None:
    """Refuses what is no two words.

    Raises:
        ValueError: it is something else.
    """
    words = answers if isinstance(answers, list | tuple) else ()
    if len(words) != 2 or not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"answers={shown(repr(answers))}: expected two words, ('Yes', 'No')")


def _checked_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Sequence[int]:
    if len(ids) not in (1, 2) or len(set(ids)) != len(ids):
        raise AnswerTokenError(f"token_ids={shown(ids)}: expected one id, or two different ones")
    for token in ids:
        if not 0 <= token < len(tokenizer):
            raise AnswerTokenError(
                f"the vocabulary has {len(tokenizer)} tokens, and none with the id {token} that an "
                "answer is read from"
            )
    return ids


def probe_prompt(prompting: Prompting, prompts: Prompts) -> Prompt:
    """A prompt about a picture of one colour, to see what the model would answer.

    About one with a caption, or else, as the template has a place for it, without, or a text.
    """
    picture = probe_image()  # not read as a document's, to which a limit of pixels may apply
    query = Query("Is it a mill?")
    documents = [Document(picture, caption="A mill"), Document(picture), Document(text="A mill")]
    while len(documents) > 1 and not _has_place(prompts, query, documents[0]):
        del documents[0]
    images = [prompting.encode_image(picture)] if documents[0].pictures else []
    return prompts.prompt(query, documents[0], images)


def _has_place(prompts: Prompts, query: Query, document: Document) -> bool:
    try:
        prompts.check(query, document)
    except DocumentError:
        return False
    return True


def check_share(share: float, words: Sequence[str], prompt: Prompt, prompting: Prompting) -> None:
    """Warns where scores would be read off answers that the model does not give.

    Args:
        share: of the next token's probability after `prompt`, what the answers hold.
        words: the answers.
        prompt: as of `probe_prompt`.
        prompting: the model's.
    """
    if share >= min(_SMALLEST_SHARE, _SMALLEST_SHARE_BY_TOKEN * len(prompting.tokenizer)):
        return
    logger.warning(
        "%s hold %.1e of the next token's probability after a prompt that ends in %r: the "
        "model would say neither, and relevance tells little. Give the answers and the template "
        "that it was trained on (preset=, template=, answers=), or variables of its chat template "
        "that let it answer at once (chat_template_kwargs=)",
        " and ".join(map(repr, words)),
        share,
        prompting.tokenizer.decode(prompt.input_ids[-8:]),
    )
