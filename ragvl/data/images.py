"""Any picture that a caller hands over, as 8-bit RGB, or an error that says which one is bad."""

from __future__ import annotations

import os
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; PIL warns above the same figure
MAX_ASPECT_RATIO = 200  # resizing the shorter side of a longer strip would make it enormous

# Registering every decoder once, here, keeps threads from doing it at the same time later.
Image.init()
# Formats that are decoded in this process; PIL also opens some (EPS) by starting a program.
FORMATS = tuple(
    name
    for name in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
    if name in Image.OPEN
)

_lazy_image_lock = threading.Lock()


class ImageError(ValueError):
    """A picture that cannot be used; the message names it and says why."""


def load_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Image.Image:
    """The picture as a new 8-bit RGB image, turned as its EXIF orientation says.

    Of an animation the first frame is taken. What is transparent becomes white. 16-bit and float
    pictures are scaled to 8 bits. Safe to call from several threads; PIL's global settings are
    left alone, and `source` is not changed.

    Args:
        source: a file's path, a file's bytes, a PIL image (the frame that it shows), or an array
            of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or floating in [0, 1].
        max_pixels: refuse larger pictures, by the size in the header, before decoding them.
            PIL itself refuses those above twice its `Image.MAX_IMAGE_PIXELS`.
        name: what to call the picture in an error; by default its path or kind.

    Raises:
        ImageError: the file is missing, empty, truncated, too large, too long a strip, or no
            picture; or the pixels have no size or no defined brightness.
        TypeError: `source` is none of the above.
    """
    label = name or describe(source)
    try:
        if isinstance(source, np.ndarray):
            return _from_array(source, max_pixels)
        if isinstance(source, Image.Image):
            return _from_pil(source, max_pixels)
        with Image.open(_checked_file(source), formats=FORMATS) as image:
            _check_size(image.width, image.height, max_pixels)
            return _to_rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise ImageError(f"{label} is not a picture that can be read here ({known})") from error
    # Decoders raise whatever a malformed file trips: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ImageError(f"{label} cannot be used as a picture: {error}") from error


def describe(source: ImageSource) -> str:
    """A few words for a picture that has no other name.

    Raises:
        TypeError: `source` is not something that `load_image` accepts.
    """
    if isinstance(source, str | os.PathLike):
        return f"'{os.fspath(source)}'"
    if isinstance(source, bytes):
        return f"a picture of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return f"a PIL image ({source.mode}, {source.width}x{source.height})"
    if isinstance(source, np.ndarray):
        return f"an array ({source.dtype}, {source.shape})"
    raise TypeError(
        "a picture must be a path, a file's bytes, a PIL image or a numpy array, "
        f"not {type(source).__name__}"
    )


def _checked_file(source: str | os.PathLike[str] | bytes) -> Path | BytesIO:
    if isinstance(source, bytes):
        size = len(source)
    else:
        path = Path(source)
        if not path.exists():
            raise ValueError("there is no such file")
        if not path.is_file():  # reading a device or a pipe might never end
            raise ValueError("it is not a file")
        size = path.stat().st_size
    if size == 0:
        raise ValueError("it is empty (0 bytes)")
    return BytesIO(source) if isinstance(source, bytes) else path


def _from_pil(source: Image.Image, max_pixels: int) -> Image.Image:
    _check_size(source.width, source.height, max_pixels)
    if not isinstance(source, ImageFile.ImageFile):
        return _to_rgb(ImageOps.exif_transpose(source))
    # Still backed by its file: it is decoded on first use, which two threads must not do at once.
    with _lazy_image_lock:
        decoded = ImageOps.exif_transpose(source)
    return _to_rgb(decoded)


def _from_array(source: np.ndarray, max_pixels: int) -> Image.Image:
    channels = source.shape[2] if source.ndim == 3 else 1
    if source.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError("expected the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    _check_size(source.shape[1], source.shape[0], max_pixels)
    if np.issubdtype(source.dtype, np.floating):
        source = _from_unit_interval(source)
    elif source.dtype != np.uint8:
        raise ValueError("expected the dtype uint8, or floating in [0, 1]")
    return _to_rgb(Image.fromarray(source[:, :, 0] if source.shape[2:] == (1,) else source))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _from_16_bit(image)
    elif image.mode == "F":
        image = Image.fromarray(_from_unit_interval(np.asarray(image)))
    elif image.mode == "La":  # premultiplied; PIL converts it to nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scaled to 8 bits; PIL's own conversion clips at 255, which turns most pictures white."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ValueError(f"its pixels span {low}..{high}; at most 16 bits (0..65535) are read")
    scaled = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # round(value / 257)
    if (transparent := image.info.get("transparency")) is not None:
        scaled[values == transparent] = 255
    return Image.fromarray(scaled)


def _from_unit_interval(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ValueError(f"floating pixels must be in [0, 1]; these span {low}..{high}")
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height == 0:
        raise ValueError(f"it has no pixels ({width}x{height})")
    if width * height > max_pixels:
        raise ValueError(
            f"it is {width}x{height}, above the limit of {max_pixels:,} pixels (max_pixels)"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"it is {width}x{height}; one side may be at most {MAX_ASPECT_RATIO} times the other"
        )
