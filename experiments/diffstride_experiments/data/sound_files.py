"""Reading sounds, and checking that they are complete."""

import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

__all__ = ["read_sound"]

# RIFF chunk sizes from here on are written by programs that do not know yet how much will follow.
UNKNOWN = 0x7FFF_F000

# Flag of the last page of a stream, in byte 5 of the header of an Ogg page.
LAST_PAGE = 4


def read_sound(path: str) -> tuple[np.ndarray, int]:
    """Decode a sound.

    Parameters
    ----------
    path : str
        File that soundfile can read.

    Returns
    -------
    samples : ndarray of float32, shape (frames, channels)
    rate : int
        Samples per second.

    Raises
    ------
    ValueError
        If the file is not audio, or is cut off in the middle of its data.
    """
    import soundfile

    with Path(path).open("rb") as file:
        magic = file.read(4)
        cut_off = (magic in RIFF and _riff_is_cut_off(file, RIFF[magic])) or (
            magic == b"OggS" and _ogg_is_cut_off(file)
        )
        if cut_off:
            raise ValueError("cut off in the middle of its data")
        file.seek(0)
        try:
            # Pass the open file: soundfile encodes names as UTF-8, but not all names are UTF-8.
            with soundfile.SoundFile(file) as sound:
                samples = sound.read(dtype="float32", always_2d=True)
                expected, rate = sound.frames, sound.samplerate
            if magic == b"NIST":
                expected = max(expected, _sphere_frames(file))
        except soundfile.LibsndfileError as error:
            raise ValueError(error.error_string) from error
    if len(samples) < expected:
        raise ValueError(f"cut off: {len(samples)} of {expected} samples can be decoded")
    return samples, rate


def _sphere_frames(file: BinaryIO) -> int:
    """Return the number of samples in the header of a SPHERE file, or 0 if it has no such entry."""
    file.seek(0)
    found = re.search(rb"^sample_count -i (\d+)", file.read(1024), re.MULTILINE)
    return int(found[1]) if found else 0


# Byte order of the sizes in each kind of RIFF file.
RIFF = {b"RIFF": "little", b"RF64": "little", b"RIFX": "big"}


def _riff_is_cut_off(file: BinaryIO, order: str) -> bool:
    """Return whether the file ends before its samples do."""
    end = file.seek(0, os.SEEK_END)
    position, long_size = 12, None
    while position + 8 <= end:
        file.seek(position)
        name, size = file.read(4), int.from_bytes(file.read(4), order)
        if name == b"ds64":
            file.seek(8, os.SEEK_CUR)
            long_size = int.from_bytes(file.read(8), order)
        if name == b"data":
            if long_size is not None and size == 0xFFFF_FFFF:
                size = long_size
            elif size >= UNKNOWN:
                return False
            return position + 8 + size > end
        position += 8 + size + size % 2
    return False  # no sound at all, which soundfile reports


def _ogg_is_cut_off(file: BinaryIO) -> bool:
    """Return whether a page is incomplete or the last one of a stream is missing."""
    end = file.seek(0, os.SEEK_END)
    position, unfinished = 0, set()
    while position < end:
        file.seek(position)
        header = file.read(27)
        if not header.startswith(b"OggS"):
            break  # something else was appended
        lengths = file.read(header[26]) if len(header) == 27 else b""
        if len(header) < 27 or len(lengths) < header[26]:
            return True
        position += 27 + len(lengths) + sum(lengths)
        if position > end:
            return True
        serial = header[14:18]
        (unfinished.discard if header[5] & LAST_PAGE else unfinished.add)(serial)
    return bool(unfinished)
