"""Pages with code: each block runs, and prints what the page shows below it."""

import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

_BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.S)


@dataclass(frozen=True)
class Block:
    """A block of code, and the output that the page shows, if any."""

    code: str
    shown: str | None
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 2)
        for found in _BLOCK.finditer(text)
    ]


def check_blocks(page: Path, blocks: list[Block]) -> None:
    """Run the blocks one after another in one namespace, and compare what they print.

    Raises
    ------
    AssertionError
        Where a block prints something else than the page shows, naming the page and the line.
    """
    namespace: dict[str, object] = {}
    for block in blocks:
        # As many lines before it as in the page, so that an error names the page's own line.
        code = "\n" * (block.line - 1) + block.code
        with redirect_stdout(StringIO()) as printed:
            exec(compile(code, str(page), "exec"), namespace)
        output = printed.getvalue()
        assert output == (block.shown or ""), (
            f"{page.name}, line {block.line}: the block prints\n{output}\nand the page shows\n"
            f"{block.shown or 'nothing'}"
        )
