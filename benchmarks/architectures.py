"""What ragvl does with each architecture, tried on the tiny random checkpoints of the tests.

python benchmarks/architectures.py   # a minute on two CPU cores
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
import typer
from common import RESULTS, ROOT, save
from PIL import Image
from tables import Results, table

from ragvl.messages import reason
from ragvl.mllm import MLLM, Prompting
from ragvl.prefix_cache import reuse_problem
from ragvl.prefix_cache.reuse import features_problem

sys.path.insert(0, str(ROOT / "tests"))
from tiny_models import ARCHITECTURES, MORE_ARCHITECTURES, REFUSED, WHOLE, build_tiny

PICTURE = (640, 480)
_CLIP_336 = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}


@dataclass(frozen=True)
class Published:
    """A checkpoint of an architecture, by the numbers of its own configuration.

    Attributes:
        name: its hub id.
        layers: of its decoder, those with attention.
        kv_heads: of each layer.
        head_dim: numbers of a key.
        images: settings of its image processor, where they are not transformers' defaults.
        processor: settings of its processor.
        state_bytes: of the layers that carry a state instead of attention.
    """

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    images: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    state_bytes: int = 0

    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2


PUBLISHED = {
    "llava": Published("llava-hf/llava-1.5-7b-hf", 32, 32, 128, _CLIP_336, {"patch_size": 14}),
    "llava_onevision": Published(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf", 28, 4, 128, {}, {"num_image_tokens": 729}
    ),
    "internvl": Published(
        "OpenGVLab/InternVL3-1B-hf",
        *(24, 2, 64),
        {
            "size": {"height": 448, "width": 448},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 12,
        },
        {"image_seq_length": 256},
    ),
    "qwen2_vl": Published("Qwen/Qwen2-VL-7B-Instruct", 28, 4, 128),
    "qwen2_5_vl": Published("Qwen/Qwen2.5-VL-7B-Instruct", 28, 4, 128),
    "qwen3_vl": Published(
        "Qwen/Qwen3-VL-2B-Instruct",
        *(28, 8, 128),
        {"patch_size": 16, "size": {"shortest_edge": 1 << 16, "longest_edge": 1 << 24}},
    ),
    "idefics3": Published(
        "HuggingFaceM4/Idefics3-8B-Llama3", 32, 8, 128, {}, {"image_seq_len": 169}
    ),
    "gemma3": Published(
        "google/gemma-3-4b-it",
        *(34, 4, 256),
        {"size": {"height": 896, "width": 896}},
        {"full_image_sequence": "<image_soft_token>" * 256},
    ),
    "paligemma": Published("google/paligemma-3b-pt-224", 18, 1, 256, {}, {"image_seq_length": 256}),
    "llava_next": Published(
        "llava-hf/llava-v1.6-mistral-7b-hf", 32, 8, 128, _CLIP_336, {"patch_size": 14}
    ),
    "smolvlm": Published(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        *(24, 32, 64),
        {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}},
        {"image_seq_len": 81},
    ),
    "glm4v": Published("zai-org/GLM-4.1V-9B-Thinking", 40, 2, 128),
    "glm46v": Published("zai-org/GLM-4.6V-Flash", 40, 2, 128),
    "glm4v_moe": Published("zai-org/GLM-4.5V", 46, 8, 128),
    "qwen3_vl_moe": Published(
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        *(48, 4, 128),
        {"patch_size": 16, "size": {"shortest_edge": 1 << 16, "longest_edge": 1 << 24}},
    ),
    "lighton_ocr": Published(
        "lightonai/LightOnOCR-1B-1025",
        *(28, 8, 128),
        {"patch_size": {"height": 28, "width": 28}, "size": {"longest_edge": 1540}},
        {"patch_size": 14, "effective_patch_size": 28},
    ),
    "mistral3": Published(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        *(40, 8, 128),
        {"patch_size": {"height": 28, "width": 28}, "size": {"longest_edge": 1540}},
        {"patch_size": 14, "effective_patch_size": 28},
    ),
    "ministral3": Published(
        "mistralai/Ministral-3-8B-Instruct-2512",
        *(34, 8, 128),
        {"patch_size": {"height": 28, "width": 28}, "size": {"longest_edge": 1540}},
        {"patch_size": 14, "effective_patch_size": 28},
    ),
    "aya_vision": Published(
        "CohereLabs/aya-vision-8b",
        *(32, 8, 128),
        {
            "size": {"height": 364, "width": 364},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 12,
        },
        {"patch_size": 28, "img_size": 364},
    ),
    "qwen3_5": Published(
        "Qwen/Qwen3.5-9B",
        *(8, 4, 256),
        {"patch_size": 16, "size": {"shortest_edge": 1 << 16, "longest_edge": 1 << 24}},
        # Of 24 layers: 4 columns of a convolution in bfloat16, 32 heads' matrices in float32
        state_bytes=24 * (4 * (2 * 16 * 128 + 32 * 128) * 2 + 32 * 128 * 128 * 4),
    ),
    "paddleocr_vl": Published("PaddlePaddle/PaddleOCR-VL", 18, 2, 128),
    "deepseek_vl": Published(
        "deepseek-community/deepseek-vl-1.3b-chat", 24, 16, 128, {}, {"num_image_tokens": 576}
    ),
    "janus": Published(
        "deepseek-community/Janus-Pro-1B", 24, 16, 128, {}, {"num_image_tokens": 576}
    ),
    "ernie4_5_vl_moe": Published("baidu/ERNIE-4.5-VL-28B-A3B-PT", 28, 4, 128),
    "vipllava": Published("llava-hf/vip-llava-7b-hf", 32, 32, 128, _CLIP_336, {"patch_size": 14}),
    "video_llama_3": Published("lkhl/VideoLLaMA3-2B-Image-HF", 28, 2, 128),
}


def tried(architecture: str) -> dict[str, Any]:
    """What becomes of an architecture's tiny checkpoint.

    Raises:
        ImportError: its processor needs a package that is not here.

    Returns:
        `kept`: "prefix", "features" or None; `why`: what keeps it from more, or None; `pictures`:
        whether a prompt may have several; `image_tokens` of a picture of 640 x 480, and
        `kv_bytes` of its prefix: of the `checkpoint` named, or of the tiny one.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            checkpoint = build_tiny(architecture, Path(folder))
            mllm = MLLM.from_pretrained(checkpoint, device="cpu", dtype="float32")
        except ValueError as error:
            why = re.sub(rf"{re.escape(folder)}\S*: ", "", reason(error))
            return {"architecture": architecture, "kept": None, "why": why}
    why = reuse_problem(mllm)
    kept = "prefix" if why is None else "features"
    if why is not None and (problem := features_problem(mllm)) is not None:
        kept, why = None, f"{why}; {problem}"
    several = takes_several(mllm.prompting)
    published = PUBLISHED.get(architecture)
    if published is not None:
        set_up(mllm.prompting.processor, published)
    tokens = mllm.prompting.encode_image(Image.new("RGB", PICTURE)).num_tokens
    return {
        "architecture": architecture,
        "kept": kept,
        "why": why,
        "several_pictures": several,
        "checkpoint": published and published.name,
        "image_tokens": tokens,
        "kv_bytes": kept_bytes(mllm, published, tokens) if kept == "prefix" else None,
    }


