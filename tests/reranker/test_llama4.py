"""Llama 4's attention is in chunks: its prompts are scored whole, its visual tokens are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from plain import picture, plain_scores
from tiny_models.parts import (
    HIDDEN_SIZE,
    byte_level_tokenizer,
    fast_tokenizer,
    spread,
    square,
    text_config,
)
from tiny_models.refused import LLAMA3_TEMPLATE

from ragvl import Document, Reranker
from ragvl.mllm import MLLM
from ragvl.prefix_cache import reuse_problem
from ragvl.prefix_cache.reuse import features_problem

QUERIES = ["What color is the roof?", "Is it by the sea, or in the forest behind the old mill?"]


class OneTile(transformers.GotOcr2ImageProcessorPil):
    """Takes the place of Llama 4's own image processor, which needs torchvision."""

    def __call__(self, images: Any, **options: Any) -> Any:
        encoded = super().__call__(images, **options)
        encoded.pop("num_patches", None)
        encoded["aspect_ratios"] = [[1, 1]] * len(encoded["pixel_values"])
        return encoded


def llama4(chunk_size: int) -> MLLM:
    names = ("image_start", "image_end", "image", "patch", "tile_x_separator", "tile_y_separator")
    special = ["<|begin_of_text|>", "<|eot|>", "<|finetune_right_pad|>"]
    special += [f"<|{name}|>" for name in ("header_start", "header_end", *names)]
    tokenizer = fast_tokenizer(
        byte_level_tokenizer(special, bos=special[0]),
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[2],
        additional_special_tokens=special[1:],
    )
    config = transformers.Llama4Config(
        text_config=text_config(
            tokenizer,
            num_hidden_layers=4,
            num_local_experts=2,
            intermediate_size_mlp=64,
            attention_chunk_size=chunk_size,
        ),
        vision_config={
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 4 * HIDDEN_SIZE,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vision_output_dim": HIDDEN_SIZE,
            "projector_input_dim": HIDDEN_SIZE,
            "projector_output_dim": HIDDEN_SIZE,
            "image_size": 32,
            "patch_size": 8,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )
    template = LLAMA3_TEMPLATE.replace("eot_id", "eot")
    for end in ("start", "end"):
        template = template.replace(f"{end}_header_id", f"header_{end}")
    processor = transformers.Llama4Processor(
        OneTile(size=square(32), crop_to_patches=False),
        tokenizer,
        patch_size=8,
        chat_template=template,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Llama4ForConditionalGeneration(config).eval()
        spread(model)
    return MLLM(model, processor)


@pytest.mark.parametrize("chunk_size", [16, 8192])
def test_prompts_are_scored_whole_and_visual_tokens_are_kept(
    chunk_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    mllm = llama4(chunk_size)
    assert "layers of chunked_attention" in str(reuse_problem(mllm))
    assert features_problem(mllm) is None
    reranker = Reranker(mllm)
    documents = [Document(picture(i), caption="A barn " * (i + 1)) for i in range(3)]
    pairs = [(query, document) for query in QUERIES for document in documents]
    expected = plain_scores(reranker, pairs)
    assert expected.logit().std() > 0.1, "the inputs must give different scores"
    torch.testing.assert_close(reranker.score(pairs), expected, atol=1e-5, rtol=0)
    assert "only visual tokens are cached" in caplog.text
    report = reranker.warm(documents, progress=False)
    assert (report.known, report.built) == (3, 0)
