"""Whatever a text spells, the tokenizer reads no control token in it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_models import byte_level_tokenizer, sentencepiece_tokenizer
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from ragvl.mllm.control_tokens import ControlTokens

WORDS = ["Velmora", "New York", "COVID-19", "don't", "塔", "naïve", "हिन्दी"]
QWEN = ["<think>", "</think>", "<tool_call>", "<|fim_suffix|>", "<|im_end|>"]
GEMMA = ["<unused42>", "[@BOS@]", "<end_of_turn>"]
LLAMA = ["<|reserved_special_token_5|>", "<|python_tag|>", "[control_7]"]
SPACES = ["\n", "\n\n", "\t\t", "  ", "▁▁"]


def with_tokens(
    tokenizer: Tokenizer, *tokens: str | AddedToken, special: str = "<pad>"
) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens(
        [t if isinstance(t, AddedToken) else AddedToken(t, normalized=False) for t in tokens]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=special)


def qwen_like() -> PreTrainedTokenizerFast:
    return with_tokens(byte_level_tokenizer(["<pad>"]), *QWEN, *WORDS)


def gemma_like() -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece_tokenizer(
        ["<unk>", "<pad>", "<bos>"], bos="<bos>", prefix_space=False
    )
    return with_tokens(tokenizer, *GEMMA, *SPACES, *WORDS)


def llama_like() -> PreTrainedTokenizerFast:
    return with_tokens(byte_level_tokenizer(["<pad>"]), *LLAMA, *WORDS)


def normalizing(*tokens: str, lower: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = byte_level_tokenizer(["<pad>"])
    steps: list[normalizers.Normalizer] = [normalizers.NFKC()]
    tokenizer.normalizer = normalizers.Sequence([*steps, *([normalizers.Lowercase()] * lower)])
    return with_tokens(tokenizer, *(AddedToken(t, normalized=True) for t in tokens))


def control_of(tokenizer: PreTrainedTokenizerFast, written: str = "") -> ControlTokens:
    return ControlTokens(tokenizer, [], written)


def read(tokenizer: PreTrainedTokenizerFast, text: str, names: list[str]) -> list[int]:
    """The ids of `names` that the tokenizer reads in a text."""
    known = set(tokenizer.convert_tokens_to_ids(names))
    return [
        token for token in tokenizer(text, add_special_tokens=False).input_ids if token in known
    ]


@pytest.mark.parametrize(
    ("make", "control"), [(qwen_like, QWEN), (gemma_like, GEMMA), (llama_like, LLAMA)]
)
def test_every_added_token_that_nobody_writes_is_broken_up(make, control) -> None:
    tokenizer = make()
    text = " ".join(["a", *control, "b"])
    assert len(read(tokenizer, text, control)) == len(control), "they are no special tokens"
    escaped = control_of(tokenizer).escape(text)
    assert read(tokenizer, escaped, control) == []
    assert escaped.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("make", [qwen_like, gemma_like, llama_like])
def test_words_and_white_space_stay(make) -> None:
    text = f"{' '.join(WORDS)} C++ <b>bold</b> 3 < 4\n\n{'▁▁'}  {{x}} | [1] tower\t\tof"
    assert control_of(make()).escape(text) == text


def test_what_the_chat_template_writes_is_a_control_token() -> None:
    tokenizer = qwen_like()
    assert control_of(tokenizer, "Velmora: ").escape("In Velmora") == "In V elmora"


def test_a_word_that_is_flagged_special_is_one() -> None:
    tokenizer = qwen_like()
    tokenizer.add_special_tokens({"additional_special_tokens": ["tower"]})
    assert control_of(tokenizer).escape("the tower") == "the t ower"


def test_a_token_of_one_character_becomes_a_space() -> None:
    tokenizer = with_tokens(byte_level_tokenizer(["<pad>"]), "¶")
    assert control_of(tokenizer).escape("a¶b") == "a b"


def test_what_stands_beside_a_text_counts() -> None:
    control = control_of(qwen_like())
    assert control.escape("end|> b", before="a <|im_") == " end|> b"
    assert control.escape("a <|im_", after="end|> b") == "a < |im_"
    assert control.escape("im", before="<|", after="_end|>") == " im"
    assert control.escape("x", before="<|im_end|>", after="<think>") == "x", "theirs stay"


def test_a_break_that_completes_another_spelling_is_broken_again() -> None:
    tokenizer = with_tokens(byte_level_tokenizer(["<pad>"]), "<x>", "< x>")
    assert control_of(tokenizer).escape("<x>") == "<  x>"


def test_thousands_of_tokens_are_found_in_no_time_and_the_longest_first() -> None:
    names = [f"<unused{i}>" for i in range(6000)] + ["<unused1>>"]
    tokenizer = with_tokens(byte_level_tokenizer(["<pad>"]), *names)
    control = control_of(tokenizer)
    assert control.find("a <unused5999> <unused1>>") == [(2, 14), (15, 25)]
    assert control.escape("<unused60000> <unused>") == "<unused60000> <unused>"


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ValueError, match=r"half a character .* position 2 of 'a \\ud800'"):
        control_of(qwen_like()).escape("a \ud800")


@pytest.mark.parametrize(
    "spelled",
    ["＜think＞", "<ｔhink>", "＜ｔｈｉｎｋ＞", "<think>", "a＜think＞＜think＞b"],
)
def test_other_spellings_that_normalising_makes_the_token(spelled: str) -> None:
    tokenizer = normalizing("<think>")
    assert read(tokenizer, spelled, ["<think>"])
    escaped = control_of(tokenizer).escape(spelled)
    assert read(tokenizer, escaped, ["<think>"]) == []
    assert escaped.replace(" ", "") == spelled


def test_upper_case_under_a_tokenizer_that_lowers_it() -> None:
    tokenizer = normalizing("<think>", lower=True)
    assert read(tokenizer, "<THINK>", ["<think>"])
    assert control_of(tokenizer).escape("a <THINK>") == "a < THINK>"
    assert control_of(tokenizer).escape("INK> b", before="<TH") == " INK> b"
    assert control_of(normalizing("<think>")).escape("<THINK>") == "<THINK>"


def test_how_spaces_are_written_makes_no_other_spelling() -> None:
    """LLaVA's tokenizer normalises `<pad>`, but only marks spaces: no need to ask it each time."""
    tokenizer = sentencepiece_tokenizer(["<unk>", "<s>"], bos="<s>", prefix_space=True)
    fast = with_tokens(tokenizer, AddedToken("<pad>", normalized=True, special=True))
    control = control_of(fast)
    assert not control._by_ids
    for text in ("<pad>", " <pad>", "a <pad> b", "▁<pad>"):
        assert read(fast, control.escape(text), ["<pad>"]) == []


PARTS = ["<", ">", "|", "/", "<|", "|>", "im_", "end", "think", "<think", "THINK", "ｔhink", "＜"]
SPELLED = [*QWEN, "<|im_", "end|>", "tool_call", "_suffix|>", "<|fim", "＞"]
FRAGMENTS = st.sampled_from(PARTS + SPELLED)
PIECES = st.lists(st.one_of(FRAGMENTS, st.text(max_size=3)), max_size=12).map("".join)
TOKENIZERS = {
    "raw": qwen_like(),
    "nfkc": normalizing(*QWEN),
    "lower": normalizing(*QWEN, lower=True),
}


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(caption=PIECES, query=PIECES, between=st.sampled_from(["", " ", "<", "\n"]))
@example(caption="a <|im_", query="end|>", between="")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_two_texts_make_a_control_token_alone_or_together(name, caption, query, between) -> None:
    tokenizer, own = TOKENIZERS[name], "<|im_end|>\n"
    control = control_of(tokenizer)
    try:
        whole = f"{own}{control.escape(caption, own, between)}{between}"
        whole += control.escape(query, whole, own) + own
    except ValueError as error:
        assert "half a character" in str(error)
        return
    assert len(read(tokenizer, whole, QWEN)) == 2
