"""The colors that a picture mostly has, by the names that people use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IN_GERMAN = {
    "black": "schwarz",
    "white": "weiß",
    "grey": "grau",
    "red": "rot",
    "orange": "orange",
    "yellow": "gelb",
    "green": "grün",
    "blue": "blau",
    "purple": "lila",
    "pink": "rosa",
    "brown": "braun",
}
COLORS = tuple(IN_GERMAN)
_SIDE = 64  # a picture is looked at in this size
_OPAQUE = 128  # of 255
_HUES = (  # degrees, from which each begins
    (0, "red"),
    (14, "orange"),
    (42, "yellow"),
    (68, "green"),
    (165, "blue"),
    (255, "purple"),
    (295, "pink"),
    (340, "red"),
)


def main_colors(image: Image.Image, *, least: float = 0.3) -> tuple[str, ...]:
    """The color that most of it has, then others that have a share of `least` too.

    A transparent ground does not count. Empty where nothing is opaque, or no color has that share.
    """
    shares = color_shares(image)
    order = sorted(shares, key=lambda name: -shares[name])
    return tuple(name for name in order if shares[name] >= least)


def color_shares(image: Image.Image) -> dict[str, float]:
    """How much of the opaque part of a picture has which color; of `COLORS`, those it has."""
    small = image.convert("RGBA")
    small.thumbnail((_SIDE, _SIDE))
    pixels = np.asarray(small).reshape(-1, 4)
    pixels = pixels[pixels[:, 3] >= _OPAQUE][:, :3]
    if not len(pixels):
        return {}
    names, counts = np.unique(_named(pixels), return_counts=True)
    return {COLORS[name]: count / len(pixels) for name, count in zip(names, counts, strict=True)}


def _named(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Indices into `COLORS` (N,) of RGB pixels (N, 3)."""
    rgb = pixels.astype(np.float32) / 255
    value = rgb.max(axis=1)
    chroma = value - rgb.min(axis=1)
    saturation = chroma / np.maximum(value, 1e-6)
    hue = _hue(rgb, value, chroma)
    starts = [start for start, _ in _HUES]
    by_hue = np.array([COLORS.index(name) for _, name in _HUES])
    named = by_hue[np.searchsorted(starts, hue, side="right") - 1]

    def put(where: NDArray[np.bool_], color: str) -> None:
        named[where] = COLORS.index(color)

    warm = (hue < 48) | (hue >= 345)
    put(warm & (hue >= 8) & (hue < 48) & (value < 0.72), "brown")
    put(warm & (hue >= 8) & (hue < 48) & (saturation < 0.45) & (value >= 0.72), "brown")
    put(((hue < 14) | (hue >= 340)) & (saturation < 0.55) & (value >= 0.7), "pink")
    put((hue >= 42) & (hue < 68) & (saturation < 0.3) & (value >= 0.75), "white")
    put((hue >= 295) & (hue < 340) & (value < 0.6), "purple")
    grey = (saturation < 0.16) | (chroma < 0.07)
    put(grey, "grey")
    put(grey & (value >= 0.82), "white")
    put(value < 0.2, "black")
    put(grey & (value < 0.28), "black")
    return named


def _hue(
    rgb: NDArray[np.float32], value: NDArray[np.float32], chroma: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Degrees in [0, 360) (N,)."""
    red, green, blue = rgb.T
    safe = np.maximum(chroma, 1e-6)
    sixths = np.select(
        [value == red, value == green],
        [((green - blue) / safe) % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    return 60 * sixths


def in_common(colors: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Colors that all of several pictures have, in the order of the first."""
    first, *others = colors
    return tuple(name for name in first if all(name in other for other in others))
