import io
import struct
import zlib

import numpy as np
import pytest
from diffstride_experiments.data.image_files import (
    image_suffixes,
    read_image,
    read_image_and_frames,
)
from PIL import Image, ImageOps

RED, GREEN, WHITE = (200, 30, 30), (20, 180, 60), (255, 255, 255)


def smooth(width=12, height=8):
    corners = np.random.default_rng(0).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def png(path, width, height, depth, colour, rows, transparent=None):
    """Write a PNG of a bit depth that Pillow does not write; rows are bytes."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    if transparent is not None:
        parts.append(chunk(b"tRNS", transparent))
    parts.append(chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))))
    path.write_bytes(b"".join([*parts, chunk(b"IEND", b"")]))
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(10))
def test_image_is_turned_as_it_is_shown(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    smooth().save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as stored:
        shown = ImageOps.exif_transpose(stored).convert("RGB")
    found = read_image(path)
    assert found.size == ((8, 12) if 5 <= orientation <= 8 else (12, 8))
    np.testing.assert_array_equal(np.array(found), np.array(shown))


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0no tags", b"Exif\0\0II*\0\xff\xff\0\0"]
)
def test_damaged_tags_leave_the_image_as_it_is(tmp_path, exif):
    path = tmp_path / "a.png"
    smooth().save(path, exif=exif)
    np.testing.assert_array_equal(np.array(read_image(path)), np.array(smooth()))


def on_white(colour, alpha):
    return np.rint(np.array(WHITE) + (np.array(colour) - WHITE) * alpha)


@pytest.mark.parametrize("alpha", [0, 128])
@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "tga", "ico"])
def test_alpha_channel_is_laid_on_white(tmp_path, suffix, alpha):
    pixels = np.array([[[*RED, alpha], [*RED, 255]]], np.uint8).repeat(16, 0).repeat(8, 1)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    found = np.array(read_image(path))
    np.testing.assert_allclose(found[0, [0, -1]], [on_white(RED, alpha / 255), RED], atol=1)


def test_grey_with_alpha_is_laid_on_white(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[[30, 0], [30, 255]]], np.uint8), "LA").save(path)
    assert np.array(read_image(path))[0].tolist() == [[255] * 3, [30] * 3]


@pytest.mark.parametrize(
    ("suffix", "transparency", "alpha"),
    [
        ("gif", 0, 0),
        ("png", 0, 0),
        ("png", bytes([0, 255]), 0),
        ("png", bytes([128, 255]), 128 / 255),
    ],
)
def test_transparent_colours_of_a_palette_are_laid_on_white(tmp_path, suffix, transparency, alpha):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([*RED, *GREEN])
    path = tmp_path / f"a.{suffix}"
    image.save(path, transparency=transparency)
    found = np.array(read_image(path))[0]
    np.testing.assert_allclose(found, [on_white(RED, alpha), GREEN], atol=1)


@pytest.mark.parametrize(
    ("depth", "pixels", "key", "shown"),
    [
        (1, b"\x40", 0, [255, 255]),
        (1, b"\x40", 1, [0, 255]),
        (2, b"\x60", 1, [255, 170]),
        (4, b"\x5a", 10, [85, 255]),
        (8, b"\x05\x0a", 5, [255, 10]),
    ],
)
def test_transparent_grey_of_any_depth_is_laid_on_white(tmp_path, depth, pixels, key, shown):
    path = png(tmp_path / "a.png", 2, 1, depth, 0, [pixels], struct.pack(">H", key))
    assert np.array(read_image(path))[0, :, 0].tolist() == shown


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_is_laid_on_white(tmp_path, depth):
    scale, kind = (1, ">u1") if depth == 8 else (257, ">u2")
    row = (np.array([RED, GREEN]) * scale).astype(kind).tobytes()
    key = (np.array(RED) * scale).astype(">u2").tobytes()
    path = png(tmp_path / "a.png", 2, 1, depth, 2, [row], key)
    assert np.array(read_image(path))[0].tolist() == [[*WHITE], [*GREEN]]


def test_alpha_of_16_bits_is_laid_on_white(tmp_path):
    row = (np.array([[*RED, 0], [*RED, 255]]) * 257).astype(">u2").tobytes()
    path = png(tmp_path / "a.png", 2, 1, 16, 6, [row])
    assert np.array(read_image(path))[0].tolist() == [[*WHITE], [*RED]]


GREY = np.array([[0, 1], [1000, 40_000], [65_535, 5]])


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("png", "u2"), ("pgm", "u2"), ("tif", "<u2"), ("tif", ">u2"), ("jp2", "u2")],
)
def test_grey_of_16_bits_keeps_the_upper_8_as_colours_do(tmp_path, suffix, kind):
    path = tmp_path / f"a.{suffix}"
    mode = "I;16B" if kind == ">u2" else "I;16"
    Image.frombytes(mode, (2, 3), GREY.astype(kind).tobytes()).save(path)
    np.testing.assert_array_equal(np.array(read_image(path)), np.stack([GREY >> 8] * 3, -1))


def test_grey_of_16_bits_is_inverted_turned_and_laid_on_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.fromarray(GREY.astype(np.uint16))
    image.save(tmp_path / "a.png", transparency=1, exif=exif)
    shown = np.array([[0, 255], [3, 156], [255, 0]])
    np.testing.assert_array_equal(
        np.array(read_image(tmp_path / "a.png"))[..., 0], shown[::-1, ::-1]
    )
    image.save(tmp_path / "a.tif", tiffinfo={262: 0, 274: 3})
    inverted = 255 - (GREY >> 8)
    np.testing.assert_array_equal(
        np.array(read_image(tmp_path / "a.tif"))[..., 0], inverted[::-1, ::-1]
    )


def test_grey_of_12_bits_is_scaled(tmp_path):
    pixels = bytes([0xFF, 0xF8, 0x00])  # 4095 and 2048
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(pixels)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    header = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels
    path = tmp_path / "a.tif"
    path.write_bytes(header + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4))
    assert np.array(read_image(path))[0, :, 0].tolist() == [255, 128]


def test_transparent_image_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[[*RED, 0], [*RED, 255]]], np.uint8)).save(path, exif=exif)
    assert np.array(read_image(path))[:, 0].tolist() == [[*WHITE], [*RED]]


@pytest.mark.parametrize(
    "suffix",
    ["png", "jpg", "jfif", "gif", "bmp", "webp", "tif", "avif", "jp2", "ppm", "tga", "ico"],
)
def test_format_is_known_and_its_files_are_unreadable_where_cut_off(tmp_path, suffix):
    assert f".{suffix}" in image_suffixes()
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(path)
    assert read_image(path).size == (32, 32)
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises((OSError, ValueError, SyntaxError)):
            read_image(path)


@pytest.mark.parametrize("suffix", ["gif", "png", "tiff", "webp"])
def test_first_frame_is_used_and_frames_are_counted(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
    image, count = read_image_and_frames(path)
    assert count == 2
    assert image.getpixel((0, 0)) == RED
    assert read_image(path).getpixel((0, 0)) == RED


def test_no_other_program_is_asked(tmp_path):
    path = tmp_path / "a.png"
    content = io.BytesIO()
    smooth().save(content, "EPS")
    path.write_bytes(content.getvalue())
    with pytest.raises(OSError, match="cannot identify"):
        read_image(path)
