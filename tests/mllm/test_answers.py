from __future__ import annotations

import pytest
from tiny_models import ARCHITECTURES
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ragvl.mllm import AnswerTokenError
from ragvl.mllm.answers import answer_token_ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_spelling_of_yes_and_no_and_nothing_else(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    yes, no = mllm.answer_token_ids("Yes", "No")
    for ids, word in ((yes, "Yes"), (no, "No")):
        assert {mllm.tokenizer.decode([token]).strip() for token in ids} == {word}
        # With and without the space before it: two tokens in every one of these tokenizers
        assert len(ids) == len(set(ids)) == 2
    assert not set(yes) & set(no)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_token_that_the_prompt_calls_for_comes_first(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    prompt = mllm.render("Is it?")
    for word in ("Yes", "No"):
        answered = mllm.tokenizer(prompt + word)["input_ids"]
        assert mllm.answer_token_ids(word)[0][0] == answered[-1]


def test_case_matters(tiny_mllm):
    mllm = tiny_mllm("qwen2_vl")
    upper, lower = mllm.answer_token_ids("Yes", "yes")
    assert not set(upper) & set(lower)


def test_a_word_of_several_tokens_is_known_by_its_first(tiny_mllm):
    mllm = tiny_mllm("qwen2_vl")
    whole = mllm.tokenizer("Zebra")["input_ids"]
    assert len(whole) > 1
    assert mllm.answer_token_ids("Zebra", "No")[0] == [whole[0]]
    with pytest.raises(AnswerTokenError, match="'Zebra' and 'Zeppelin' start with the same token"):
        mllm.answer_token_ids("Zebra", "Zeppelin")


def words_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_a_tokenizer_of_whole_words():
    tokenizer = words_tokenizer("Answer", ":", "Yes", "No")
    assert answer_token_ids(tokenizer, "Answer:", ("Yes", "No")) == [[3], [4]]


def test_a_tokenizer_without_the_answer_is_refused():
    tokenizer = words_tokenizer("Answer", ":", "Yes")
    with pytest.raises(AnswerTokenError, match="no token for the answer 'No'"):
        answer_token_ids(tokenizer, "Answer:", ("Yes", "No"))


def test_equal_answers_are_refused(tiny_mllm):
    with pytest.raises(AnswerTokenError, match="'Yes' and 'Yes' start with the same token"):
        tiny_mllm("llava").answer_token_ids("Yes", "Yes")
