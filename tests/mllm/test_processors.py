from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from ragvl import Document, Reranker
from ragvl.data.images import ImageError
from ragvl.data.picture import Picture
from ragvl.mllm import (
    MLLM,
    UnsupportedModelError,
    UnusableImageError,
    encode_picture,
    merge_settings,
)

BIG, SMALL = Image.new("RGB", (640, 480), (200, 10, 10)), Image.new("RGB", (32, 32), (9, 9, 200))
TOKEN = 16 * 16  # pixels of the tiny Qwen-VLs' visual tokens


@pytest.fixture
def copied(tiny_model, tmp_path) -> Callable[[str], Path]:
    return lambda architecture: shutil.copytree(tiny_model(architecture), tmp_path / "model")


def edit(file: Path, **changes: object) -> None:
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(settings | changes))


def to_old_layout(folder: Path) -> None:
    """As Qwen2-VL is published: min_pixels and max_pixels in preprocessor_config.json."""
    saved = json.loads((folder / "processor_config.json").read_text())
    settings = saved["image_processor"]
    size = settings.pop("size")
    settings |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    edit(folder / "preprocessor_config.json", processor_class=saved["processor_class"], **settings)
    (folder / "processor_config.json").unlink()
    edit(folder / "chat_template.json", chat_template=(folder / "chat_template.jinja").read_text())
    (folder / "chat_template.jinja").unlink()


def num_tokens(folder: Path, picture: Image.Image = BIG, **settings: object) -> int:
    mllm = MLLM.from_pretrained(folder, device="cpu", processor_settings=settings)
    return mllm.prompting.encode_image(picture).num_tokens


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True], ids=["new layout", "old layout"])
@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen3_vl"])
def test_limits_are_in_force_under_both_names(architecture, old, copied):
    folder = copied(architecture)
    if old:
        to_old_layout(folder)
    assert num_tokens(folder) == 12
    for low, high in ((1, 4), (1, 100), (60, 70)):
        size = {"shortest_edge": low * TOKEN, "longest_edge": high * TOKEN}
        pixels = {"min_pixels": low * TOKEN, "max_pixels": high * TOKEN}
        for picture in (BIG, SMALL):
            made = num_tokens(folder, picture, size=size)
            assert low <= made <= high
            assert num_tokens(folder, picture, **pixels) == made
    assert num_tokens(folder, max_pixels=8 * TOKEN) <= 8


@pytest.mark.slow
def test_a_presets_limits_are_in_force(copied):
    folder = copied("qwen3_vl")
    to_old_layout(folder)
    reranker = Reranker.from_pretrained(folder, preset="qwen3-vl-reranker", device="cpu")
    prompting = reranker.mllm.prompting
    assert prompting.encode_image(BIG).num_tokens == 1200  # the picture's own, 640 x 480
    assert prompting.encode_image(Image.new("RGB", (4000, 3000))).num_tokens > 7000
    own = {"max_pixels": 20 * TOKEN}
    reranker = Reranker.from_pretrained(
        folder, preset="qwen3-vl-reranker", device="cpu", processor_settings=own
    )
    assert 12 < reranker.mllm.prompting.encode_image(BIG).num_tokens <= 20


def test_settings_are_merged_under_both_names():
    base = {"size": {"shortest_edge": 1, "longest_edge": 2}, "do_resize": True}
    assert merge_settings(base, {"max_pixels": 3}) == {
        "min_pixels": 1,
        "max_pixels": 3,
        "do_resize": True,
    }
    assert merge_settings({"max_pixels": 3}, {"size": 4}) == {"size": 4}
    assert merge_settings(base, {}) == base


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"maximum_pixels": 9}, r"has no 'maximum_pixels'; it has .*max_pixels"),
        ({"return_tensors": "np"}, "has no 'return_tensors'"),
        ({"model_max_length": 9}, "has no 'model_max_length'"),
        ({"size": {"longest_edge": 4096}}, "cannot work with"),
        ({"size": "large"}, "cannot work with"),
        ({"max_pixels": 8}, "cannot keep to 1024 to 8 pixels"),
        ({"max_pixels": 4096, "size": {"shortest_edge": 1}}, "two names of the same limits"),
    ],
)
def test_settings_that_cannot_be_in_force_are_refused_before_the_weights(settings, message, copied):
    folder = copied("qwen2_vl")
    edit(folder / "config.json", vision_config={"depth": 99})  # no weights fit this
    with pytest.raises(ValueError, match=message):
        MLLM.from_pretrained(folder, device="cpu", processor_settings=settings)


