"""Names of files as text that can be written anywhere."""

import re
import unicodedata
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

__all__ = ["AnyPath", "one_line", "printable"]

# What `printable` makes of one byte of a name that is not UTF-8.
ESCAPED = re.compile(r"\\u(dc[89a-f][0-9a-f])")


def printable(text: str) -> str:
    r"""Return a text without what cannot be encoded.

    Python reads a byte of a file's name that is not UTF-8 as a lone surrogate, which neither
    terminals nor TOML nor JSON's readers take. It becomes ``\udcXX`` here, XX being the byte.
    """
    return text.encode(errors="backslashreplace").decode()


def one_line(text: str) -> str:
    r"""Return a text as `printable` does, and what would end a line or steer a terminal escaped.

    Names of files may hold newlines and escape characters. They become ``\n`` and ``\x1b``.
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
"""Path of an option. Names that are not UTF-8 are written as by `printable` and read back."""
