"""Make a folder of images from CIFAR-10's own archive.

Usage: ``python experiments/scripts/cifar10_to_images.py FOLDER``

The script reads ``FOLDER/cifar-10-python.tar.gz``, which it downloads if necessary. It writes the
images losslessly to FOLDER/train/CLASS/NNNNN.png and FOLDER/test/CLASS/NNNNN.png, for any program
that reads folders of images. The commands of this project can also read the files of the unpacked
archive, with ``--data.name cifar``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import track
from torchvision.datasets import CIFAR10


def main() -> None:
    """Write the images."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the archive and the images are")
    folder = parser.parse_args().folder
    for part in ("train", "test"):
        if (folder / part).exists():
            parser.error(f"folder: {folder / part} is there already")
        images = CIFAR10(folder, train=part == "train", download=True)
        for number, (image, label) in enumerate(track(images, part)):
            path = folder / part / images.classes[label] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


if __name__ == "__main__":
    main()
