"""Compute what the documentation's page to play with shows.

Building the site does it; ``python docs/make_playground.py FOLDER`` does it alone. All that the
page shows of the layer is what `diffstride_numpy.explain` returns, over a grid of strides,
smoothness and conventions: the page itself only chooses among them. Each file is a script that
hands its content to the page, since a page that was opened from a disk may load no data, but
scripts.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from diffstride_numpy import AxisExplanation, Explanation, explain, spectral_resize
from diffstride_plotting import decibels
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from scipy.io import wavfile
from sklearn.datasets import load_sample_image

Floats = NDArray[np.floating]
Data = dict[str, Any]

RECORDING = Path(__file__).parent / "playground" / "crow.wav"

STRIDES = tuple(np.arange(1.0, 4.01, 0.25).tolist())
SMOOTHNESS = {
    "nominal": (0.1, 0.25, 0.5),
    "paper": (2.0, 4.0, 8.0),
    "tensorflow": (2.0, 4.0, 8.0),
}
SUBJECTS = {
    "photo": ("nominal", "paper", "tensorflow"),
    "recording": ("nominal", "paper"),  # the TensorFlow layer resizes images alone
}
# A strided convolution has a whole stride: the page takes the nearest.
WHOLE_STRIDES = (1, 2, 3, 4)

# What is drawn of the waveform, in samples of the input, and in how many points for each.
EXCERPT = slice(1200, 1264)
FINENESS = 4


@cache
def photo() -> Floats:
    """Return a tiled roof, shape (3, 96, 128), between 0 and 1."""
    pixels = load_sample_image("china.jpg")[200:296, 170:298]
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0) / 255)


@cache
def recording() -> tuple[int, Floats]:
    """Return the samples per second and the samples of a crow's caw, between -1 and 1."""
    rate, samples = wavfile.read(RECORDING)
    return int(rate), samples / 32768


def explained(subject: str, strides: Any, convention: str, smoothness: float) -> Explanation:
    """Explain a subject, in the scale that keeps brightness and loudness in every convention."""
    x, axes = (photo(), (-2, -1)) if subject == "photo" else (recording()[1], (-1,))
    return explain(
        x, strides, axes=axes, smoothness=smoothness, convention=convention, norm="forward"
    )


# --- encoding --------------------------------------------------------------------------------


def _rounded(values: Any, digits: int = 4) -> list[float]:
    """Round to significant digits."""
    return [float(f"{value:.{digits}g}") for value in np.ravel(values).tolist()]


def _thousandths(values: Floats) -> list[int]:
    return [int(value) for value in np.round(1000 * values).tolist()]


