from __future__ import annotations

import pytest
from tiny_models import ARCHITECTURES
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ragvl.mllm import AnswerTokenError
from ragvl.mllm.answer_tokens import answer_token_ids, named_token_ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_token_an_answer_the_one_that_the_prompt_calls_for(architecture, tiny_mllm):
    mllm = tiny_mllm(architecture)
    # LLaVA's and Idefics3's templates put a space before an answer, the others nothing
    spelled = {"llava": "▁{}", "idefics3": "Ġ{}"}.get(architecture, "{}")
    for word in ("Yes", "No"):
        (ids,) = mllm.prompting.answer_token_ids(word)
        assert mllm.prompting.tokenizer.convert_ids_to_tokens(ids) == [spelled.format(word)]
        assert ids == mllm.prompting.encode_answer(mllm.prompting.render("Is it?"), word)[:1], (
            "as training teaches"
        )


def test_case_matters(tiny_mllm):
    mllm = tiny_mllm("qwen2_vl")
    upper, lower = mllm.prompting.answer_token_ids("Yes", "yes")
    assert not set(upper) & set(lower)


def test_a_word_of_several_tokens_is_known_by_its_first(tiny_mllm):
    mllm = tiny_mllm("qwen2_vl")
    whole = mllm.prompting.tokenizer("Zebra")["input_ids"]
    assert len(whole) > 1
    assert mllm.prompting.answer_token_ids("Zebra", "No")[0] == [whole[0]]
    with pytest.raises(AnswerTokenError, match="'Zebra' and 'Zeppelin' start with the same token"):
        mllm.prompting.answer_token_ids("Zebra", "Zeppelin")


def words_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_a_tokenizer_of_whole_words():
    tokenizer = words_tokenizer("Answer", ":", "Yes", "No")
    assert answer_token_ids(tokenizer, "Answer:", ("Yes", "No")) == [[3], [4]]


def test_white_space_before_an_answer_may_be_a_token_of_its_own():
    tokenizer = Tokenizer(
        models.WordLevel({"<unk>": 0, "Q": 1, "\n": 2, "Yes": 3, "No": 4}, "<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert answer_token_ids(fast, "Q", ("Yes", "No"), "\n") == [[3], [4]]


def test_a_tokenizer_without_the_answer_is_refused():
    tokenizer = words_tokenizer("Answer", ":", "Yes")
    with pytest.raises(AnswerTokenError, match="no token for the answer 'No'"):
        answer_token_ids(tokenizer, "Answer:", ("Yes", "No"))


def test_tokens_can_be_named_as_the_vocabulary_spells_them(tiny_mllm):
    tokenizer = tiny_mllm("qwen2_vl").prompting.tokenizer
    vocabulary = tokenizer.get_vocab()
    ids = [[vocabulary["ĠYes"]], [vocabulary["No"]]]
    assert named_token_ids(tokenizer, ("ĠYes", "No")) == ids
    assert named_token_ids(tokenizer, ("Yes", "not there")) is None


def test_equal_answers_are_refused(tiny_mllm):
    with pytest.raises(AnswerTokenError, match="'Yes' and 'Yes' start with the same token"):
        tiny_mllm("llava").prompting.answer_token_ids("Yes", "Yes")
