"""Reading images, and finding out which cannot be read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import ExifTags, Image, TiffImagePlugin

from diffstride_experiments.data.cache import digest, file_states, load_array, save_array
from diffstride_experiments.data.files import READING, Unreadable, read_files
from diffstride_experiments.locking import check_folder

__all__ = ["image_sizes", "image_suffixes", "read_image", "read_image_and_frames"]

# What Pillow decodes by itself to pixels, and finds out whether it is whole.
FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "DIB", "DDS", "ICO"),
    *("PCX", "PPM", "PSD", "QOI", "SGI", "TGA"),
)

# Formats whose further frames are pictures of their own: pages, or those of an animation.
FRAMES = {"PNG", "GIF", "WEBP", "TIFF", "AVIF"}

# How a stored picture becomes the one that is shown, by EXIF's orientation.
SHOWN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Formats whose images of Pillow's mode I have 16 bits, stretched to all of them.
WIDE = {"PNG", "PPM"}

# What TIFF calls a picture whose values are the larger the darker they are.
WHITE_IS_ZERO = 0

# Largest grey value of PNG's small depths, by Pillow's name for them.
DEPTHS = {"L;2": 3, "L;4": 15}


def image_suffixes() -> set[str]:
    """Return the suffixes of names of images, in small letters."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}


def image_sizes(
    root: Path, paths: Sequence[str], cache: Path, workers: int
) -> list[tuple[int, int, int] | Unreadable]:
    """Decode every image that was not yet found readable as it is now.

    Parameters
    ----------
    root : Path
        Folder of all images.
    paths : sequence of str
        Images.
    cache : Path
        Folder that keeps what was found. Unreadable images are decoded again every time.
    workers : int
        Processes that decode; 0: this one does.

    Returns
    -------
    list
        Width, height and number of frames, or why it is unreadable, of each image.
    """
    name = digest([READING, PIL.__version__, str(root.resolve())])
    file = cache / f"image-sizes-{name}.npy"
    # Rows of key, width, height and frames.
    cached = load_array(file, np.uint64, (None, 4))
    known = {} if cached is None else {key: tuple(size) for key, *size in cached.tolist()}
    keys = [int(digest(state), 16) for state in file_states(root, paths)]
    new = [index for index, key in enumerate(keys) if key not in known]
    if new:
        check_folder(cache, "data.cache")
    results = read_files(_size, [paths[index] for index in new], workers, "Checking images")
    unreadable = {}
    for index, result in zip(new, results, strict=True):
        if isinstance(result, Unreadable):
            unreadable[index] = result
        else:
            known[keys[index]] = result
    if len(unreadable) < len(new):
        save_array(file, np.array([[key, *size] for key, size in known.items()], np.uint64))
    return [unreadable.get(index) or known[key] for index, key in enumerate(keys)]


def read_image(path: str) -> Image.Image:
    """Decode an image, as it is shown, and make it one of red, green and blue.

    It is turned as EXIF's orientation says, and what is transparent is laid on white. Of several
    frames it is the first.

    Raises
    ------
    OSError, ValueError, SyntaxError
        If it cannot be decoded whole, or its values have no range that is known: integers of 32
        bits and floating-point numbers.
    """
    with _open(path) as image:
        return _as_shown(image)


def read_image_and_frames(path: str) -> tuple[Image.Image, int]:
    """Return what `read_image` does and the number of frames."""
    with _open(path) as image:
        shown = _as_shown(image)
        return shown, getattr(image, "n_frames", 1) if image.format in FRAMES else 1


def _open(path: str) -> Image.Image:
    Image.init()
    # Pillow's JPEG reader is that of MPO too, and what it is built without is not there.
    return Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN])


def _size(path: str) -> tuple[int, int, int]:
    image, frames = read_image_and_frames(path)
    return *image.size, frames


def _as_shown(image: Image.Image) -> Image.Image:
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in WIDE)
    if image.mode in ("I", "F") and not wide:
        raise ValueError(
            f"it is unknown which values are black and white (Pillow's mode {image.mode})"
        )
    if image.format == "PNG" and image.mode in ("L", "RGB") and "transparency" in image.info:
        _scale_transparent_colour(image)
    image.load()
    # Pillow turns TIFF's itself when it loads them.
    turn = SHOWN.get(_orientation(image))
    if wide:
        image = _in_8_bits(image)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Return an image of grey values of 16 bits, or few less, with the upper 8 of them.

    Those are what Pillow keeps of 16-bit colours; of grey values it would clip all above 255.
    """
    values = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    (bits,) = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
        grey = 255 - grey
    opaque = np.full_like(grey, 255)
    if image.format == "PNG" and "transparency" in image.info:
        opaque[values == image.info["transparency"]] = 0
    return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(opaque)])


def _scale_transparent_colour(image: Image.Image) -> None:
    """Give a PNG's transparent colour the depth that its pixels will have, 8 bits."""
    depth, colour = image.tile[0][3], image.info["transparency"]
    if isinstance(colour, int):
        largest = DEPTHS.get(depth, 255)
        image.info["transparency"] = (colour & largest) * 255 // largest
    else:
        # Of 16 bits, Pillow keeps the upper 8.
        shift = 8 if depth == "RGB;16B" else 0
        image.info["transparency"] = tuple(value >> shift & 255 for value in colour)


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    # Pillow raises all kinds of errors for damaged tags, which leave the pixels as they are.
    except Exception:
        return None
