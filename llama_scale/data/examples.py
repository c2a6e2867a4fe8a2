"""Read examples of tasks from JSONL, JSON (both plain or gzipped) and Parquet; faults name file, row and field."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from llama_scale.data.documents import JSONL, UNIQUE_KEYS, file_kind, json_object, numbered_lines
from llama_scale.data.json_rows import begins_with_object, json_rows
from llama_scale.errors import DataError

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

_SYNONYMS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "eval": "test",
}
"""What data sets call their splits."""

_PARQUET = (".parquet", ".pq")
_LIST = ".json"
_KINDS = ".jsonl, .ndjson, .json (plain or with .gz) and .parquet"


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a file.

    Args:
        where: ``FILE:LINE`` for messages.
        values: Field -> value, as read.
    """

    where: str
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


Form = Literal["text", "texts", "integer", "integers", "messages", "any"]
"""What a field holds; ``texts``: a text or a list of at least one, ``integers``: alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One field that a task reads.

    Args:
        name: Its name in the file.
        form: What it holds. Texts must not be blank unless ``blank``.
        required: Whether every row must have it; if not, null and absent mean the same.
        blank: Whether an empty text (or an empty list of texts) is allowed.
        option: The task's option that gives the name, for messages.
    """

    name: str
    form: Form = "text"
    required: bool = True
    blank: bool = False
    option: str = field(default="")


def check_example(example: Example, columns: Sequence[Column]) -> None:
    """Check that a row has what a task reads.

    Raises:
        DataError: A field is missing, null, blank or of another type.
    """
    for column in columns:
        value = example.values.get(column.name)
        if value is None:
            if column.required:
                raise DataError(_missing(example, column))
        elif fault := _FAULTS[column.form](value, column.blank):
            shown = json.dumps(value, ensure_ascii=False, default=str)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            raise DataError(f"{example.where}: field {column.name!r} is {shown}, and it must be {fault}")


def _missing(example: Example, column: Column) -> str:
    option = f" (option {column.option})" if column.option else ""
    if column.name in example.values:
        return f"{example.where}: field {column.name!r}{option} is null; remove the row or fill it in"
    near = get_close_matches(column.name, list(example.values), n=1)
    place = f"with {column.option}" if column.option.startswith("--") else "in the task's options"
    hint = f"did you mean {near[0]!r}?" if near else f"name the right field {place}"
    there = ", ".join(repr(name) for name in list(example.values)[:20]) or "none"
    return f"{example.where}: no field {column.name!r}{option}; the fields are {there}; {hint}"


def _text_fault(value: Any, blank: bool) -> str | None:
    good = isinstance(value, str) and (blank or value.strip() != "")
    return None if good else ("a text" if blank else "a text that is not blank")


def _texts_fault(value: Any, blank: bool) -> str | None:
    if isinstance(value, list):
        if (value or blank) and all(_text_fault(item, False) is None for item in value):
            return None
        return "a text or a list of texts, none of them blank"
    return _text_fault(value, blank)


def _integer_fault(value: Any, blank: bool) -> str | None:
    del blank
    return None if isinstance(value, int) and not isinstance(value, bool) else "an integer"


def _integers_fault(value: Any, blank: bool) -> str | None:
    items = value if isinstance(value, list) else [value]
    return None if all(_integer_fault(item, blank) is None for item in items) else "an integer or a list of integers"


def _messages_fault(value: Any, blank: bool) -> str | None:
    del blank
    good = isinstance(value, list) and value and all(_is_message(item) for item in value)
    return None if good else 'a list of {"role": text, "content": text}'


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)


_FAULTS: dict[Form, Callable[[Any, bool], str | None]] = {
    "text": _text_fault,
    "texts": _texts_fault,
    "integer": _integer_fault,
    "integers": _integers_fault,
    "messages": _messages_fault,
    "any": lambda value, blank: None,
}


def find_files(path: Path) -> list[Path]:
    """Return the file, or the files of a folder that can hold examples, sorted by name.

    A folder's .json files are not read: next to examples they mostly describe them.

    Raises:
        DataError: There is none, or its kind is not known.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and file_kind(p) in (*JSONL, *_PARQUET))
        if not files:
            raise DataError(
                f"{path} is a folder without examples; it needs files that end in .jsonl, .ndjson (plain or with .gz) "
                "or .parquet (a .json file is read where it is named itself)"
            )
        return files
    if not path.exists():
        raise DataError(f"{path} does not exist; name a file of examples, or a folder of them")
    if file_kind(path) not in (*JSONL, *_PARQUET, _LIST):
        raise DataError(f"{path}: examples are read from {_KINDS}; convert it, one JSON object a line")
    return [path]


def read_examples(path: Path) -> Iterator[Example]:
    """Yield the rows of a file or of a folder's files, in order; blank lines are passed over.

    Raises:
        DataError: A file is missing, damaged or of an unknown kind, a line is no JSON object, or pyarrow is missing.
    """
    for file in find_files(path):
        if file_kind(file) in _PARQUET:
            yield from _read_parquet(file)
        elif file_kind(file) == _LIST and not begins_with_object(file):
            with file.open("rb") as raw:
                yield from (Example(f"{file}:{line}", row) for line, row in json_rows(file, raw))
        else:
            yield from _read_jsonl(file)


def _read_jsonl(path: Path) -> Iterator[Example]:
    try:
        with path.open("rb") as raw:
            for number, line in numbered_lines(path, raw):
                if line.strip():
                    where = f"{path}:{number}"
                    yield Example(where, json_object(line, where=where, decoder=UNIQUE_KEYS))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_parquet(path: Path) -> Iterator[Example]:
    try:
        import pyarrow as pa  # lazy: an extra, for Parquet only
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install 'llama-scale[parquet]'") from error
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Example(f"{path}: row {number}", row)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file, or is damaged: {' '.join(str(error).split())[:200]}") from error


def split_by_field(examples: Iterator[Example], *, field: str) -> Iterator[tuple[SplitName, Example]]:
    """Yield each row with the split that one of its fields names (train, valid or validation or dev, test).

    Raises:
        DataError: A row has no such field, or it names no split.
    """
    column = Column(name=field, option="data.field")
    for example in examples:
        check_example(example, (column,))
        name = _SYNONYMS.get(str(example[field]).strip().lower())
        if name is None:
            raise DataError(
                f"{example.where}: field {field!r} is {example[field]!r}, which is no split; use train, validation "
                "(or valid, val, dev) or test"
            )
        yield name, example


def split_by_share(
    examples: Iterator[Example], *, shares: Sequence[float], key: str | None
) -> Iterator[tuple[SplitName, Example]]:
    """Yield each row with the split that a hash of it falls into; equal rows, or rows of equal key, fall together.

    Args:
        examples: The rows.
        shares: Relative sizes of train, validation and test.
        key: Field to hash; None: the whole row.

    Raises:
        DataError: A row has no such field.
    """
    total = sum(shares)
    columns = () if key is None else (Column(name=key, form="any", option="data.key"),)
    for example in examples:
        check_example(example, columns)
        hashed = dict(example.values) if key is None else example[key]
        text = json.dumps(hashed, sort_keys=True, ensure_ascii=False, default=str)
        point = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64 * total
        if point < shares[0]:
            yield "train", example
        else:
            yield ("validation" if point < shares[0] + shares[1] else "test"), example
