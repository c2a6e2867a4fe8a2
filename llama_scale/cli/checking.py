"""What ``validate`` does, without Typer: find the files, check each, write what was found."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from llama_scale.cli.output import emit, emit_json, say
from llama_scale.errors import Problem, status_of
from llama_scale.spec.quick import quick_check
from llama_scale.spec.source import SourceError, read_text


class Format(StrEnum):
    """How problems are written."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


def run_checks(specs: Sequence[str], *, overrides: Sequence[str] = (), output: Format = Format.TEXT) -> int:
    """Check all specs, write the outcome and return the exit status: 0, 3, or 4 if plugins alone are at fault."""
    files, problems = find_files(specs)
    good: list[tuple[str, Any]] = []
    for file in files:
        spec, found = _check(file, overrides)
        problems += found
        if spec is not None:
            good.append((file, spec))
    _WRITERS[output](good, problems)
    return status_of(problems)


def run_plain(words: Sequence[str]) -> int | None:
    """Do ``validate WORDS`` if they are specs, ``--set`` and ``--format`` only; None if Typer has to look at them."""
    specs: list[str] = []
    options: dict[str, list[str]] = {"--set": [], "--format": []}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in options:
            value = value if equals else next(rest, "")
            if not value:
                return None
            options[name].append(value)
        elif word.startswith("-"):
            return None
        else:
            specs.append(word)
    formats = options["--format"] or [Format.TEXT]
    if not specs or formats[-1] not in list(Format):
        return None
    return run_checks(specs, overrides=options["--set"], output=Format(formats[-1]))


def _check(file: str, overrides: Sequence[str]) -> tuple[Any, Sequence[Problem]]:
    """Return a resolved spec (or a view that reads like one), or the file's problems."""
    try:
        text = read_text(Path(file))  # once: the file may be a pipe, as in `validate <(make-spec)`
    except SourceError as error:
        return None, (error.problem,)
    view = quick_check(text, overrides=overrides)
    if view is not None:
        return view, ()
    from llama_scale.spec.load import check_text  # lazy: pydantic costs more than checking a good spec does

    loaded = check_text(text, name=file, overrides=overrides)
    return loaded.spec, loaded.problems


def find_files(patterns: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """Return the files that names and globs stand for, each once, and a problem for each glob that matches none."""
    files: dict[str, None] = {}
    problems: list[Problem] = []
    for pattern in patterns:
        if not glob.has_magic(pattern) or "\x00" in pattern or Path(pattern).exists():
            files[pattern] = None
            continue
        matches = sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())  # noqa: PTH207 - Path.glob takes no absolute patterns
        files.update(dict.fromkeys(matches))
        if not matches:
            problems.append(
                Problem(
                    path=(),
                    file=pattern,
                    message="the glob matches no file",
                    hint="check the path; ** stands for any number of folders",
                    code="glob",
                )
            )
    return list(files), problems


@dataclass(frozen=True, slots=True)
class _Place:
    """``file:line:column`` as far as it is known."""

    problem: Problem

    def __str__(self) -> str:
        parts = (self.problem.file, self.problem.line, self.problem.column)
        return ":".join(str(part) for part in parts if part is not None)


def _write_text(good: Sequence[tuple[str, Any]], problems: Sequence[Problem]) -> None:
    for file, spec in good:
        emit(f"{file}: ok: {_summary(spec)}")
    for problem in problems:
        where = f"{_Place(problem)}: {problem.dotted}" if problem.path else str(_Place(problem))
        say(f"{where}: {problem.message}")
        if problem.hint:
            say(f"    hint: {problem.hint}")
    if problems:
        bad = len({problem.file for problem in problems})
        say(f"{_count(len(problems), 'error')} in {_count(bad, 'file')}; {len(good)} good")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _summary(spec: Any) -> str:
    parallel, batch = spec.parallel, spec.batch
    processes = parallel.data * parallel.tensor * parallel.pipeline
    return (
        f"{spec.model.name}, {spec.engine.kind}, {processes} process{'' if processes == 1 else 'es'} "
        f"(data {parallel.data} x tensor {parallel.tensor} x pipeline {parallel.pipeline}), "
        f"batch {batch.global_} = micro {batch.micro} x accumulation {batch.accumulation} x data {parallel.data}, "
        f"{_length(spec.train)}"
    )


def _length(train: Any) -> str:
    if train.epochs is not None:
        return f"{train.epochs:g} epoch{'' if train.epochs == 1 else 's'}"
    return _count(train.steps, "step")


def _write_json(good: Sequence[tuple[str, Any]], problems: Sequence[Problem]) -> None:
    emit_json([as_document(problem) for problem in problems])


def as_document(problem: Problem) -> dict[str, Any]:
    """Return a problem as plain data."""
    return {
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "path": problem.dotted,
        "code": problem.code,
        "message": problem.message,
        "hint": problem.hint,
    }


def _write_github(good: Sequence[tuple[str, Any]], problems: Sequence[Problem]) -> None:
    for problem in problems:
        emit(github_annotation(problem))


def github_annotation(problem: Problem) -> str:
    """Return one workflow command.

    Escaping: https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts
    """
    properties = {
        "file": problem.file,
        "line": problem.line,
        "col": problem.column,
        "title": problem.dotted or problem.code,
    }
    listed = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items() if value is not None)
    text = f"{problem.message}\n{problem.hint}" if problem.hint else problem.message
    return f"::error {listed}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


_WRITERS = {Format.TEXT: _write_text, Format.JSON: _write_json, Format.GITHUB: _write_github}
