"""Reading images, and finding those that cannot be read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import ExifTags, Image, TiffImagePlugin

from diffstride_experiments.data.cache import digest, file_states, load_array, save_array
from diffstride_experiments.data.files import READING, Unreadable, read_files
from diffstride_experiments.locking import check_folder

__all__ = ["image_sizes", "image_suffixes", "read_image", "read_image_and_frames"]

# Formats that Pillow itself decodes to pixels, and for which it notices that a file is incomplete.
FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "DIB", "DDS", "ICO"),
    *("PCX", "PPM", "PSD", "QOI", "SGI", "TGA"),
)

# Formats whose further frames are separate pictures: pages, or frames of an animation.
FRAMES = {"PNG", "GIF", "WEBP", "TIFF", "AVIF"}

# Operation from the stored picture to the displayed one, by EXIF orientation.
SHOWN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Formats for which Pillow's mode I means 16-bit values that use the full range.
WIDE = {"PNG", "PPM"}

# TIFF's photometric interpretation in which larger values are darker.
WHITE_IS_ZERO = 0

# Largest grey value of PNG's small bit depths, by Pillow's names for them.
DEPTHS = {"L;2": 3, "L;4": 15}


def image_suffixes() -> set[str]:
    """Return the suffixes of image files, in lower case."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}


def image_sizes(
    root: Path, paths: Sequence[str], cache: Path, workers: int
) -> list[tuple[int, int, int] | Unreadable]:
    """Return the sizes of images. An image is decoded unless it is in the cache and unchanged.

    Parameters
    ----------
    root : Path
        Folder of all images.
    paths : sequence of str
        Images.
    cache : Path
        Folder that keeps the sizes. Unreadable images are decoded again every time.
    workers : int
        Processes that decode the images. 0: this process decodes them.

    Returns
    -------
    list
        For each image, its width, height and number of frames, or why it is unreadable.
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
    """Decode an image as it is displayed, and convert it to RGB.

    The image is rotated or mirrored as its EXIF orientation says, and transparent pixels are laid
    on white. If there are several frames, the first one is read.

    Raises
    ------
    OSError, ValueError, SyntaxError
        If the image cannot be decoded completely, or if the range of its values is not known
        (32-bit integers and floating-point numbers).
    """
    with _open(path) as image:
        return _as_shown(image)


def read_image_and_frames(path: str) -> tuple[Image.Image, int]:
    """Return the image of `read_image` and the number of frames."""
    with _open(path) as image:
        shown = _as_shown(image)
        return shown, getattr(image, "n_frames", 1) if image.format in FRAMES else 1


def _open(path: str) -> Image.Image:
    Image.init()
    # Pillow's JPEG reader also reads MPO, and Pillow may have been built without some formats.
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
    # Read after loading: Pillow itself applies the orientation of TIFF files when it loads them.
    turn = SHOWN.get(_orientation(image))
    if wide:
        image = _in_8_bits(image)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Reduce an image of grey values of 16 bits, or slightly fewer, to their upper 8 bits.

    Pillow also keeps the upper 8 bits of 16-bit colours, but it would clip grey values above 255.
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
    """Scale the transparent colour of a PNG to the depth that its pixels will have, 8 bits."""
    depth, colour = image.tile[0][3], image.info["transparency"]
    if isinstance(colour, int):
        largest = DEPTHS.get(depth, 255)
        image.info["transparency"] = (colour & largest) * 255 // largest
    else:
        # Pillow keeps the upper 8 of 16 bits.
        shift = 8 if depth == "RGB;16B" else 0
        image.info["transparency"] = tuple(value >> shift & 255 for value in colour)


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    # Pillow raises all kinds of errors for damaged tags. The pixels are not affected.
    except Exception:
        return None
