"""The answers that relevance is read off: their tokens, and whether the model would give them."""

from __future__ import annotations

import logging
from itertools import chain

from ragvl.data.document import Document
from ragvl.messages import shown
from ragvl.mllm import Prompt, Prompting
from ragvl.mllm.answer_tokens import named_token_ids
from ragvl.mllm.inputs import probe_image
from ragvl.reranker.prompts import Prompts

logger = logging.getLogger(__name__)

# Of the next token's probability, on both answers together. A model that answers, even if it was
# not trained for it, gives them tenths; chance gives 2 in 32,000 or less, by the sizes of published
# vocabularies; a model that must open a thought there, 1e-7 and less. In a test's vocabulary of a
# few hundred, random weights give anything from 3e-5 on, so the bound shrinks with the vocabulary.
_SMALLEST_SHARE = 1e-4
_SMALLEST_SHARE_BY_TOKEN = 3e-9


def check_answers(answers: object) -> None:
    """Refuses what is no two words.

    Raises:
        ValueError: it is something else.
    """
    words = answers if isinstance(answers, list | tuple) else ()
    if len(words) != 2 or not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"answers={shown(repr(answers))}: expected two words, ('Yes', 'No')")


def resolve_answers(
    prompting: Prompting, answers: tuple[str, str], answer_tokens: tuple[str, str] | None
) -> list[list[int]]:
    """The ids that are read for the answers: yes_token_ids, no_token_ids.

    Args:
        prompting: the model's.
        answers: the words for relevant and not relevant.
        answer_tokens: the tokens that are read, as the vocabulary spells them; by default, and with
            a warning where it has not both, the ones that the prompt calls for.

    Raises:
        AnswerTokenError: the tokenizer cannot spell `answers` with distinct first tokens.
    """
    if answer_tokens is None:
        return prompting.answer_token_ids(*answers)
    if named := named_token_ids(prompting.tokenizer, answer_tokens):
        return named
    token_ids = prompting.answer_token_ids(*answers)
    logger.warning(
        "the vocabulary has not both of the answer tokens %s: %s are read instead",
        shown(answer_tokens),
        shown(prompting.tokenizer.convert_ids_to_tokens([*chain(*token_ids)])),
    )
    return token_ids


def probe_prompt(prompting: Prompting, prompts: Prompts) -> Prompt:
    """A prompt about a picture of one colour, to see what the model would answer."""
    picture = probe_image()  # not read as a document's, to which a limit of pixels may apply
    text = prompts.text("Is it a mill?", Document(picture, caption="A mill"))
    return prompting.encode_prompt(text, [prompting.encode_image(picture)])


def check_share(
    share: float, answers: tuple[str, str], prompt: Prompt, prompting: Prompting
) -> None:
    """Warns where scores would be read off answers that the model does not give.

    Args:
        share: of the next token's probability after `prompt`, what both answers hold.
        answers: the words.
        prompt: as of `probe_prompt`.
        prompting: the model's.
    """
    if share >= min(_SMALLEST_SHARE, _SMALLEST_SHARE_BY_TOKEN * len(prompting.tokenizer)):
        return
    yes, no = answers
    logger.warning(
        "%r and %r hold %.1e of the next token's probability after a prompt that ends in %r: the "
        "model would say neither, and relevance tells little. Give the answers and the template "
        "that it was trained on (preset=, template=, answers=), or variables of its chat template "
        "that let it answer at once (chat_template_kwargs=)",
        yes,
        no,
        share,
        prompting.tokenizer.decode(prompt.input_ids[-8:]),
    )
