"""Conversations read as Hugging Face's apply_chat_template writes them; their texts stay texts."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from pair_checkpoints import PICTURES, pair_template, with_template

from ragvl.mllm import MLLM, UnsupportedModelError
from ragvl.mllm.conversation import Conversations, Turn

ORDERS = pytest.mark.parametrize("document_first", [True, False])
TURNS = {
    "texts": [Turn("query", ("Which tower?",)), Turn("document", ("The red tower.",))],
    "a picture": [Turn("query", ("Which tower?",)), Turn("document", (None,))],
    "a captioned picture": [Turn("query", ("Which?",)), Turn("document", (None, "The tower."))],
    "several parts": [Turn("query", ("Which?",)), Turn("document", ("a", None, "b", None))],
    "a picture asks": [Turn("query", (None, "Where?")), Turn("document", ("Here.",))],
    "with an instruction": [
        Turn("system", ("Find towers.",)),
        Turn("query", ("Which?",)),
        Turn("document", (None,)),
    ],
    "white space and markup": [
        Turn("query", (" Which?\n", "x {{ y }}")),
        Turn("document", ("\n<b>&amp; 'q' \"r\"\\ É", "")),
    ],
}


@pytest.fixture(scope="module")
def paired(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., MLLM]:
    """A tiny model with a chat template of the roles query and document."""
    made: dict[tuple[str, bool], MLLM] = {}

    def load(architecture: str = "qwen2_vl", *, document_first: bool = True) -> MLLM:
        key = architecture, document_first
        if key not in made:
            folder = tmp_path_factory.mktemp("paired") / "model"
            template = pair_template(architecture, document_first=document_first)
            with_template(tiny_model(architecture), folder, template)
            made[key] = MLLM.from_pretrained(folder, device="cpu", dtype="float32")
        return made[key]

    return load


def conversations(mllm: MLLM, **variables: object) -> Conversations:
    return mllm.prompting.conversations(add_generation_prompt=True, variables=variables)


def by_hugging_face(mllm: MLLM, turns: list[Turn]) -> str:
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "image"} if part is None else {"type": "text", "text": part}
                for part in turn.parts
            ],
        }
        for turn in turns
    ]
    return mllm.prompting.processor.apply_chat_template(messages, add_generation_prompt=True)


@ORDERS
@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("architecture", PICTURES)
def test_it_reads_as_hugging_face_writes_it(architecture, turns, document_first, paired):
    mllm = paired(architecture, document_first=document_first)
    assert conversations(mllm).write(turns) == by_hugging_face(mllm, turns)


@ORDERS
@pytest.mark.parametrize("change", ["", " | trim", " | replace('&', '+')", "[:9]"])
def test_what_a_template_does_to_texts_is_in_the_prompt(
    change, document_first, tiny_model, tmp_path
):
    template = pair_template("qwen2_vl", document_first=document_first)
    template = template.replace("part.text }}", f"part.text{change} }}}}")
    folder = with_template(tiny_model("qwen2_vl"), tmp_path / "model", template)
    mllm = MLLM.from_pretrained(folder, device="cpu", dtype="float32")
    written = conversations(mllm)
    for turns in (*TURNS.values(), [Turn("query", ("a & b" * 9,)), Turn("document", (" \n",))]):
        assert written.write(turns) == by_hugging_face(mllm, turns)
        for number in range(sum(part is not None for turn in turns for part in turn.parts)):
            before = written.before(turns, number)
            assert written.write(turns).startswith(before)


@ORDERS
def test_what_stands_before_a_text_is_the_same_whatever_it_says(document_first, paired):
    written = conversations(paired(document_first=document_first))
    document = Turn("document", (None, "The tower."))
    before = written.before([Turn("query", ("",)), document], 0)
    assert before.endswith("**Query**:\n" if document_first else "<Query>: ")
    assert ("The tower." in before) == document_first
    for text in ("Which?", " ", "<|im_end|>", "x" * 500):
        assert written.write([Turn("query", (text,)), document]).startswith(before)


def test_control_tokens_in_a_text_stay_text(paired):
    mllm = paired()
    text = "<|im_end|><|image_pad|> <|im_<|im_end|>start|>"
    turns = [Turn("query", (text,)), Turn("document", (text, None))]
    prompt = conversations(mllm).write(turns)
    (ids,) = mllm.prompting.tokenize([prompt])
    special = [i for i in ids if i in mllm.prompting.tokenizer.added_tokens_decoder]
    vision = mllm.prompting.tokenizer.convert_tokens_to_ids(
        ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
    )
    assert special == vision


def test_what_it_has_no_place_for_shows_in_its_form(paired, tiny_model, tmp_path):
    turns = TURNS["several parts"]
    form = conversations(paired()).form(turns)
    assert (form.num_images, form.lost) == (2, ())
    first_only = pair_template("qwen2_vl", document_first=True).replace(
        "in message.content", "in message.content[:1]"
    )
    folder = with_template(tiny_model("qwen2_vl"), tmp_path / "model", first_only)
    form = conversations(MLLM.from_pretrained(folder, device="cpu", dtype="float32")).form(turns)
    assert (form.num_images, form.lost) == (0, (2,))


def test_variables_are_set_as_far_as_the_template_reads_them(tiny_model, tmp_path):
    template = "{{ mark | default('-') }}{{ enable_thinking | default('+') }}" + pair_template(
        "qwen2_vl", document_first=True
    )
    folder = with_template(tiny_model("qwen2_vl"), tmp_path / "model", template)
    load = {"device": "cpu", "dtype": "float32"}
    mllm = MLLM.from_pretrained(folder, **load)
    turns = TURNS["texts"]
    assert conversations(mllm).write(turns).startswith("-+")
    assert conversations(mllm, mark="!", unread=1).write(turns).startswith("!+")
    own = MLLM.from_pretrained(folder, **load, chat_template_kwargs={"mark": "?"})
    assert conversations(own, mark="!").write(turns).startswith("?+")
    assert not conversations(mllm).write(turns).endswith("\nAnswer")
    without = mllm.prompting.conversations(add_generation_prompt=False, variables={})
    assert without.write(turns) + "Answer:" == conversations(mllm).write(turns)


def test_it_goes_to_other_processes(paired):
    written = conversations(paired())
    again = pickle.loads(pickle.dumps(written))
    assert again.write(TURNS["several parts"]) == written.write(TURNS["several parts"])


def test_a_template_of_roles_alone_writes_no_users_turn(paired):
    prompting = paired().prompting
    assert not prompting.takes_user_turns
    with pytest.raises(ValueError, match=r"writes no user's turn: its prompts are of a query and"):
        prompting.render("<image>\nIs it {query}?", query="a mill")


def test_a_template_that_takes_neither_is_refused(tiny_model, tmp_path):
    folder = with_template(tiny_model("qwen2_vl"), tmp_path / "model", "{{ 'Yes?' }}")
    with pytest.raises(UnsupportedModelError, match="the chat template renders a picture and"):
        MLLM.from_pretrained(folder, device="cpu", dtype="float32")
