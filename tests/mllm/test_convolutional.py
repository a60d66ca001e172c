"""The vision tower of convolutions, alone and inside the models that hold it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from plain import picture, plain_scores
from tiny_models.eight import LLAVA_TEMPLATE, llava_tokenizer
from tiny_models.parts import square, text_config
from torch import Tensor
from torch.nn import functional as F

from ragvl import Document, Reranker
from ragvl.mllm import ConvolutionalVisionConfig, ConvolutionalVisionModel
from ragvl.retriever import DualEncoder

HIDDEN_SIZE = 24
STAGES = ((8, 3, 1, 1, 1), (12, 5, 2, 3, 2), (16, 3, 2, 2, 2))


def config(**settings: object) -> ConvolutionalVisionConfig:
    sizes = {"stages": STAGES, "stem_channels": 8, "hidden_size": HIDDEN_SIZE, "image_size": 32}
    return ConvolutionalVisionConfig(**{**sizes, **settings})


def tower(**settings: object) -> ConvolutionalVisionModel:
    torch.manual_seed(0)
    model = ConvolutionalVisionModel(config(**settings)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def written_out(model: ConvolutionalVisionModel, pixels: Tensor) -> Tensor:
    """The formula: every padded convolution one place at a time, for a norm of "none"."""

    def convolve(name: str, x: Tensor, stride: int = 1, *, act: bool = True) -> Tensor:
        weight = model.get_parameter(f"{name}.convolution.weight")
        bias = model.get_parameter(f"{name}.convolution.bias")
        kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        height, width = (-(-size // stride) for size in x.shape[-2:])
        before = [
            max((n - 1) * stride + kernel - size, 0) // 2
            for n, size in zip((height, width), x.shape[-2:], strict=True)
        ]
        wide = F.pad(x, (kernel, kernel, kernel, kernel))
        rows = []
        for i in range(height):
            row = []
            for j in range(width):
                top = kernel - before[0] + i * stride
                left = kernel - before[1] + j * stride
                patch = wide[:, :, top : top + kernel, left : left + kernel]
                row.append(F.conv2d(patch, weight, bias, groups=groups))
            rows.append(torch.cat(row, dim=3))
        y = torch.cat(rows, dim=2)
        return y.clamp(0, 6) if act else y

    x = convolve("stem", pixels, 2)
    number = 0
    for _, _, stride, expansion, repeats in model.config.stages:
        for repeat in range(repeats):
            name = f"blocks.{number}"
            y = convolve(f"{name}.widen", x) if expansion > 1 else x
            y = convolve(f"{name}.look", y, stride if repeat == 0 else 1)
            y = convolve(f"{name}.narrow", y, act=False)
            x = x + y if y.shape == x.shape else y
            number += 1
    return convolve("head", x).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 5)])
@torch.inference_mode()
def test_tokens_are_those_of_the_formula(size: tuple[int, int]) -> None:
    model = tower().double()
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    output = model(pixels)
    expected = written_out(model, pixels)
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output.pooler_output, expected.mean(1), rtol=1e-12, atol=1e-12)
    assert output.hidden_states[-1] is output.last_hidden_state
    assert output[1] is output.pooler_output, "a dual encoder takes it by its place"


@torch.inference_mode()
def test_tokens_are_pooled_and_carry_classes() -> None:
    """A map of 3 x 3 in squares of 2: the last row and column are parts of squares."""
    plain = tower().double()
    model = tower(hidden_size=HIDDEN_SIZE + 5, num_classes=5, pool=2, picture_token=True).double()
    model.load_state_dict(plain.state_dict(), strict=False)
    pixels = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    grid = plain(pixels).last_hidden_state.unflatten(1, (3, 3))
    squares = [grid[:, :2, :2], grid[:, :2, 2:], grid[:, 2:, :2], grid[:, 2:, 2:]]
    features = torch.stack([part.flatten(1, 2).mean(1) for part in (grid, *squares)], dim=1)
    classes = F.linear(features, model.classifier.weight, model.classifier.bias).softmax(-1)
    output = model(pixels)
    expected = torch.cat([features, classes], dim=-1)
    torch.testing.assert_close(output.last_hidden_state, expected)
    torch.testing.assert_close(output.pooler_output, expected[:, 0])


@torch.inference_mode()
def test_group_norm_makes_a_picture_independent_of_its_contrast() -> None:
    model = tower(norm="group").double()
    torch.nn.init.zeros_(model.stem.convolution.bias)
    pixels = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(
        model(pixels).pooler_output, model(1000 * pixels).pooler_output, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "batch"}, "'none' or 'group', not 'batch'"),
        ({"stages": [(8, 3, 1, 1)]}, r"\(channels, kernel, .*not \[8, 3, 1, 1\]"),
        ({"stages": [(8, 3, 0, 1, 1)]}, r"not \[8, 3, 0, 1, 1\]"),
        ({"num_classes": HIDDEN_SIZE}, "fewer than hidden_size=24"),
        ({"pool": 0}, "pool=0: .*at least 1"),
    ],
)
def test_settings_that_make_no_tower_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.parametrize("norm", ["none", "group"])
@torch.inference_mode()
def test_what_is_saved_loads_by_its_type(norm: str, tmp_path: Path) -> None:
    model = tower(norm=norm)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 32, 32)
    assert isinstance(loaded, ConvolutionalVisionModel)
    assert torch.equal(loaded(pixels).last_hidden_state, model(pixels).last_hidden_state)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA whose tower is made of convolutions."""
    torch.manual_seed(0)
    tokenizer = llava_tokenizer()
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            text_config={"model_type": "llama", **text_config(tokenizer)},
            vision_config=config().to_dict(),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=16,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size=square(32), do_center_crop=False),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=LLAVA_TEMPLATE,
    )
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def documents() -> Sequence[Document]:
    return [Document(picture(i, 40 + 9 * i, 60), caption=f"Barn {i}") for i in range(5)]


def test_a_llava_that_holds_it_is_reranked_as_by_hand(llava: Path) -> None:
    reranker = Reranker.from_pretrained(llava, device="cpu", dtype="float32")
    queries = ["What color is the roof?"] * 5
    pairs = list(zip(queries, documents(), strict=True))
    scores = reranker.score(pairs)
    expected = plain_scores(reranker, pairs)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert len(set(scores.tolist())) == len(pairs)


def test_its_scores_have_the_same_bits_in_any_company(llava: Path) -> None:
    together, alone = (
        Reranker.from_pretrained(llava, device="cpu", dtype="float32") for _ in range(2)
    )
    pairs = [("What color is the roof?", document) for document in documents()]
    scores = together.score(pairs)
    assert torch.equal(scores, torch.cat([alone.score([pair]) for pair in pairs[::-1]]).flip(0))


def test_a_dual_encoder_that_holds_it_encodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = llava_tokenizer()
    bert = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    model = transformers.VisionTextDualEncoderModel(
        transformers.VisionTextDualEncoderConfig(
            vision_config=config().to_dict(), text_config=bert.to_dict(), projection_dim=12
        )
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    transformers.CLIPImageProcessorPil(size=square(32), do_center_crop=False).save_pretrained(
        tmp_path
    )
    encoder = DualEncoder.from_pretrained(tmp_path, device="cpu")
    vectors = encoder.encode_documents(documents())
    assert vectors.shape == (5, 12)
    assert encoder.encode_queries(["a barn"]).shape == (1, 12)
