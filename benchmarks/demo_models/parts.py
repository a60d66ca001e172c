"""What the retriever and the MLLM share: tokenizer and image processor."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from demo_models.training_set import TrainingSet
from ragvl.data.document import Document
from ragvl.data.synthetic.drawing import COLORS, KINDS, SETTINGS, SHAPES, SIZE, WORDS
from ragvl.data.synthetic.world import NUMBERS, SYLLABLES
from ragvl.generator.prompt import generator_prompt
from ragvl.reranker.templates import CAPTION

VOCAB_SIZE = 768
MAX_LENGTH = 512
IMAGE, PAD, END, USER, ASSISTANT = "<image>", "<pad>", "<|end|>", "<|user|>", "<|assistant|>"


def train_tokenizer(data: TrainingSet) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges come from the prompts' words and from single syllables.

    Names are left out of its text, so that a name is always spelled syllable by syllable, whether
    or not the training split holds it.
    """
    answers = {answer for question in data.questions for answer in question.answers}
    common = [word.lower() for word in WORDS] + [*COLORS, *SHAPES, *NUMBERS, "yes", "no"]
    assert set(common) & answers, "the world's answers and this vocabulary have parted"
    years = [str(year) for year in range(1950, 2020)]
    sentences = [
        CAPTION.text.replace("<image>", ""),
        "Describe the image. x, outside inside:",
        generator_prompt("", [Document(b"", caption="x")])[0].replace("<image>", ""),
        *(
            f"What color is the roof wall carpet sign of x {k} {s}?"
            for k in KINDS
            for s in SETTINGS
        ),
        *(f" {k} in, photographed in Photograph of x {k}" for k in KINDS),
        *(f"How many windows lamps does x {k} have?" for k in KINDS),
        *(f"What shape is the door table of x {k} {s}?" for k in KINDS for s in SETTINGS),
        *(f"Which {k} {s} has more windows, x or x?" for k in KINDS for s in SETTINGS),
        *(f"Do x and x {k} {s} have doors of the same shape?" for k in KINDS for s in SETTINGS),
        "What word is written on the sign of x?",
        *(
            f": {value} roof, {value} wall, {value} door, {value} carpet, {value} sign,"
            for value in common
        ),
        *(f"Is the table of x {first} or x {first}?" for first in [*COLORS, *SHAPES]),
    ]
    lines = [*sentences * 20, *common * 100, *["Yes", "No"] * 100]
    lines += [f" {syllable.capitalize()}" for syllable in SYLLABLES] * 100
    lines += [syllable.capitalize() for syllable in SYLLABLES] * 100
    lines += [*SYLLABLES] * 100
    lines += [f" {year}" for year in years] * 10
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, END, USER, ASSISTANT, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        model_max_length=MAX_LENGTH,
    )


def image_processor() -> CLIPImageProcessorPil:
    size = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessorPil(
        size=size, do_center_crop=False, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
