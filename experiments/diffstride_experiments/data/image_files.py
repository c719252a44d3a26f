"""Reading images, and finding out which cannot be read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffstride_experiments.data.cache import digest, file_states, load_array, save_array
from diffstride_experiments.data.files import Unreadable, read_files

__all__ = ["image_sizes", "read_image"]


def image_sizes(
    root: Path, paths: Sequence[str], cache: Path, workers: int
) -> list[tuple[int, int] | Unreadable]:
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
        Width and height, or why it is unreadable, of each image.
    """
    file = cache / f"image-sizes-{digest(str(root.resolve()))}.npy"
    # Rows of key, width and height.
    cached = load_array(file, np.uint64, (None, 3))
    known = {} if cached is None else {key: (w, h) for key, w, h in cached.tolist()}
    keys = [int(digest(state), 16) for state in file_states(root, paths)]
    new = [index for index, key in enumerate(keys) if key not in known]
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
    """Decode an image and make it one of red, green and blue.

    Raises
    ------
    OSError, ValueError, SyntaxError
        If it cannot be decoded whole, or has more than 8 bits a channel, which Pillow would clip.
    """
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"more than 8 bits a channel (Pillow's mode {image.mode})")
        return image.convert("RGB")


def _size(path: str) -> tuple[int, int]:
    return read_image(path).size
