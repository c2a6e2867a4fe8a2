"""Read a spec file's text: every way in which a file cannot be a spec is one clear problem."""

from __future__ import annotations

from pathlib import Path

from llama_scale.errors import Problem
from llama_scale.spec.compose import MAX_BYTES


class SourceError(Exception):
    """Carry the problem that stops reading."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def read_text(path: Path) -> str:
    """Return the file's text without a byte order mark.

    Raises:
        SourceError: missing, a folder, unreadable, too large, not UTF-8, with a NUL byte.
    """
    name = str(path)
    if "\x00" in name:
        raise _refuse(name.replace("\x00", "\\0"), "a file name cannot hold a NUL byte")
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise _refuse(name, "no such file", "check the path; `llama-scale init` writes a spec") from error
    except IsADirectoryError as error:
        raise _refuse(
            name, "is a folder, not a file", f"name a file in it, or quote a glob: '{name}/*.yaml'"
        ) from error
    except OSError as error:
        raise _refuse(name, f"cannot be read: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise _refuse(
            name, f"is larger than {MAX_BYTES // 1024} KiB", "a spec is a page of YAML; is this the right file?"
        )
    return _decode(name, raw)


def _decode(name: str, raw: bytes) -> str:
    nul = raw.find(b"\x00")
    if nul >= 0:
        line, column = _place(raw, nul)
        raise _refuse(name, "holds a NUL byte; it is not a text file in UTF-8", line=line, column=column)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _place(raw, error.start)
        raise _refuse(
            name,
            f"is not UTF-8 (byte 0x{raw[error.start]:02x})",
            "save the file as UTF-8",
            line=line,
            column=column,
        ) from error


def _place(raw: bytes, index: int) -> tuple[int, int]:
    before = raw[:index]
    start = before.rfind(b"\n") + 1
    return before.count(b"\n") + 1, len(before[start:].decode("utf-8", "replace")) + 1


def _refuse(
    name: str, message: str, hint: str = "", *, line: int | None = None, column: int | None = None
) -> SourceError:
    problem = Problem(path=(), message=message, hint=hint, code="file", file=name, line=line, column=column)
    return SourceError(problem)