def kept_bytes(mllm: MLLM, published: Published | None, tokens: int) -> int:
    """Of a prefix of so many tokens in bfloat16, and of states in their own dtype."""
    if published is not None:
        return tokens * published.kv_bytes_per_token() + published.state_bytes
    layout = mllm.kv_layout
    numbers = tokens * layout.bytes_per_token() // layout.dtype.itemsize
    states = (state for layer in layout.states for state in layer)
    return 2 * numbers + sum(prod(state.shape) * state.dtype.itemsize for state in states)


def takes_several(prompting: Prompting) -> bool:
    """Whether a prompt with two pictures has the ids that the model's own processor gives."""
    images = [Image.new("RGB", size) for size in ((60, 48), (40, 90))]
    text = prompting.render("<image>\n<image>\nWhich is a mill?")
    bos = prompting.tokenizer.bos_token
    try:
        theirs = prompting.processor(
            images=images,
            text=[text],
            add_special_tokens=bos is None or not text.startswith(bos),
            return_tensors="pt",
        )
        ours = prompting.encode_prompt(text, [prompting.encode_image(image) for image in images])
    except ValueError:
        return False
    return bool(theirs["input_ids"][0].tolist() == ours.input_ids)


def set_up(processor: Any, published: Published) -> None:
    """Gives a tiny checkpoint's processor the sizes of a published one."""
    processor.image_processor = type(processor.image_processor)(**published.images)
    for name, value in published.processor.items():
        if not hasattr(processor, name):
            continue  # of another processor that the architecture may have
        setattr(processor, name, value)


def architectures_table(results: Results) -> str:
    """What is kept of each architecture."""
    kinds = {"prefix": "exact reuse", "features": "visual tokens only", None: "refused"}
    rows = []
    for row in results["architectures"]["architectures"]:
        kept = kinds[row["kept"]] if row["why"] is None else f"{kinds[row['kept']]}: {row['why']}"
        tokens = kv = pictures = ""
        size = row.get("checkpoint") or "tiny"
        if row["kept"] is None:
            size = ""
        else:
            pictures = "any" if row["several_pictures"] else "one"
            tokens = f"{row['image_tokens']:,}"
        if row.get("kv_bytes") is not None:
            kv = f"{row['kv_bytes'] / 2**20:.1f} MiB"
            if size == "tiny":
                kv = f"{row['kv_bytes'] / 2**10:,.0f} KiB"
        rows.append([f"`{row['architecture']}`", kept, pictures, size, tokens, kv])
    header = ["architecture", "kept", "pictures a document", "at the size of", "tokens", "bytes"]
    versions = results["architectures"]["versions"]
    note = (
        "Tokens, and what is kept of them (keys and values in bfloat16, states), of a picture of "
        "640 x 480 pixels. A published checkpoint's layers and heads are written down in "
        "benchmarks/architectures.py, not read from the hub; where they are not, *tiny* is the "
        "random checkpoint of the tests. "
        f"Found with transformers {versions['transformers']}."
    )
    return table(header, rows, note)


def main() -> None:
    """Try every architecture; writes benchmarks/results/architectures.json.

    The row of one whose processor needs a package that is not here stays as it was.
    """
    path = RESULTS / "architectures.json"
    known = json.loads(path.read_text()) if path.exists() else {"architectures": []}
    earlier = {row["architecture"]: row for row in known["architectures"]}
    rows = []
    for name in [*ARCHITECTURES, *WHOLE, *MORE_ARCHITECTURES, *REFUSED]:
        try:
            row = tried(name)
        except ImportError as error:
            print(f"{name} is not tried: {reason(error)}")
            if name not in earlier:
                continue
            row = earlier[name]
        rows.append(row)
        print(name, row["kept"], row["why"] or "", row.get("image_tokens", ""))
    print(f"wrote {save('architectures', {'architectures': rows}, torch.device('cpu'))}")


if __name__ == "__main__":
    typer.run(main)
