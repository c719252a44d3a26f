"""File names as text that can be written anywhere."""

import re
import unicodedata
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

__all__ = ["AnyPath", "one_line", "printable"]

# Text that `printable` returns for one byte of a name that is not UTF-8.
ESCAPED = re.compile(r"\\u(dc[89a-f][0-9a-f])")


def printable(text: str) -> str:
    r"""Return a text with the characters escaped that cannot be encoded.

    Python reads a byte of a file name that is not UTF-8 as a lone surrogate. Terminals, TOML and
    JSON readers do not accept lone surrogates. Here the byte XX becomes ``\udcXX``.
    """
    return text.encode(errors="backslashreplace").decode()


def one_line(text: str) -> str:
    r"""Return a `printable` text on one line, with line breaks and control characters escaped.

    File names may contain newlines and escape characters. These become ``\n`` and ``\x1b``.
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Zl", "Zp")
        else character
        for character in printable(text)
    )


def _as_named(path: object) -> object:
    if not isinstance(path, str | Path):
        return path
    if not str(path) or "\0" in str(path):
        raise ValueError("must be a path")
    return Path(ESCAPED.sub(lambda found: chr(int(found[1], 16)), str(path)))


AnyPath = Annotated[
    Path,
    BeforeValidator(_as_named),
    PlainSerializer(lambda path: printable(str(path)), return_type=str, when_used="json"),
]
"""Path in an option. Names that are not UTF-8 are written with `printable` and can be read back."""
