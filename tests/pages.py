"""Read README and docs: fenced blocks with what the comment before them says about testing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<mark>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block; ``mark`` is what follows ``test:`` in the comment directly before it."""

    page: Path
    language: str
    text: str
    mark: str

    @property
    def skipped(self) -> bool:
        return self.mark.startswith("skip;")

    @property
    def engines(self) -> bool:
        return self.mark == "engines"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [
        Block(page=page, language=found["language"], text=found["text"], mark=found["mark"] or "")
        for found in _BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]
