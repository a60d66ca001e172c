"""Which token means Yes and which means No, by the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class AnswerTokenError(ValueError):
    """The tokenizer cannot spell the answers with different first tokens."""


def answer_token_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, words: Sequence[str], between: str = ""
) -> list[list[int]]:
    """For each of `words`, the id of the token with which an answer that is the word starts.

    One token each, as published rerankers read: of "Yes" and " Yes", different tokens to most
    tokenizers, the one that comes behind the prompt. A word of several tokens is known by its
    first.

    Args:
        tokenizer: the model's.
        prompt: what is answered.
        words: the words.
        between: what the chat template puts between a prompt and its answer.

    Raises:
        AnswerTokenError: a word has no token but the unknown one, or two words share a token.
    """
    firsts: dict[int, str] = {}
    for word in words:
        texts = [prompt, f"{prompt}{between}{word}", f"{between}{word}"]
        prompt_ids, whole, alone = tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids = continuation(prompt_ids, whole, alone)
        # White space before a word may be a token of its own
        first = next((token for token in ids if tokenizer.decode([token]).strip()), None)
        if first is None or first == tokenizer.unk_token_id:
            raise AnswerTokenError(f"the tokenizer has no token for the answer {word!r}")
        if first in firsts:
            raise AnswerTokenError(
                f"the answers {firsts[first]!r} and {word!r} start with the same token: "
                f"{tokenizer.convert_ids_to_tokens([first])}"
            )
        firsts[first] = word
    return [[token] for token in firsts]


def continuation(prompt: list[int], whole: list[int], alone: list[int]) -> list[int]:
    """The token ids that come after a prompt's in a text that goes on from it.

    Args:
        prompt: the prompt's ids.
        whole: those of the prompt with more text behind it.
        alone: those of that text by itself. They stand where the tokenizer merges across the
            boundary, which no model that reads the prompt can.
    """
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else alone


def named_token_ids(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]
) -> list[list[int]] | None:
    """The ids of tokens that are named as the vocabulary spells them; None if it lacks one."""
    vocabulary = tokenizer.get_vocab()
    if any(token not in vocabulary for token in tokens):
        return None
    return [[vocabulary[token]] for token in tokens]
