"""A relevance score by plain calls of transformers, as in the paper's release: the expected values.

One prompt at a time through the model's own processor, `generate` for one token, and the logits of
that first step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ragvl import Document, Query, Reranker
from ragvl.data.query import QueryLike
from ragvl.mllm import MLLM
from ragvl.reranker.templates import pictures_in_order

Images = Image.Image | Sequence[Image.Image]  # a prompt's pictures; one may stand by itself


def plain_inputs(mllm: MLLM, images: Images, prompt: str) -> dict[str, Tensor]:
    bos = mllm.prompting.tokenizer.bos_token
    inputs = mllm.prompting.processor(
        images=[images] if isinstance(images, Image.Image) else list(images) or None,
        text=[prompt],
        add_special_tokens=bos is None or not prompt.startswith(bos),
        return_tensors="pt",
    )
    inputs.pop("labels", None)  # PaliGemma's processor is made for training too
    return inputs.to(mllm.device, mllm.dtype)


@torch.inference_mode()
def plain_logits(mllm: MLLM, images: Images, prompt: str) -> Tensor:
    """(vocabulary,) float32: the logits of the first token of the answer."""
    output = mllm.model.generate(
        **plain_inputs(mllm, images, prompt),
        max_new_tokens=1,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.logits[0][0].float()


def plain_relevance(
    mllm: MLLM,
    images: Images,
    prompt: str,
    yes_token_ids: Sequence[int],
    no_token_ids: Sequence[int],
) -> float:
    """The probability of Yes against No: the softmax over their two logits, as published."""
    (yes,), (no,) = yes_token_ids, no_token_ids
    return plain_logits(mllm, images, prompt)[[yes, no]].softmax(0)[0].item()


def plain_scores(reranker: Reranker, pairs: Sequence[tuple[QueryLike, Document]]) -> Tensor:
    """(pairs,): the relevance of each pair by itself, on the reranker's own prompts."""
    return torch.tensor(
        [
            plain_relevance(
                reranker.mllm,
                [
                    picture.load()
                    for picture in pictures_in_order(reranker.template, Query.of(query), document)
                ],
                reranker.prompt(query, document),
                reranker.yes_token_ids,
                reranker.no_token_ids,
            )
            for query, document in pairs
        ]
    )


def picture(seed: int, width: int = 60, height: int = 48) -> Image.Image:
    """A picture of noise, another one for each seed."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def with_wide_windows(folder: Path, copy: Path) -> Path:
    """The checkpoint, or one whose layers with a window see long prompts."""
    config = json.loads((folder / "config.json").read_text())
    if not config["text_config"].get("sliding_window"):
        return folder
    config["text_config"]["sliding_window"] = 512
    shutil.copytree(folder, copy)
    (copy / "config.json").write_text(json.dumps(config))
    return copy
