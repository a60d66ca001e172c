"""Any picture that a caller hands over, as 8-bit RGB, or an error that says which one is bad."""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from ragvl.data.image_sources import (
    MAX_FILE_BYTES,
    ImageSource,
    PlainSource,
    UnusableSource,
    describe,
    plain_source,
)
from ragvl.data.jpeg import check_scans
from ragvl.data.pixel_budget import PixelBudget
from ragvl.files import open_regular
from ragvl.forks import fork_safe
from ragvl.messages import reason, shown

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; PIL warns above the same figure
MAX_PIXELS_VARIABLE = "RAGVL_MAX_PIXELS"
MAX_ASPECT_RATIO = 200  # resizing the shorter side of a longer strip would make it enormous
# A larger picture is made smaller while it is read where a model keeps far less of it; a smaller
# one never, so that its scores are what they would be without
REDUCE_ABOVE = 2**25  # pixels
# A part of what caches are named by: another one wherever a picture's pixels may come out otherwise
DECODING = 2
# A picture's visible pixels lie on white, or on grey where they are on average so near to white, in
# their farthest channel, that little would be seen of them. Grey shows black outlines as well
_WHITE, _GREY = (255, 255, 255), (128, 128, 128)
_STANDS_OUT = 0.2  # of the way from white to black
_PROBE_SIDE = 2048  # pixels
_EMPTY = "it is empty (0 bytes)"
_METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where PIL keeps EXIF
_STRIP_PIXELS = 2**20  # are converted at a time, so that no second copy of a picture is needed

