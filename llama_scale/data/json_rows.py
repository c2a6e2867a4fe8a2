"""Read the objects of a JSON list one by one: the form in which sharegpt and alpaca files are mostly passed on."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llama_scale.data.documents import UNIQUE_KEYS, check_text, conversion, named_faults, unpacked
from llama_scale.errors import DataError

MOST_CHARACTERS = 64 * 2**20
"""Longest object of a list."""
_BLOCK_BYTES = 2**20
_SPACE = " \t\r\n"
_NEAR = 16
"""Characters before the end of what was read within which a fault may come from what is not read yet."""


def json_rows(path: Path, raw: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a list with the number of the line on which each begins.

    One object is in memory at a time; it may have ``MOST_CHARACTERS``.

    Raises:
        DataError: The file is no list of objects, is cut off, or is no UTF-8; file and line are named.
    """
    text = _Text(path, raw)
    with named_faults(path, lambda: text.line):
        yield from _objects(path, text)


def _objects(path: Path, text: _Text) -> Iterator[tuple[int, dict[str, Any]]]:
    if (character := text.skip(_SPACE + "\ufeff")) != "[":
        raise DataError(f"{path}:{text.line}: {_worded(character)}, and a .json file must be one list of objects")
    text.take(1)
    first = True
    while (character := text.skip()) != "]":
        if not first:
            if character != ",":
                raise DataError(f"{path}:{text.line}: {_worded(character)} where a comma or the list's end must be")
            text.take(1)
            character = text.skip()
        first = False
        where = f"{path}:{text.line}"
        if character != "{":
            raise DataError(
                f"{where}: {_worded(character)} where an object must begin; the list must hold nothing else"
            )
        line, (row, source) = text.line, text.object()
        check_text(row, source, where=where)
        yield line, row
    text.take(1)
    if character := text.skip():
        raise DataError(
            f"{path}:{text.line}: {_worded(character)} behind the list's end; a .json file must be one list"
        )


def _worded(character: str) -> str:
    return f"{character!r} stands" if character else "the file ends"


def begins_with_object(path: Path) -> bool:
    """Tell whether a file's first character is a brace: then it has an object a line, whatever its name says."""
    with path.open("rb") as raw, named_faults(path, lambda: 1):
        return _Text(path, raw).skip(_SPACE + "\ufeff") == "{"


class _Text:
    """The text of a file from the current place on, read as it is needed."""

    def __init__(self, path: Path, raw: BinaryIO) -> None:
        self.line = 1
        self._path = path
        self._read: Callable[[int], bytes] = unpacked(path, raw).read
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._scan = UNIQUE_KEYS.raw_decode
        self._text = ""
        self._at = 0
        self._ended = False

    def skip(self, characters: str = _SPACE) -> str:
        """Go to the next character that is none of these, and return it; empty at the end."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if character not in characters:
                    return character
                self.take(1)
            if not self._more():
                return ""

    def take(self, count: int) -> str:
        """Go on by ``count`` characters that are there, and return them."""
        taken = self._text[self._at : self._at + count]
        self.line += taken.count("\n")
        self._at += count
        return taken

    def object(self) -> tuple[Any, str]:
        """Return the value that begins here, and its text."""
        while True:
            size = len(self._text) - self._at
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                unfinished = error.pos >= len(self._text) - _NEAR or error.msg.startswith("Unterminated string")
                if not unfinished or size > MOST_CHARACTERS or not self._more(size):
                    raise DataError(f"{self._path}:{self.line}: {self._fault(error, size)}") from error
            except RecursionError as error:
                raise DataError(f"{self._path}:{self.line}: the object that begins here is nested too deep") from error
            except DataError as error:
                raise DataError(f"{self._path}:{self.line}: {error}") from error
            else:
                return value, self.take(end - self._at)

    def _fault(self, error: json.JSONDecodeError, size: int) -> str:
        if size > MOST_CHARACTERS:
            return f"the object that begins here has more than {MOST_CHARACTERS:,} characters; split it, or use JSONL"
        line = self.line + self._text.count("\n", self._at, error.pos)
        return f"the object that begins here is no JSON: {error.msg} (line {line})"

    def _more(self, least: int = 0) -> bool:
        """Read on by at least as much as there was, so that a long object is not scanned many times over."""
        if self._ended:
            return False
        self._text, self._at = self._text[self._at :], 0
        found = self._read(max(_BLOCK_BYTES, least))
        try:
            self._text += self._decode(found, final=not found)
        except UnicodeDecodeError as error:
            line = self.line + self._text.count("\n") + error.object.count(b"\n", 0, error.start)
            raise DataError(
                f"{self._path}:{line}: byte 0x{error.object[error.start]:02x} is no UTF-8; {conversion(error.object)}"
            ) from error
        self._ended = not found
        return not self._ended