def test_settings_of_other_processors(tiny_model):
    mean = [0.1, 0.2, 0.3]
    mllm = MLLM.from_pretrained(
        tiny_model("llava"), device="cpu", processor_settings={"image_mean": mean}
    )
    assert mllm.prompting.processor.image_processor.image_mean == tuple(mean)
    one, two = (
        MLLM.from_pretrained(tiny_model("internvl"), device="cpu", processor_settings=settings)
        for settings in ({"max_patches": 1}, {"max_patches": 4})
    )
    assert one.prompting.encode_image(BIG).num_tokens < two.prompting.encode_image(BIG).num_tokens
    with pytest.raises(ValueError, match="has no 'max_pixels'"):
        num_tokens(tiny_model("llava"), max_pixels=4096)


# --- what a checkpoint carries beside its weights -----------------------------------------------


def saved_truncation(folder: Path) -> None:
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["truncation"] = {
        "direction": "Right",
        "max_length": 12,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    saved["padding"] = {
        "strategy": {"Fixed": 300},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(saved))


def saved_keywords(folder: Path) -> None:
    edit(
        folder / "tokenizer_config.json",
        max_length=12,
        padding="max_length",
        truncation=True,
        truncation_strategy="longest_first",
        truncation_side="left",
        padding_side="left",
        return_tensors="np",
        return_overflowing_tokens=True,
        split_special_tokens=True,
        model_max_length=16,
        min_pixels=1,
        max_pixels=2,
        size={"shortest_edge": 1, "longest_edge": 2},
    )


def saved_image_keywords(folder: Path) -> None:
    file = folder / "processor_config.json"
    saved = json.loads(file.read_text())
    saved["image_processor"] |= {
        "return_tensors": "np",
        "device": "cuda",
        "data_format": "channels_last",
    }
    file.write_text(json.dumps(saved))


def saved_generation(folder: Path) -> None:
    edit(
        folder / "generation_config.json",
        repetition_penalty=50.0,
        min_new_tokens=4,
        max_new_tokens=1,
        no_repeat_ngram_size=1,
        do_sample=True,
        temperature=9.0,
        num_beams=3,
        suppress_tokens=list(range(300)),
    )
    edit(folder / "config.json", output_hidden_states=True, return_dict=False, use_cache=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [saved_truncation, saved_keywords, saved_image_keywords, saved_generation]
)
def test_what_was_saved_beside_the_weights_shapes_no_call(damage, copied, tiny_mllm):
    plain, folder = tiny_mllm("qwen2_vl"), copied("qwen2_vl")
    damage(folder)
    reranker = Reranker.from_pretrained(folder, device="cpu", dtype="float32")
    pairs = [("Red?", Document(picture, caption="a roof")) for picture in (BIG, SMALL)]
    assert torch.equal(reranker.score(pairs), Reranker(plain).score(pairs))
    prompt = "Which has more windows?" * 20
    answers = [
        mllm.generate(
            [mllm.prompting.encode_prompt(mllm.prompting.render(prompt))], max_new_tokens=6
        )
        for mllm in (reranker.mllm, plain)
    ]
    assert answers[0] == answers[1]


# --- whose fault an error is --------------------------------------------------------------------


def test_a_picture_that_the_image_processor_refuses(tiny_mllm):
    strip = Image.new("RGB", (4000, 2))
    with pytest.raises(UnusableImageError, match="aspect ratio"):
        tiny_mllm("qwen2_vl").prompting.encode_image(strip)

    class Strip(Picture):  # decoding a file refuses it before a processor sees it
        @contextmanager
        def decoded(self, **_: object) -> Iterator[Image.Image]:
            yield strip

    with pytest.raises(ImageError, match=r"a strip.*aspect ratio"):
        encode_picture(tiny_mllm("qwen2_vl").prompting, Strip(BIG, "a strip"))


def test_what_is_not_the_pictures_fault_is_no_bad_picture(copied):
    mllm = MLLM.from_pretrained(copied("qwen2_vl"), device="cpu")
    mllm.prompting.tokenizer.init_kwargs |= {"truncation": True, "max_length": 8}
    with pytest.raises(UnsupportedModelError, match="fails on a picture that its image processor"):
        Reranker(mllm).score([("Red?", BIG)], on_error="skip")