# Registering every decoder once, here, keeps threads from doing it at the same time later.
Image.init()
# Formats that are decoded in this process, where PIL or a plugin that the caller registered has a
# decoder (HEIF: pillow-heif). PIL also opens some (EPS) by starting a program.
FORMATS = tuple(
    ["AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "MPO", "PNG", "PPM", "TIFF", "WEBP"],
)

in_flight = PixelBudget(MAX_PIXELS)  # of this process
_lazy_image_lock = fork_safe(threading.Lock())


class DocumentError(ValueError):
    """A document that cannot be used; the message names it and says why."""


class ImageError(DocumentError):
    """A picture that cannot be used; the message names it and says why."""


def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that can be read now: plugins may be registered at any time."""
    return tuple(name for name in FORMATS if name in Image.OPEN)


def load_image(
    source: ImageSource,
    *,
    max_pixels: int | None = None,
    name: str | None = None,
    kept_pixels: Callable[[], int | None] | None = None,
) -> Image.Image:
    """The picture as a new 8-bit RGB image, turned as its EXIF orientation says.

    Of an animation the first frame is taken. What is transparent becomes white, or grey where the
    rest is so pale that it would hardly stand out. 16-bit and float pictures are scaled to 8 bits.
    Safe to call from several threads; PIL's global settings are
    left alone, and `source` is not changed.

    Args:
        source: see `plain_source`; of a PIL image the frame that it shows, and of an array the
            shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or floating in [0, 1].
        max_pixels: refuse larger pictures, by the size in the header, before decoding them; by
            default what the environment's RAGVL_MAX_PIXELS says, or else 89,478,485. PIL itself
            refuses those above twice its `Image.MAX_IMAGE_PIXELS`.
        name: what to call the picture in an error; by default its path or kind.
        kept_pixels: says how many pixels of a picture a model keeps, None for all. It is called
            for a picture of more than `REDUCE_ABOVE` pixels only, which then comes smaller, by a
            whole number: its shorter side stays twice that of a square of so many pixels.

    Raises:
        ImageError: the file is missing, empty, truncated, no regular file, too large, too long a
            strip, a JPEG of too many scans, or no picture; or the pixels have no size or no
            defined brightness.
        TypeError: `source` is none of what `plain_source` takes.
        ValueError: RAGVL_MAX_PIXELS is no number.
    """
    with decoded(source, max_pixels=max_pixels, name=name, kept_pixels=kept_pixels) as image:
        return image


@contextmanager
def decoded(
    source: ImageSource,
    *,
    max_pixels: int | None = None,
    name: str | None = None,
    kept_pixels: Callable[[], int | None] | None = None,
) -> Iterator[Image.Image]:
    """`load_image` for the time of a block, in which the picture counts as being worked on.

    Other threads wait while such pictures' pixels together are more than `MAX_PIXELS`.
    """
    picture = plain_source(source)
    limit = default_max_pixels() if max_pixels is None else max_pixels
    with ExitStack() as work:
        try:
            image = _decode(picture, limit, kept_pixels, work)
        except MemoryError:
            raise
        # Decoders raise whatever a malformed file trips: OSError, SyntaxError, struct.error, ...
        except Exception as error:
            label = name or describe(picture)
            raise ImageError(why_unusable(label, error)) from error
        yield image


def count_kept_pixels(prepare: Callable[[Image.Image], Mapping[str, Tensor]]) -> int | None:
    """How many pixels of a large picture a processor keeps, by a trial; None if about all.

    Args:
        prepare: the processor; of the tensors that it gives the floating ones hold pixels.
    """
    tensors = prepare(Image.new("RGB", (_PROBE_SIDE, _PROBE_SIDE))).values()
    kept = sum(x.numel() for x in tensors if x.is_floating_point()) // 3
    return kept if kept < _PROBE_SIDE**2 // 2 else None


def default_max_pixels() -> int:
    """How many pixels a picture may have where nothing else is said.

    Raises:
        ValueError: the environment's RAGVL_MAX_PIXELS is no whole number above 0.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE)
    if not text:
        return MAX_PIXELS
    if not (text.isascii() and text.isdigit()) or not int(text):
        raise ValueError(f"{MAX_PIXELS_VARIABLE}={shown(text)}: expected a number")
    return int(text)


def encoded_size(source: bytes | str | os.PathLike[str], *, name: str) -> tuple[int, int]:
    """Width and height of an encoded picture by its header, which is all that is read.

    Args:
        source: a file's bytes, or its path.
        name: what to call it in an error.

    Raises:
        ImageError: it is empty, or no picture, or there is no such file.
    """
    try:
        with _opened(source) as file:
            if not file.read(1):
                raise ValueError(_EMPTY)
            with Image.open(file, formats=formats()) as image:
                return image.size
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(why_unusable(name, error)) from error


def why_unusable(label: str, error: Exception) -> str:
    """The message of the `ImageError` about a picture that could not be read."""
    if isinstance(error, UnidentifiedImageError):
        return f"{label} is not a picture that can be read here ({', '.join(formats())})"
    if isinstance(error, FileNotFoundError):
        why = "there is no such file"
    elif isinstance(error, Image.DecompressionBombError):
        why = "it has more pixels than PIL allows (PIL.Image.MAX_IMAGE_PIXELS)"
    elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        why = "no file has so long a name; before base64 text put 'data:image/png;base64,'"
    elif isinstance(error, OSError) and error.strerror:  # `str` has the path once more
        why = shown(error.strerror)
    else:
        why = reason(error)
    return f"{label} cannot be used as a picture: {why}"


def _decode(
    picture: PlainSource,
    max_pixels: int,
    kept_pixels: Callable[[], int | None] | None,
    work: ExitStack,
) -> Image.Image:
    """The picture in RGB; its pixels count as being worked on until `work` ends."""

    def start(width: int, height: int) -> int | None:
        """Checks the size, waits until there is room, and says how long a side needs to be."""
        _check_size(width, height, max_pixels)
        work.enter_context(in_flight.hold(width * height))
        return _needed_side(width * height, kept_pixels)

    if isinstance(picture, UnusableSource):
        raise ValueError(picture.reason)
    if isinstance(picture, np.ndarray):
        return _from_array(picture, start)
    if isinstance(picture, Image.Image):
        return _from_pil(picture, start)
    with ExitStack() as opened:
        file = opened.enter_context(_opened(picture))
        if not file.read(1):
            raise ValueError(_EMPTY)
        image = opened.enter_context(Image.open(file, formats=formats()))
        side = start(*image.size)
        _check_lazy(image)
        if side is not None:
            factor = _factor(image.size, side)
            image.draft(None, (image.width // factor, image.height // factor))
        image.load()
        return _turned(_to_rgb(image, side), _orientation(image))


def _opened(source: bytes | str | os.PathLike[str]) -> BinaryIO:
    if isinstance(source, bytes):
        return BytesIO(source)
    return open_regular(source, max_bytes=MAX_FILE_BYTES)


Start = Callable[[int, int], int | None]


def _from_pil(source: Image.Image, start: Start) -> Image.Image:
    side = start(*source.size)
    # One that its file still backs is decoded on first use, and EXIF parsed, which two threads must
    # not do at once
    with _lazy_image_lock:
        if isinstance(source, ImageFile.ImageFile):
            _check_lazy(source)
        source.load()
        orientation = _orientation(source)
    rgb = _to_rgb(source, side)
    return _turned(rgb.copy() if rgb is source else rgb, orientation)


def _check_lazy(image: ImageFile.ImageFile) -> None:
    """Whether what is not decoded yet can be, in a reasonable time."""
    if not image.tile:  # decoded already
        return
    if image.fp is None:
        raise ValueError("its file was closed before it was read")
    if image.format in ("JPEG", "MPO"):
        check_scans(cast(BinaryIO, image.fp))


def _from_array(source: np.ndarray, start: Start) -> Image.Image:
    channels = source.shape[2] if source.ndim == 3 else 1
    if source.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError("expected the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    side = start(source.shape[1], source.shape[0])
    if source.dtype != np.uint8 and not np.issubdtype(source.dtype, np.floating):
        raise ValueError("expected the dtype uint8, or floating in [0, 1]")
    if source.ndim == 3 and channels == 1:
        source = source[:, :, 0]

    def strip(top: int, bottom: int) -> Image.Image:
        rows = source[top:bottom]
        return Image.fromarray(rows if rows.dtype == np.uint8 else _from_unit_interval(rows))

    return _assembled(strip, (source.shape[1], source.shape[0]), side)


def _to_rgb(image: Image.Image, side: int | None) -> Image.Image:
    """In RGB; `image` itself if it is that already."""
    is_rgb = image.mode == "RGB" and not image.has_transparency_data
    if is_rgb and _factor(image.size, side) == 1:
        return image

    def strip(top: int, bottom: int) -> Image.Image:
        is_whole = (top, bottom) == (0, image.height)
        return image if is_whole else image.crop((0, top, image.width, bottom))

    return _assembled(strip, image.size, side)


def _assembled(
    strip: Callable[[int, int], Image.Image], size: tuple[int, int], side: int | None
) -> Image.Image:
    """A picture in RGB from its rows `top` to `bottom`, which are converted part by part.

    Its shorter side becomes no shorter than `side`.
    """
    width, height = size
    factor = _factor(size, side)
    rows = max(1, _STRIP_PIXELS // (width * factor)) * factor
    tops = range(0, height, rows)

    def part(top: int) -> Image.Image:
        return strip(top, min(top + rows, height))

    ground = _ground(map(part, tops))
    if len(tops) == 1:
        return _reduced(_strip_to_rgb(part(0), ground), factor)
    whole = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in tops:
        whole.paste(_reduced(_strip_to_rgb(part(top), ground), factor), (0, top // factor))
    return whole


def _ground(parts: Iterable[Image.Image]) -> tuple[int, int, int]:
    """The color to lay a picture on by its visible pixels, those seen in part counted in part."""
    seen = away = 0
    for part in parts:
        if not part.has_transparency_data:  # nor has any other
            return _WHITE
        pixels = np.asarray(_eight_bit(part).convert("RGBA"))
        alpha = pixels[:, :, 3].astype(np.uint32)
        seen += int(alpha.sum(dtype=np.uint64))
        away += int((alpha * (255 - pixels[:, :, :3].min(axis=2))).sum(dtype=np.uint64))
    return _GREY if away < _STANDS_OUT * 255 * seen else _WHITE


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    return image if factor == 1 else image.reduce(factor)


def _needed_side(pixels: int, kept_pixels: Callable[[], int | None] | None) -> int | None:
    """How long a picture's shorter side has to stay; None if it may not be made smaller."""
    if kept_pixels is None or pixels <= REDUCE_ABOVE:
        return None
    try:
        kept = kept_pixels()
    except MemoryError:
        raise
    except Exception:  # a processor that fails will say so of the picture itself
        return None
    return None if kept is None else 2 * (math.isqrt(kept) + 1)


def _factor(size: tuple[int, int], side: int | None) -> int:
    return 1 if side is None else max(1, min(size) // side)


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # nobody can read it, and who shows the picture shows it as it is
        return 1


def _turned(rgb: Image.Image, orientation: Any) -> Image.Image:
    """Done last, since a picture that was made smaller turns sooner."""
    # PIL would write these anew without the orientation, and fail where anything else is odd
    for name in _METADATA:
        rgb.info.pop(name, None)
    rgb.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def _strip_to_rgb(image: Image.Image, ground: tuple[int, int, int]) -> Image.Image:
    image = _eight_bit(image)
    if image.has_transparency_data:
        under = Image.new("RGBA", image.size, ground)
        image = Image.alpha_composite(under, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """In a mode that PIL converts to RGB and RGBA."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode == "F":
        return Image.fromarray(_from_unit_interval(np.asarray(image)))
    return image.convert("LA") if image.mode == "La" else image  # premultiplied


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scaled to 8 bits; PIL's own conversion clips at 255, which turns most pictures white."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ValueError(f"its pixels span {low}..{high}; at most 16 bits (0..65535) are read")
    scaled = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))  # rounded
    if (transparent := image.info.get("transparency")) is not None:
        scaled.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return scaled


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
            f"it is {width}x{height}, above the limit of {max_pixels:,} pixels; allow more with "
            f"Document(..., max_pixels=...) or {MAX_PIXELS_VARIABLE} in the environment"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"it is {width}x{height}; one side may be at most {MAX_ASPECT_RATIO} times the other"
        )
