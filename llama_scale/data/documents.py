"""Read documents from text files: .txt, .jsonl, and either of them gzipped."""

from __future__ import annotations

import codecs
import glob
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, Literal

from llama_scale.errors import DataError

TextUnit = Literal["line", "paragraph", "file"]
"""What is one document of a .txt file. A line of a .jsonl file always is one."""

_TEXT = (".txt", ".text")
JSONL = (".jsonl", ".ndjson")
"""Suffixes of files with one JSON object a line, before a possible .gz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Say which files hold the text and how they are read.

    Args:
        files: In the order in which they are read.
        field: Key of the text in a JSONL object.
        unit: What is one document of a .txt file.
    """

    files: tuple[Path, ...]
    field: str = "text"
    unit: TextUnit = "line"

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes on the disk."""
        return sum(path.stat().st_size for path in self.files)

    def documents(self, *, on_read: Callable[[int], None] | None = None) -> Iterator[str]:
        """Yield the documents, empty ones included.

        Args:
            on_read: Called now and then with the bytes read from the disk so far.

        Raises:
            DataError: A file cannot be read; a line is no JSON object with a string under ``field``.
        """
        done = 0
        for path in self.files:
            with path.open("rb") as raw:
                for document in self._documents_of(path, raw):
                    if on_read:
                        on_read(done + raw.tell())
                    yield document
                done += raw.tell()

    def _documents_of(self, path: Path, raw: BinaryIO) -> Iterator[str]:
        lines = numbered_lines(path, raw)
        if file_kind(path) in JSONL:
            for number, line in lines:
                if line.strip():
                    yield _text_of(line, where=f"{path}:{number}", field=self.field)
        elif self.unit == "line":
            for _, line in lines:
                yield line.rstrip("\r\n")
        else:
            yield from _blocks((line for _, line in lines), whole=self.unit == "file")


def find_source(patterns: Sequence[str], *, field: str = "text", unit: TextUnit = "line") -> Source:
    """Find the files that names and patterns stand for; each file is read once, in the order given.

    Args:
        patterns: File names, or patterns with ``*``, ``?``, ``[...]`` and ``**``; a pattern's files are sorted.
        field: Key of the text in a JSONL object.
        unit: What is one document of a .txt file.

    Raises:
        DataError: A name or pattern stands for no file, or a file's kind is not known; all are named.
    """
    found: dict[Path, None] = {}
    faults = []
    for pattern in patterns:
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - patterns may be absolute
        files = [Path(match) for match in matches if not Path(match).is_dir()]
        if not files:
            why = "is a folder; name its files, for example" if Path(pattern).is_dir() else "matches no file; try"
            faults.append(f"--input {pattern} {why} '{Path(pattern) / '*.jsonl' if matches else '*.jsonl'}'")
        for path in files:
            if file_kind(path) not in (*_TEXT, *JSONL):
                faults.append(f"--input {path}: only .txt and .jsonl, plain or with .gz, can be read")
            found[path] = None
    if faults:
        raise DataError("\n".join(faults))
    return Source(files=tuple(found), field=field, unit=unit)


def file_kind(path: Path) -> str:
    """Return the suffix that says what is inside, ``.gz`` left out."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def numbered_lines(path: Path, raw: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their ends; faults of file, compression and encoding name file and line."""
    number = 0
    with named_faults(path, lambda: number):
        stream = unpacked(path, raw)
        while line := stream.readline():
            number += 1
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")


def unpacked(path: Path, raw: BinaryIO) -> BinaryIO:
    """Return a file's bytes, unpacked if its name ends in .gz."""
    return io.BufferedReader(gzip.GzipFile(fileobj=raw)) if path.suffix.lower() == ".gz" else raw


def conversion(data: bytes) -> str:
    """Return how to make UTF-8 of a file, by the bytes that are none; UTF-16 tells itself by its first two."""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin1"
    return f"convert the file, for example with: iconv -f {encoding} -t utf-8"


@contextmanager
def named_faults(path: Path, line: Callable[[], int]) -> Iterator[None]:
    """Turn faults of file, compression and encoding into messages that name file and line.

    Args:
        path: The file.
        line: Returns the number of the line that was read last.

    Raises:
        DataError: A fault came up.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{line()}: byte 0x{error.object[error.start]:02x} at column {error.start + 1} is no UTF-8; "
            f"{conversion(error.object)}"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}:{line() + 1}: the gzip data is cut off or damaged ({error}); copy it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def json_object(line: str, *, where: str, decoder: json.JSONDecoder | None = None) -> dict[str, Any]:
    """Read one line of a JSONL file.

    Args:
        line: The line.
        where: ``FILE:LINE``, for messages.
        decoder: What reads it; default: one that lets the last of equal keys count.

    Raises:
        DataError: It is no JSON object, or holds what is no text; ``where`` is named.
    """
    try:
        row = json.loads(line) if decoder is None else decoder.decode(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason, column = (error.msg, error.colno) if isinstance(error, json.JSONDecodeError) else ("nested too deep", 1)
        raise DataError(f"{where}:{column}: no JSON ({reason}); each line must be one JSON object") from error
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: {line.strip()[:60]!r} is no JSON object; each line must be one, with named values")
    check_text(row, line, where=where)
    return row


def check_text(row: Any, source: str, *, where: str) -> None:
    """Check that the JSON value which ``source`` stands for holds no half of a surrogate pair.

    Raises:
        DataError: It does; ``where`` is named.
    """
    if "\\ud" in source.lower():
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = str(error.object)[error.start]
            raise DataError(f"{where}: {half!r} is half of a surrogate pair, and no text; remove it") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"the key {twice!r} stands twice in one object; keep one of them")
    return found


UNIQUE_KEYS = json.JSONDecoder(object_pairs_hook=_unique)
"""Reads JSON in which no key may stand twice in an object: the last one would count, and the others be lost."""


def _text_of(line: str, *, where: str, field: str) -> str:
    row = json_object(line, where=where)
    if field not in row:
        near = get_close_matches(field, row, n=1)
        hint = f"did you mean --field {near[0]}?" if near else "name the text's key with --field"
        raise DataError(f"{where}: no key {field!r}; the keys are {', '.join(map(repr, row)) or 'none'}; {hint}")
    text = row[field]
    if not isinstance(text, str):
        raise DataError(f"{where}: {field!r} is {json.dumps(text)[:60]}, and the text must be a string")
    return text


def _blocks(lines: Iterator[str], *, whole: bool) -> Iterator[str]:
    """Join lines to paragraphs, which blank lines part, or to one document."""
    block: list[str] = []
    for line in lines:
        if whole or line.strip():
            block.append(line)
        elif block:
            yield "".join(block).rstrip("\r\n")
            block = []
    if block:
        yield "".join(block).rstrip("\r\n")