def _as_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _picture(channels: Floats) -> str:
    """Encode an array of shape (3, H, W) as a lossy picture."""
    pixels = np.round(255 * np.clip(np.moveaxis(channels, 0, -1), 0, 1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=80, method=4)
    return _as_url("image/webp", file.getvalue())


def _sound(samples: Floats, rate: int) -> str:
    """Encode an output as a sound of the input's rate: browsers do not play every rate."""
    file = io.BytesIO()
    wavfile.write(file, rate, np.round(32767 * np.clip(samples, -1, 1)).astype(np.int16))
    return _as_url("audio/wav", file.getvalue())


def _heard_and_seen(samples: Floats, length: int) -> Data:
    """Encode samples that take as long as `length` samples of the input."""
    rate, _ = recording()
    fine = spectral_resize(samples, FINENESS * length, axes=-1)
    step = length / len(samples)
    first = int(np.ceil(EXCERPT.start / step))
    last = int(np.floor(EXCERPT.stop / step))
    return {
        "sound": _sound(spectral_resize(samples, length, axes=-1), rate),
        "curve": _thousandths(fine[FINENESS * EXCERPT.start : FINENESS * EXCERPT.stop + 1]),
        # Of the samples themselves, their places in the excerpt, from 0 to 1000, and values.
        "places": _thousandths(
            (np.arange(first, last + 1) * step - EXCERPT.start) / (EXCERPT.stop - EXCERPT.start)
        ),
        "samples": _thousandths(samples[first : last + 1]),
    }


def _corners(axis: AxisExplanation) -> list[tuple[int, float]]:
    """Return the frequencies between which the mask is straight, from -N/2 to N/2, and it there."""
    frequency = np.arange(-(axis.N // 2), axis.N // 2 + 1)
    # A half spectrum stands for its mirror image too, and an even size's N/2 for -N/2.
    index = np.abs(frequency) if axis.k[0] == 0 else (frequency - axis.k[0]) % axis.N
    mask = axis.mask[index]
    bends = np.abs(np.diff(mask, 2)) > 1e-9
    kept = np.flatnonzero(np.concatenate(([True], bends, [True])))
    return list(zip(frequency[kept].tolist(), _rounded(mask[kept]), strict=True))


def _window(axis: AxisExplanation) -> Data:
    return {"M": axis.M, "mask": _corners(axis), "ramp": axis.ramp.tolist()}


def _gradient(found: Explanation) -> Data:
    return {
        "dS": _rounded(found.dS, 6),
        "shares": [_rounded(axis.contributions) for axis in found.axes],
    }


# --- files -----------------------------------------------------------------------------------


def photo_itself() -> Data:
    """Return what does not depend on smoothness and convention."""
    x = photo()
    amplitude = np.sqrt(np.mean(np.abs(explained("photo", 4.0, "paper", 1.0).spectrum) ** 2, 0))
    # The mean outshines all else.
    loudest = float(np.sort(amplitude, axis=None)[-2])
    levels = 1 + decibels(amplitude, loudest) / 60
    colours = colormaps["magma"](np.clip(levels, 0, 1))[..., :3]
    return {
        "N": list(x.shape[1:]),
        "strides": STRIDES,
        "smoothness": {convention: SMOOTHNESS[convention] for convention in SUBJECTS["photo"]},
        "input": _picture(x),
        "spectrum": _picture(np.moveaxis(colours, -1, 0)),
        "strided": [
            [_picture(x[:, ::rows, ::columns]) for columns in WHOLE_STRIDES]
            for rows in WHOLE_STRIDES
        ],
        "stridedM": [[-(-size // step) for step in WHOLE_STRIDES] for size in x.shape[1:]],
    }


def recording_itself() -> Data:
    """Return what does not depend on smoothness and convention."""
    rate, x = recording()
    # From frequency 0 down to where the spectrum begins: a real signal has as much going up.
    spectrum = explained("recording", 4.0, "paper", 1.0).spectrum[len(x) // 2 :: -1]
    amplitude = np.abs(spectrum)
    levels = 1 + decibels(amplitude, float(amplitude.max())) / 80
    return {
        "N": [len(x)],
        "rate": rate,
        "strides": STRIDES,
        "smoothness": {convention: SMOOTHNESS[convention] for convention in SUBJECTS["recording"]},
        "levels": _thousandths(levels),
        "input": _heard_and_seen(x, len(x)),
        "strided": [_heard_and_seen(x[::step], step * len(x[::step])) for step in WHOLE_STRIDES],
        "stridedM": [[-(-len(x) // step) for step in WHOLE_STRIDES]],
    }


def photo_at(convention: str, smoothness: float) -> Data:
    """Return what the strides of height and width make of the photograph."""
    grid = [
        [explained("photo", (rows, columns), convention, smoothness) for columns in STRIDES]
        for rows in STRIDES
    ]
    return {
        # A window depends on the stride of its own axis alone.
        "windows": [
            [_window(row[0].axes[0]) for row in grid],
            [_window(found.axes[1]) for found in grid[0]],
        ],
        "results": [
            [{"picture": _picture(found.y), **_gradient(found)} for found in row] for row in grid
        ],
    }


def recording_at(convention: str, smoothness: float) -> Data:
    """Return what the stride makes of the recording."""
    found = [explained("recording", stride, convention, smoothness) for stride in STRIDES]
    return {
        "windows": [[_window(one.axes[0]) for one in found]],
        "results": [{**_heard_and_seen(one.y, one.x.size), **_gradient(one)} for one in found],
    }


def files() -> Iterator[tuple[str, Data]]:
    """Yield the name and the content of each file."""
    yield "photo", photo_itself()
    yield "recording", recording_itself()
    for subject, at in (("photo", photo_at), ("recording", recording_at)):
        for convention in SUBJECTS[subject]:
            for i, smoothness in enumerate(SMOOTHNESS[convention]):
                yield f"{subject}-{convention}-{i}", at(convention, smoothness)


def main(folder: Path) -> None:
    """Write all files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files():
        text = json.dumps(data, separators=(",", ":"))
        (folder / f"{name}.js").write_text(f'playground.receive("{name}",{text});\n', "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
