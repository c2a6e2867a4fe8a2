"""The public, light side of a task's data: where its examples are, which fields are read, how they are split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from llama_scale.data.examples import (
    SPLITS,
    Column,
    Example,
    SplitName,
    check_example,
    read_examples,
    split_by_field,
    split_by_share,
)
from llama_scale.data.row_fields import check_unread, unread_fields
from llama_scale.errors import DataError
from llama_scale.extensions.api import TaskOptions
from llama_scale.spec.base import NonNegativeFloat, PathStr, PositiveFloat, Section

__all__ = ["SPLITS", "Column", "DataError", "Example", "Examples", "FileTaskOptions", "SplitName", "read_split"]


class SplitField(Section):
    """One file (or folder of files) whose rows say which split they belong to."""

    kind: Literal["split_field"]
    path: PathStr = Field(description="JSONL, JSON (.gz too) or Parquet file, or a folder of them.")
    field: str = Field("split", min_length=1, description="Field with train, validation (valid, dev) or test.")


class SplitFiles(Section):
    """One file (or folder of files) a split."""

    kind: Literal["split_files"]
    train: PathStr | None = Field(None, description="JSONL, JSON (.gz too) or Parquet file for training.")
    validation: PathStr | None = Field(None, description="The same for the validation loss.")
    test: PathStr | None = Field(None, description="The same for evaluation.")

    @model_validator(mode="after")
    def _some(self) -> SplitFiles:
        if not (self.train or self.validation or self.test):
            raise ValueError("names no file; give train, validation or test a path")
        return self


class SplitShares(Section):
    """One file (or folder of files) whose rows fall into splits by a hash, so that a row never changes its split."""

    kind: Literal["split_shares"]
    path: PathStr = Field(description="JSONL, JSON (.gz too) or Parquet file, or a folder of them.")
    train: PositiveFloat = Field(90.0, description="Share for training.")
    validation: NonNegativeFloat = Field(5.0, description="Share for validation.")
    test: NonNegativeFloat = Field(5.0, description="Share for evaluation.")
    key: str | None = Field(None, description="Field that is hashed; rows of equal value stay together. Default: all.")


Examples = Annotated[SplitField | SplitFiles | SplitShares, Field(discriminator="kind")]
"""Where a task's examples are and how they are split."""


class FileTaskOptions(TaskOptions):
    """Base of the options of a task whose examples are rows of files."""

    refuses_unread: ClassVar[bool] = False
    """Whether ``columns`` (or ``read_fields``) names all that the task reads, so that other fields that carry meaning
    are errors. The built-in tasks say so; a task that does not has them named in the log with all others."""

    added_options: ClassVar[frozenset[str]] = frozenset({"ignore_fields"})
    """Options that a later version of the task has added: at their defaults, a run that is resumed keeps the rows that
    an earlier version prepared for it."""

    data: Examples = Field(description="The files with the examples, and how they are split.")
    ignore_fields: tuple[str, ...] = Field(
        (),
        description="Fields of rows, and keys of messages, that are left out on purpose although they mean something.",
    )

    def columns(self) -> tuple[Column, ...]:
        """Return the fields that each row must have."""
        return ()

    def read_fields(self, example: Example) -> frozenset[str]:
        """Return the names of all fields that are read of a row; default: those of ``columns``."""
        del example
        return frozenset(column.name for column in self.columns())

    def unread_fields(self, example: Example) -> set[str]:
        """Return the names of a row's fields that say something, and are neither read nor left out on purpose."""
        return unread_fields(example, self._known_fields(example))

    def _known_fields(self, example: Example) -> set[str]:
        splitting = {getattr(self.data, "field", None), getattr(self.data, "key", None)}
        return {*self.read_fields(example), *self.ignore_fields, *(name for name in splitting if name)}

    def check(self, example: Example) -> None:
        """Check one row; a launch does so for the rows of all splits.

        Raises:
            DataError: The row cannot be used; its file and line are named.
        """
        check_example(example, self.columns())

    def check_row(self, example: Example) -> None:
        """Check one row, the fields that are not read included.

        Raises:
            DataError: As ``check``, or a field that carries meaning would be passed over.
        """
        self.check(example)
        if self.refuses_unread:
            check_unread(example, self._known_fields(example))

    def first_rows_check(self, tokenizer: Path) -> Callable[[Example], None] | None:
        """Return what a launch checks the first rows with besides, given the run's tokenizer; None: nothing."""
        del tokenizer
        return None

    def launch_notes(self, tokenizer: Path) -> Iterator[str]:
        """Yield what a user must know before a launch, given the run's tokenizer."""
        del tokenizer
        yield from ()

    def faults(self, seq_length: int) -> Iterator[str]:
        """Yield what of the options does not fit a run with rows of ``seq_length`` tokens."""
        del seq_length
        yield from ()

    def files(self) -> tuple[str, ...]:
        """Return every file or folder that is read."""
        data = self.data
        if isinstance(data, SplitFiles):
            return tuple(path for path in (data.train, data.validation, data.test) if path)
        return (data.path,)


def read_split(options: FileTaskOptions, split: SplitName) -> Iterator[Example]:
    """Yield the checked rows of one split.

    Raises:
        DataError: A file is missing or damaged, the split has no file, or a row lacks a field; file and line are named.
    """
    for name, example in read_all(options, only=split):
        if name == split:
            yield example


def read_all(options: FileTaskOptions, *, only: SplitName | None = None) -> Iterator[tuple[SplitName, Example]]:
    """Yield the checked rows of all splits with their split.

    Args:
        options: The task's options.
        only: Leave out the other splits where they have files of their own.

    Raises:
        DataError: As :func:`read_split`.
    """
    for name, example in _rows(options.data, only):
        options.check_row(example)
        yield name, example


def _rows(data: Examples, only: SplitName | None) -> Iterator[tuple[SplitName, Example]]:
    if isinstance(data, SplitField):
        yield from split_by_field(read_examples(Path(data.path)), field=data.field)
    elif isinstance(data, SplitShares):
        shares = (data.train, data.validation, data.test)
        yield from split_by_share(read_examples(Path(data.path)), shares=shares, key=data.key)
    else:
        for name in SPLITS if only is None else (only,):
            path = getattr(data, name)
            if path is None and only is not None:
                raise DataError(f"the split {name!r} has no file; set data.{name} in the task's options")
            if path is not None:
                yield from ((name, example) for example in read_examples(Path(path)))
