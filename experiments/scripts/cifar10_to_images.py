"""Make a folder of images from CIFAR-10's own archive.

Usage: ``python experiments/scripts/cifar10_to_images.py FOLDER``

Takes ``FOLDER/cifar-10-python.tar.gz``, which is downloaded if it is not there, and writes its
images without loss as FOLDER/train/CLASS/NNNNN.png and FOLDER/test/CLASS/NNNNN.png, for every
program that reads folders of images. The commands of this project also read the archive's own
files, unpacked: then ``--data.name cifar``.
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
