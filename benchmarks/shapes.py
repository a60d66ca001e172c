"""The dimensions of the models that are benchmarked, and what follows from those alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Literal

import torch

from ragvl.compression import Compression, page_tokens
from ragvl.ops.pages import page_tensors

Family = Literal["llava", "internvl", "qwen2_5_vl", "qwen3_vl"]


@dataclass(frozen=True)
class Decoder:
    """The language model, its numbers in the order in which the tables below have them.

    `kind` says whose layers it has where a family allows several.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    kind: Literal["llama", "qwen2", "qwen3"] = "llama"


@dataclass(frozen=True)
class Vision:
    """The vision tower; `num_deepstack` of its layers are also given to the decoder's first."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_deepstack: int = 0


@dataclass(frozen=True)
class Shape:
    """One model.

    Attributes:
        family: the architecture around decoder and vision tower.
        decoder: the language model.
        vision: the vision tower.
        image_tokens: what a picture usually becomes, a square number. Of InternVL one tile; of
            Qwen-VL a picture of about a megapixel.
        initializer_range: the standard deviation of its random weights. Published configurations
            have 0.02; a narrow model needs more, or its answers would not depend on the picture
            and agreeing scores would mean nothing.
    """

    family: Family
    decoder: Decoder
    vision: Vision
    image_tokens: int
    initializer_range: float = 0.02

    @property
    def patches_per_token(self) -> int:
        """How many of the vision tower's patches become one image token."""
        return 1 if self.family == "llava" else 4

    @property
    def pixels_per_token(self) -> int:
        """The side, in pixels, of the square of a picture that becomes one image token."""
        patch_size = 16 if self.family == "qwen3_vl" else 14
        return patch_size * isqrt(self.patches_per_token)

    def kv_bytes_per_token(self, compression: Compression | None = None) -> float:
        """Keys and values of all layers, bfloat16 or compressed, in whole pages."""
        decoder, tokens = self.decoder, page_tokens(compression)
        sizes = decoder.num_kv_heads, decoder.head_dim, tokens
        parts = page_tensors(compression, torch.bfloat16, *sizes)
        return decoder.num_layers * sum(part.nbytes for part in parts.values()) / tokens

    @property
    def feature_bytes_per_token(self) -> int:
        """Visual tokens as they enter the decoder, bfloat16."""
        return 2 * self.decoder.hidden_size * (1 + self.vision.num_deepstack)


_TINY_VISION = Vision(32, 64, num_layers=2, num_heads=2)
_CLIP_LARGE = Vision(1024, 4096, num_layers=24, num_heads=16)
_INTERN_VIT = Vision(1024, 4096, num_layers=24, num_heads=16)
_QWEN2_5_VIT = Vision(1280, 3420, num_layers=32, num_heads=16)

# For tests: each family at a size that runs in milliseconds
_TINY_SHAPES = {
    "tiny": Shape(
        "llava",
        Decoder(32, 64, 2, 4, 4, 8, 2048, tied=True),
        _TINY_VISION,
        image_tokens=16,
        initializer_range=0.2,
    ),
    "tiny-internvl": Shape(
        "internvl",
        Decoder(32, 64, 2, 4, 2, 8, 2048, tied=False, kind="qwen2"),
        _TINY_VISION,
        image_tokens=16,
        initializer_range=0.2,
    ),
    "tiny-internvl-llama": Shape(
        "internvl",
        Decoder(32, 64, 2, 4, 2, 8, 2048, tied=False),
        _TINY_VISION,
        image_tokens=16,
        initializer_range=0.2,
    ),
    "tiny-qwen2.5-vl": Shape(
        "qwen2_5_vl",
        Decoder(64, 64, 2, 4, 2, 16, 2048, tied=True, kind="qwen2"),
        _TINY_VISION,
        image_tokens=16,
        initializer_range=0.2,
    ),
    "tiny-qwen3-vl": Shape(
        "qwen3_vl",
        Decoder(32, 64, 4, 4, 2, 16, 2048, tied=True, kind="qwen3"),
        Vision(32, 64, num_layers=4, num_heads=2, num_deepstack=3),
        image_tokens=16,
        initializer_range=0.2,
    ),
}

# For a CPU, of the size that the figures in the README are about
_MIDDLE_SHAPES = {
    # 44 M parameters, of which a quarter is vocabulary, as in InternVL2-1B
    "mid": Shape(
        "llava",
        Decoder(512, 1536, 8, 8, 8, 64, 16_384, tied=True),
        Vision(320, 1280, num_layers=6, num_heads=5),
        image_tokens=256,
        initializer_range=0.05,
    ),
    # 123 M parameters, half the width of InternVL2-1B
    "mid-internvl": Shape(
        "internvl",
        Decoder(640, 3072, 12, 10, 2, 64, 16_384, tied=True, kind="qwen2"),
        Vision(384, 1536, num_layers=8, num_heads=6),
        image_tokens=256,
        initializer_range=0.05,
    ),
    # InternVL2-1B at half the width and depth, vision tower and decoder alike: 90 M parameters
    "half-internvl": Shape(
        "internvl",
        Decoder(448, 2432, 12, 7, 1, 64, 16_384, tied=True, kind="qwen2"),
        Vision(512, 2048, num_layers=12, num_heads=8),
        image_tokens=256,
        initializer_range=0.05,
    ),
}

# The published configurations, in the order in which a GPU run takes them
PUBLISHED = {
    "internvl2-1b": Shape(
        "internvl",
        Decoder(896, 4864, 24, 14, 2, 64, 151_655, tied=False, kind="qwen2"),
        _INTERN_VIT,
        image_tokens=256,
    ),
    # InternLM2's layers are LLaMA's with other names (and queries, keys and values in one matrix)
    "internvl2-2b": Shape(
        "internvl",
        Decoder(2048, 8192, 24, 16, 8, 128, 92_553, tied=False),
        _INTERN_VIT,
        image_tokens=256,
    ),
    "qwen2.5-vl-3b": Shape(
        "qwen2_5_vl",
        Decoder(2048, 11_008, 36, 16, 2, 128, 151_936, tied=True, kind="qwen2"),
        _QWEN2_5_VIT,
        image_tokens=1296,
    ),
    "qwen2.5-vl-7b": Shape(
        "qwen2_5_vl",
        Decoder(3584, 18_944, 28, 28, 4, 128, 152_064, tied=False, kind="qwen2"),
        _QWEN2_5_VIT,
        image_tokens=1296,
    ),
    "llava-1.5-7b": Shape(
        "llava",
        Decoder(4096, 11_008, 32, 32, 32, 128, 32_064, tied=False),
        _CLIP_LARGE,
        image_tokens=576,
    ),
    "qwen3-vl-2b": Shape(
        "qwen3_vl",
        Decoder(2048, 6144, 28, 16, 8, 128, 151_936, tied=True, kind="qwen3"),
        Vision(1024, 4096, num_layers=24, num_heads=16, num_deepstack=3),
        image_tokens=1296,
    ),
    "llava-1.5-13b": Shape(
        "llava",
        Decoder(5120, 13_824, 40, 40, 40, 128, 32_064, tied=False),
        _CLIP_LARGE,
        image_tokens=576,
    ),
}

SHAPES = {**_TINY_SHAPES, **_MIDDLE_SHAPES, **PUBLISHED}
