from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile, PngImagePlugin

from ragvl.data import images
from ragvl.data.document import Document
from ragvl.data.images import ImageError, formats, load_image
from ragvl.data.jpeg import check_scans
from ragvl.data.picture import Picture
from ragvl.data.pixel_budget import PixelBudget
from ragvl.data.sources import Documents

RAMP = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17  # 0, 17, ..., 255


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(source, **options) -> np.ndarray:
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[:, :, None], 3, axis=2)


def photo(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Red above, blue below, so that a wrong turn or a wrong colour shows."""
    image = Image.new("RGB", size, (200, 30, 30))
    image.paste((30, 30, 200), (0, size[1] // 2, *size))
    return image


class TestSources:
    def test_path_string_bytes_and_image_agree(self, tmp_path):
        path = tmp_path / "photo.png"
        photo().save(path)
        for source in (path, str(path), path.read_bytes(), photo()):
            np.testing.assert_array_equal(pixels(source), np.asarray(photo()))

    @pytest.mark.parametrize("format", [f for f in formats() if f != "MPO"])
    def test_every_format(self, format):
        # JPEG and the like are lossy: within a few grey levels away from the edge
        result = pixels(encoded(photo(), format))
        assert np.abs(result[:8].astype(int) - (200, 30, 30)).max() < 12
        assert np.abs(result[-8:].astype(int) - (30, 30, 200)).max() < 12

    @pytest.mark.parametrize("source", [None, 3, ["a.png"], {"image": "a.png"}, {}])
    def test_other_types_are_refused(self, source):
        with pytest.raises(TypeError, match=type(source).__name__):
            load_image(source)

    def test_callers_image_is_left_alone(self):
        image = photo()
        result = load_image(image)
        result.putpixel((0, 0), (1, 2, 3))
        assert image.getpixel((0, 0)) == (200, 30, 30)


class TestModes:
    def test_cmyk_jpeg(self):
        result = pixels(encoded(photo().convert("CMYK"), "JPEG", quality=95))
        assert np.abs(result[:8].astype(int) - (200, 30, 30)).max() < 12
        assert np.abs(result[-8:].astype(int) - (30, 30, 200)).max() < 12

    def test_palette(self):
        result = pixels(encoded(photo().quantize(4), "PNG"))
        np.testing.assert_array_equal(result, np.asarray(photo()))

    def test_palette_with_a_transparent_entry_is_white_there(self):
        image = photo().quantize(2)
        index = image.getpixel((0, 0))
        result = pixels(encoded(image, "PNG", transparency=index))
        assert (result[:16] == 255).all()
        assert (result[16:] == (30, 30, 200)).all()

    def test_palette_with_graded_transparency(self):
        image = Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.putpixel((1, 0), 1)
        result = pixels(encoded(image, "PNG", transparency=bytes([0, 128])))
        np.testing.assert_array_equal(result[0], [[255, 255, 255], [255, 127, 127]])

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
    def test_alpha_is_laid_on_white(self, mode):
        image = Image.new("RGBA" if mode.startswith("RGB") else "LA", (2, 1))
        image.putalpha(Image.fromarray(np.uint8([[0, 255]])))  # clear black, opaque black
        if mode == "PA":  # converting to it would drop the alpha
            palette = Image.new("PA", (2, 1))
            palette.putalpha(image.getchannel("A"))
            image = palette
        np.testing.assert_array_equal(pixels(image.convert(mode)), grey([[255, 0]]))

    @pytest.mark.parametrize(("mode", "key"), [("RGB", (200, 30, 30)), ("L", 85)])
    def test_colour_key_is_white(self, mode, key):
        image = photo().convert(mode)
        image.putpixel((0, 0), key)
        result = pixels(encoded(image, "PNG", transparency=key))
        assert (result[0, 0] == 255).all()
        assert (result[-1, -1] != 255).any()

    @pytest.mark.parametrize(
        "given_as",
        [np.asarray, Image.fromarray, lambda array: encoded(Image.fromarray(array), "PNG")],
        ids=["array", "image", "file"],
    )
    @pytest.mark.parametrize(
        ("shade", "ground"),
        [((255, 255, 255), 128), ((225, 240, 255), 128), ((255, 255, 0), 255), ((0, 0, 0), 255)],
    )
    def test_pale_things_lie_on_grey_so_that_they_are_seen(self, given_as, shade, ground):
        pixels_in = np.zeros((20, 30, 4), np.uint8)  # clear black
        pixels_in[5:15, 5:25] = (*shade, 255)
        result = pixels(given_as(pixels_in))
        assert (result[5:15, 5:25] == shade).all()
        assert (result[:5] == ground).all()

    def test_a_dark_outline_is_not_enough_and_half_of_the_picture_is(self):
        for dark, ground in ((1, 128), (10, 255)):  # rows of 20
            pixels_in = np.full((30, 30, 4), 255, np.uint8)
            pixels_in[20:] = 0
            pixels_in[:dark, :, :3] = 0
            assert (pixels(pixels_in)[20:] == ground).all()

    def test_what_is_seen_in_part_counts_in_part(self):
        # Faint black all over, with white things in it: white by what is seen
        pixels_in = np.zeros((10, 10, 4), np.uint8)
        pixels_in[..., 3] = 10
        pixels_in[:5] = 255
        assert (pixels(pixels_in)[:5] == 255).all()
        assert (pixels(pixels_in)[5:] == pixels(pixels_in)[9, 9]).all()
        assert pixels(pixels_in)[9, 9, 0] < 128

    def test_a_clear_picture_is_white(self):
        assert (pixels(np.zeros((4, 4, 4), np.uint8)) == 255).all()

    def test_one_ground_lies_under_all_of_a_large_picture(self):
        # Each strip for itself would choose another: the upper half is white, the lower one black
        pixels_in = np.zeros((2100, 1000, 4), np.uint8)
        pixels_in[:1050, 100:] = 255
        pixels_in[1050:, 100:, 3] = 255
        assert (pixels(pixels_in)[:, :100] == 255).all()
        pixels_in[1060:] = 0  # now almost all that is seen is white
        assert (pixels(pixels_in)[:, :100] == 128).all()

    def test_a_16_bit_color_key(self):
        image = Image.fromarray(np.array([[65535, 7, 65000]], np.uint16))
        result = pixels(encoded(image, "PNG", transparency=7))
        np.testing.assert_array_equal(result[0, :, 0], [255, 128, 253])

    def test_one_bit(self):
        image = Image.fromarray(RAMP > 127)
        assert image.mode == "1"
        np.testing.assert_array_equal(pixels(encoded(image, "PNG")), grey((RAMP > 127) * 255))

    @pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
    def test_16_bit_keeps_its_brightness(self, format):
        # 257 * v is the 16-bit value of the same brightness as the 8-bit v
        image = Image.fromarray(RAMP.astype(np.uint16) * 257)
        np.testing.assert_array_equal(pixels(encoded(image, format)), grey(RAMP))

    def test_16_bit_rounds_to_the_nearest(self):
        values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        expected = np.rint(values.astype(np.float64) / 257)
        np.testing.assert_array_equal(pixels(Image.fromarray(values)), grey(expected))

    def test_16_bit_big_endian_tiff(self):
        image = Image.frombytes("I;16B", (4, 4), (RAMP.astype(">u2") * 257).tobytes())
        np.testing.assert_array_equal(pixels(encoded(image, "TIFF")), grey(RAMP))

    def test_16_bit_colour_key_is_white(self):
        image = Image.fromarray(RAMP.astype(np.uint16) * 257)
        result = pixels(encoded(image, "PNG", transparency=17 * 257))
        np.testing.assert_array_equal(result, grey(np.where(RAMP == 17, 255, RAMP)))

    def test_32_bit_integers_within_16_bits(self):
        image = Image.fromarray(RAMP.astype(np.int32) * 257)
        assert image.mode == "I"
        np.testing.assert_array_equal(pixels(image), grey(RAMP))

    @pytest.mark.parametrize("value", [-1, 65536])
    def test_32_bit_integers_without_a_defined_brightness(self, value):
        with pytest.raises(ImageError, match="16 bits"):
            load_image(Image.fromarray(np.full((2, 2), value, np.int32)))

    def test_float_tiff(self):
        image = Image.fromarray(RAMP.astype(np.float32) / 255)
        np.testing.assert_array_equal(pixels(encoded(image, "TIFF")), grey(RAMP))

    @pytest.mark.parametrize(("mode", "tolerance"), [("YCbCr", 2), ("HSV", 2), ("LAB", 16)])
    def test_other_colour_spaces(self, mode, tolerance):
        # LAB in 8 bits is coarse, and out of sRGB's gamut here: measured 13 levels
        result = pixels(photo().convert(mode))
        assert np.abs(result.astype(int) - np.asarray(photo())).max() <= tolerance

    def test_a_closed_image_is_an_image_error(self, tmp_path):
        path = tmp_path / "photo.png"
        photo().save(path)
        with Image.open(path) as image:
            pass
        with pytest.raises(ImageError, match=r"a PIL image.*its file was closed"):
            load_image(image)
        image = photo()
        image.close()
        with pytest.raises(ImageError, match="closed"):
            load_image(image)


class TestAnimations:
    @pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_first_frame(self, format):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        with Image.open(io.BytesIO(data)) as image:
            assert image.n_frames == 3
        assert (pixels(data) == (255, 0, 0)).all()

    def test_callers_image_stays_at_its_frame(self):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        with Image.open(io.BytesIO(data)) as image:
            image.seek(2)
            assert (pixels(image) == (0, 0, 255)).all()
            assert image.tell() == 2


class TestOrientation:
    # what undoes each orientation, written with numpy; PIL's own table is what is tested
    UPRIGHT: ClassVar = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("format", ["PNG", "TIFF"])
    def test_all_eight(self, orientation, format):
        stored = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(Image.fromarray(stored), format, exif=exif)
        np.testing.assert_array_equal(pixels(data), self.UPRIGHT[orientation](stored))

    def test_jpeg(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # stored on its side: turn it clockwise
        image = load_image(encoded(photo(), "JPEG", exif=exif))
        assert image.size == (32, 48)
        red, blue = image.getpixel((28, 24)), image.getpixel((3, 24))
        assert red[0] > 150 > red[2]
        assert blue[2] > 150 > blue[0]

    def test_what_is_odd_in_exif_beside_the_orientation_does_not_cost_the_picture(self):
        """PIL cannot write such a tag anew."""
        entries = [(0x0112, 3, 1, 6), (0x010E, 11, 1, 0)]  # a float for a description
        exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
        exif += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
        assert load_image(encoded(photo((60, 40)), "JPEG", exif=exif)).size == (40, 60)

    def test_exif_that_cannot_be_read_does_not_cost_the_picture(self):
        profile = PngImagePlugin.PngInfo()
        profile.add_text("Raw profile type exif", "\nexif\n  8\nno digits")
        assert load_image(encoded(photo((60, 40)), "PNG", pnginfo=profile)).size == (60, 40)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    def test_garbled_exif_does_not_cost_the_picture(self):
        data = encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage")
        assert load_image(data).size == (48, 32)


class TestBadFiles:
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"])
    def test_truncated(self, format, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        data = encoded(Image.fromarray(noise), format)
        path = tmp_path / "cut.img"
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageError, match=r"cut\.img"):
            load_image(path)

    def test_empty_file_and_empty_bytes(self, tmp_path):
        path = tmp_path / "empty.png"
        path.touch()
        for source in (path, b""):
            with pytest.raises(ImageError, match="0 bytes"):
                load_image(source)

    def test_text_named_png(self, tmp_path):
        path = tmp_path / "notes.png"
        path.write_text("not a picture")
        with pytest.raises(ImageError, match=r"notes\.png.*not a picture"):
            load_image(path)

    def test_missing_file(self, tmp_path):
        with pytest.raises(ImageError, match=r"gone\.png.*no such file"):
            load_image(tmp_path / "gone.png")

    def test_what_is_no_file_is_refused_at_once(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "socket"))
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "socket", "/dev/zero"):
            for call in (Document(path).load, Document(path).digest):
                with pytest.raises(ImageError, match="not a file"):
                    call()

    def test_a_file_of_200_gigabytes_is_not_read(self, tmp_path):
        path = tmp_path / "sparse.png"
        path.write_bytes(encoded(photo(), "PNG"))
        os.truncate(path, 200 * 10**9)
        for call in (Document(path).load, Document(path).digest):
            with pytest.raises(ImageError, match="200,000,000,000 bytes"):
                call()

    def test_formats_that_start_a_program_are_not_opened(self):
        data = encoded(photo(), "EPS")
        with pytest.raises(ImageError, match="not a picture"):
            load_image(data)

    def test_name_is_used(self, tmp_path):
        with pytest.raises(ImageError, match=r"^document 'x' cannot"):
            load_image(tmp_path / "gone.png", name="document 'x'")

    @pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
    @settings(max_examples=300)
    @given(data=st.data())
    def test_damaged_bytes_give_a_picture_or_an_image_error(self, data):
        format = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]))
        damaged = bytearray(encoded(photo(), format))
        places = st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255))
        for place, value in data.draw(st.lists(places, min_size=1, max_size=8)):
            damaged[place] = value
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
        try:
            image = load_image(bytes(damaged), max_pixels=10**6)
        except ImageError:
            return
        assert image.mode == "RGB"
        assert min(image.size) > 0


class TestPixelLimit:
    @staticmethod
    def bomb(width: int, height: int) -> bytes:
        """A PNG whose header claims the size, with next to no data behind it."""

        def chunk(kind: bytes, body: bytes) -> bytes:
            checksum = struct.pack(">I", zlib.crc32(kind + body))
            return struct.pack(">I", len(body)) + kind + body + checksum

        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        data = chunk(b"IDAT", zlib.compress(b"\0" * 64))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")

    def test_header_alone_is_enough_to_refuse(self):
        for size in ((100_000, 100_000), (2**31 - 1, 2**31 - 1)):
            with pytest.raises(ImageError, match="pixels"):
                load_image(self.bomb(*size))

    def test_our_limit_is_checked_before_decoding(self):
        with pytest.raises(ImageError, match=r"5000x5000.*1,000 pixels"):
            load_image(self.bomb(5000, 5000), max_pixels=1000)

    def test_limit_is_inclusive_and_holds_for_every_source(self):
        image = photo((10, 10))
        for source in (image, np.asarray(image), encoded(image, "PNG")):
            assert load_image(source, max_pixels=100).size == (10, 10)
            with pytest.raises(ImageError, match="10x10"):
                load_image(source, max_pixels=99)

    def test_the_limit_can_be_set_and_the_message_says_how(self, monkeypatch):
        data = encoded(photo((10, 10)), "PNG")
        monkeypatch.setenv("RAGVL_MAX_PIXELS", "99")
        for load in (Document(data).load, Document(np.zeros((10, 10), np.uint8)).digest):
            with pytest.raises(ImageError, match=r"99 pixels.*max_pixels=.*RAGVL_MAX_PIXELS"):
                load()
        assert Document(data, max_pixels=100).load().size == (10, 10)
        assert load_image(data, max_pixels=100).size == (10, 10)
        monkeypatch.setenv("RAGVL_MAX_PIXELS", "many")
        with pytest.raises(ValueError, match="RAGVL_MAX_PIXELS=many: expected a number") as error:
            load_image(data)
        assert not isinstance(error.value, ImageError)  # it is not the picture's fault
        with pytest.raises(ValueError, match="max_pixels=0"):
            Document(data, max_pixels=0)

    def test_pils_own_limit_is_named(self):
        with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
            load_image(self.bomb(100_000, 100_000), max_pixels=10**11)


class TestLargePictures:
    """Made smaller while they are read, where a model keeps far less of them."""

    @pytest.fixture(autouse=True)
    def _small_is_large(self, monkeypatch):
        monkeypatch.setattr(images, "REDUCE_ABOVE", 999)
        monkeypatch.setattr(images, "_STRIP_PIXELS", 1000)

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("size", [(171, 100), (100, 171), (101, 2003)])
    def test_the_shorter_side_stays_twice_what_is_kept(self, format, size):
        image = load_image(encoded(photo(size), format), kept_pixels=lambda: 400)
        assert 40 <= min(image.size) < 80
        assert max(image.size) / min(image.size) == pytest.approx(max(size) / min(size), rel=0.05)
        result = np.asarray(image).astype(int)
        assert np.abs(result[:8] - (200, 30, 30)).max() < 12
        assert np.abs(result[-8:] - (30, 30, 200)).max() < 12

    def test_it_is_an_average_and_of_a_part_at_a_time(self):
        stored = np.random.default_rng(0).integers(0, 256, (90, 61, 4), dtype=np.uint8)
        for source in (stored, Image.fromarray(stored), encoded(Image.fromarray(stored), "PNG")):
            result = load_image(source, kept_pixels=lambda: 99)
            np.testing.assert_array_equal(
                np.asarray(result), np.asarray(load_image(stored).reduce(3))
            )

    @pytest.mark.parametrize("kept", [None, 10_000])
    def test_nothing_is_lost_where_the_model_keeps_it(self, kept):
        noise = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        np.testing.assert_array_equal(pixels(noise, kept_pixels=lambda: kept), noise)

    def test_smaller_pictures_stay_as_they_are(self, monkeypatch):
        monkeypatch.setattr(images, "REDUCE_ABOVE", 3000)

        def fail():
            raise AssertionError("asked for")

        noise = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        np.testing.assert_array_equal(pixels(noise, kept_pixels=fail), noise)

    def test_a_turned_picture_is_made_smaller_too(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        image = load_image(encoded(photo((200, 100)), "JPEG", exif=exif), kept_pixels=lambda: 400)
        assert image.size == (50, 100)

    @pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "1"])
    def test_parts_are_what_the_whole_is(self, mode, monkeypatch):
        noise = np.random.default_rng(0).integers(0, 256, (70, 60, 4), dtype=np.uint8)
        image = {
            "I;16": lambda: Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257),
            "F": lambda: Image.fromarray(noise[:, :, 0].astype(np.float32) / 255),
            "P": lambda: Image.fromarray(noise).convert("RGB").quantize(16),
        }.get(mode, lambda: Image.fromarray(noise).convert(mode))()
        if mode == "P":
            image.info["transparency"] = 3
        in_parts = pixels(image)
        monkeypatch.setattr(images, "_STRIP_PIXELS", 10**6)
        np.testing.assert_array_equal(in_parts, pixels(image))

    @pytest.mark.slow
    def test_little_more_memory_than_the_picture_itself(self):
        """One of 16 million pixels in a file of 70 kB; what it takes over its own 64 MiB."""
        code = (
            "import io, resource, sys\n"
            "from PIL import Image\n"
            "from ragvl.data.images import load_image\n"
            "data = io.BytesIO()\n"
            "Image.new('RGBA', (64, 64)).save(data, 'PNG')\n"
            "load_image(data.getvalue())\n"
            "data = io.BytesIO()\n"
            "Image.new('RGBA', (4096, 4096), (9, 9, 9, 0)).save(data, 'PNG')\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "image = load_image(data.getvalue())\n"
            "assert image.getpixel((4095, 4095)) == (255, 255, 255)\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        # What made the file left 64 MiB free; a second copy in RGB takes as much again
        assert int(done.stdout) < 96

    def test_pictures_in_threads_are_decoded_within_the_budget(self, monkeypatch):
        budget = PixelBudget(100 * 100)
        monkeypatch.setattr(images, "in_flight", budget)
        data = encoded(photo((100, 100)), "PNG")
        used = []

        def work(_):
            with Picture(data, "it").decoded():
                used.append(budget.used)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(20)))
        assert used == [100 * 100] * 20
        assert budget.used == 0


class TestScans:
    """A scan of a progressive JPEG may be empty, and costs as much time as one that is not."""

    @staticmethod
    def bomb(scans: int) -> bytes:
        data = encoded(Image.new("L", (64, 64), 90), "JPEG", progressive=True)
        end = data.rindex(b"\xff\xd9")
        # One code, "the next 16,384 blocks or more stay as they are", and scans of it alone
        table = b"\xff\xc4" + struct.pack(">H", 20) + bytes([0x13, 1, *[0] * 15, 0xE0])
        scan = b"\xff\xda" + struct.pack(">H", 8) + bytes([1, 1, 3, 1, 63, 0]) + b"\x7f\x7f"
        return data[:end] + table + scan * scans + data[end:]

    def test_too_many_are_refused_before_decoding(self, tmp_path):
        path = tmp_path / "scans.jpg"
        path.write_bytes(self.bomb(2000))
        with Image.open(path) as opened:
            for source in (path, path.read_bytes(), opened):
                with pytest.raises(ImageError, match=r"more than 1,024 scans"):
                    load_image(source)

    @pytest.mark.filterwarnings("ignore")
    def test_some_are_read(self):
        assert (pixels(self.bomb(50)) == 90).all()

    def test_what_only_looks_like_scans_is_none(self):
        data = encoded(photo(), "JPEG")
        marks = b"\xff\xda" * 30_000
        comment = b"\xff\xfe" + struct.pack(">H", len(marks) + 2) + marks
        for disguised in (data[:2] + comment * 20 + data[2:], data + marks):
            np.testing.assert_array_equal(pixels(disguised), pixels(data))

    @given(st.binary(max_size=200), st.integers(0, 30))
    def test_any_bytes_can_be_counted(self, noise, repeats):
        file = io.BytesIO(b"\xff\xd8" + noise + b"\xff\xda\0\2" * repeats * 100)
        with contextlib.suppress(ValueError):
            check_scans(file)
        assert file.tell() == 0


class HeifFile(ImageFile.ImageFile):
    """As a plugin such as pillow-heif registers its own, but of one grey level."""

    format = "HEIF"

    def _open(self):
        self._mode, self._size = "L", (4, 4)
        self.tile = [("raw", (0, 0, 4, 4), 12, "L")]


class TestPlugins:
    def test_heif_is_read_where_the_caller_registered_a_decoder(self, tmp_path, monkeypatch):
        for name in ("OPEN", "EXTENSION"):
            monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
        monkeypatch.setattr(Image, "ID", list(Image.ID))
        path = tmp_path / "photo.heic"
        path.write_bytes(b"\0\0\0\x0cftypheic" + RAMP.tobytes())
        with pytest.raises(ImageError, match=r"photo\.heic.*not a picture that can be read here"):
            load_image(path)
        Image.register_open("HEIF", HeifFile, lambda start: start[4:12] == b"ftypheic")
        Image.register_extension("HEIF", ".heic")
        np.testing.assert_array_equal(pixels(path), grey(RAMP))
        (document,) = Documents(tmp_path)
        assert document.id == "photo.heic"

    def test_pillow_heif(self):
        plugin = pytest.importorskip("pillow_heif")
        plugin.register_heif_opener()
        assert pixels(encoded(photo(), "HEIF")).shape == (32, 48, 3)


class TestAspectRatio:
    # CLIP resizes the shorter side to 224: a 1 x 1,000,000 picture would become gigabytes
    def test_limit_is_inclusive(self):
        assert load_image(np.zeros((1, 200), np.uint8)).size == (200, 1)
        for shape in ((1, 201), (201, 1)):
            with pytest.raises(ImageError, match="200 times"):
                load_image(np.zeros(shape, np.uint8))


class TestArrays:
    @pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1)])
    def test_grey(self, shape):
        np.testing.assert_array_equal(pixels(RAMP.reshape(shape)), grey(RAMP))

    @given(
        hnp.arrays(
            np.uint8,
            st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)),
        )
    )
    def test_rgb_comes_back_as_it_is(self, array):
        np.testing.assert_array_equal(pixels(array), array)
        np.testing.assert_array_equal(pixels(array[::-1]), array[::-1])  # not contiguous

    def test_rgba_is_laid_on_white(self):
        np.testing.assert_array_equal(pixels(np.zeros((2, 2, 4), np.uint8)), grey([[255] * 2] * 2))

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_float(self, dtype):
        np.testing.assert_array_equal(pixels((RAMP / 255).astype(dtype)), grey(RAMP))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -0.01, 1.01, 200.0])
    def test_float_outside_the_unit_interval(self, value):
        array = np.full((2, 2), 0.5)
        array[0, 0] = value
        with pytest.raises(ImageError, match=r"\[0, 1\]"):
            load_image(array)

    @pytest.mark.parametrize("shape", [(), (4,), (3, 4, 5), (4, 4, 2), (1, 4, 4, 3)])
    def test_other_shapes(self, shape):
        with pytest.raises(ImageError, match=r"expected the shape"):
            load_image(np.zeros(shape, np.uint8))

    @pytest.mark.parametrize("dtype", [np.uint16, np.int64, bool, complex, object])
    def test_other_dtypes(self, dtype):
        with pytest.raises(ImageError, match="expected the dtype"):
            load_image(np.zeros((2, 2), dtype))

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0, 3)])
    def test_no_pixels(self, shape):
        with pytest.raises(ImageError, match="no pixels"):
            load_image(np.zeros(shape, np.uint8))


def test_no_pixels_in_a_pil_image():
    with pytest.raises(ImageError, match="no pixels"):
        load_image(Image.new("RGB", (0, 5)))


class TestThreads:
    def test_many_threads_agree_and_pil_settings_stay(self, tmp_path):
        before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        path = tmp_path / "noise.png"
        Image.fromarray(noise).save(path)
        broken = path.read_bytes()[:500]

        def load(i: int) -> bool:
            if i % 3 == 0:
                with pytest.raises(ImageError):
                    load_image(broken)
                return True
            return bool((pixels(path) == noise).all())

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(load, range(200)))
        assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)

    def test_one_lazily_opened_image_shared_by_threads(self):
        noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        data = encoded(Image.fromarray(noise), "PNG")
        with ThreadPoolExecutor(8) as pool:
            for _ in range(10):
                with Image.open(io.BytesIO(data)) as shared:
                    results = list(pool.map(pixels, [shared] * 8))
                assert all((result == noise).all() for result in results)
