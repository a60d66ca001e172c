"""Which tokens mean Yes and which mean No, found from the tokenizer."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ragvl.mllm.inputs import common_prefix_length


class AnswerTokenError(ValueError):
    """The tokenizer cannot spell the answers so that their first tokens tell them apart."""


def answer_token_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, words: tuple[str, ...]
) -> list[list[int]]:
    """For each of `words`, the ids of the tokens with which an answer that is the word starts.

    These are all tokens that read as the word, up to white space before it: "Yes" and " Yes" are
    different tokens to most tokenizers, and which one a model writes is a matter of its training.
    Where no token is the whole word, the first token of the word's spelling after `prompt` stands
    for it. The token that `prompt` itself calls for comes first.

    Raises:
        AnswerTokenError: a word has no token but the unknown one, or two words share a token.
    """
    found = [_token_ids(tokenizer, prompt, word) for word in words]
    for i, (word, ids) in enumerate(zip(words, found, strict=True)):
        if not ids:
            raise AnswerTokenError(f"the tokenizer has no token for the answer {word!r}")
        for other, other_ids in zip(words[:i], found[:i], strict=True):
            if shared := sorted(set(ids) & set(other_ids)):
                raise AnswerTokenError(
                    f"the answers {other!r} and {word!r} start with the same token: "
                    f"{tokenizer.convert_ids_to_tokens(shared)}"
                )
    return found


def _token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, word: str) -> list[int]:
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answered = tokenizer(prompt + word, add_special_tokens=False)["input_ids"]
    first = answered[common_prefix_length(alone, answered)]

    def is_word(token_id: int) -> bool:
        return tokenizer.decode([token_id]).lstrip() == word

    whole = [i for token, i in tokenizer.get_vocab().items() if word in token and is_word(i)]
    if whole or is_word(first):
        return sorted({first, *whole} if is_word(first) else whole, key=lambda i: (i != first, i))
    return [] if first == tokenizer.unk_token_id else [first]
