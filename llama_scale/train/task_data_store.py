"""Features of one split of one task on the disk: written once, one after the other; mapped by every rank."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_scale.errors import DataError
from llama_scale.train.task_data_pack import pack

if TYPE_CHECKING:
    from types import TracebackType

    from llama_scale.extensions.task import Feature

_STREAMS: Mapping[str, type[np.generic]] = {"tokens": np.int32, "weights": np.uint8, "segments": np.int32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Count what became of a split's examples; ``record.json``.

    Args:
        examples: Rows of the files.
        features: Token sequences made of them.
        rows: Rows of the run's batches.
        tokens: Tokens of all features.
        cut: Features that had tokens left out.
        cut_tokens: Those tokens.
        dropped: Examples that gave no feature.
        starts_texts: Whether texts begin with what the tokenizer puts before them; those of version 0.1 do not.
        unread: Names of fields that rows have and the task does not read.
        notes: What else a user must know; sentences.
    """

    examples: int
    features: int
    rows: int
    tokens: int
    cut: int
    cut_tokens: int
    dropped: int
    starts_texts: bool = False
    unread: Sequence[str] = ()
    notes: Sequence[str] = ()

    def text(self, seq_length: int) -> str:
        """Return a line for the log."""
        full = 100.0 * self.tokens / (self.rows * seq_length)
        left_out = f"; {self.cut:,} were cut (by {self.cut_tokens:,} tokens)" if self.cut else ""
        left_out += f"; {self.dropped:,} examples were LEFT OUT, too long to use" if self.dropped else ""
        left_out += f"; fields that are not read: {', '.join(map(repr, self.unread))}" if self.unread else ""
        return (
            f"{self.examples:,} examples -> {self.features:,} sequences, {self.tokens:,} tokens in {self.rows:,} rows "
            f"({full:.0f}% full){left_out}"
        )


class FeatureWriter:
    """Write features into a folder.

    Args:
        folder: An empty folder.
        where: Task and split, for messages.
        seq_length: Longest feature.
        own_head: Whether weights belong to a head of the task's own.
        starts_texts: For the record.
    """

    def __init__(self, folder: Path, *, where: str, seq_length: int, own_head: bool, starts_texts: bool = True) -> None:
        self._folder = folder
        self._where = where
        self._seq_length = seq_length
        self._own_head = own_head
        self._starts_texts = starts_texts
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in _STREAMS}
        self._lengths: list[int] = []
        self._extra: dict[str, list[np.ndarray]] = {}
        self._examples = self._dropped = self._cut = self._cut_tokens = 0

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def add(self, features: list[Feature]) -> None:
        """Take in what one example gave.

        Raises:
            DataError: A feature is not what ``Task.encode`` promises.
        """
        self._examples += 1
        self._dropped += not features
        for feature in features:
            if fault := _fault(feature, self._seq_length, own_head=self._own_head):
                raise DataError(f"{self._where}: Task.encode made a feature whose {fault}; mend the task's plugin")
            self._write(feature)

    def _write(self, feature: Feature) -> None:
        size = len(feature.tokens)
        segments = np.zeros(size) if feature.segments is None else feature.segments
        for name, values in (("tokens", feature.tokens), ("weights", feature.weights), ("segments", segments)):
            self._files[name].write(np.asarray(values).astype(_STREAMS[name]).tobytes())
        if self._lengths and feature.extra.keys() != self._extra.keys():
            raise DataError(
                f"{self._where}: Task.encode made features with extra {sorted(self._extra)} and "
                f"{sorted(feature.extra)}; every feature needs the same names; mend the task's plugin"
            )
        for name, values in feature.extra.items():
            self._extra.setdefault(name, []).append(np.asarray(values))
        self._lengths.append(size)
        self._cut += feature.cut > 0
        self._cut_tokens += feature.cut

    def finish(self, *, packing: bool, unread: Iterable[str] = (), notes: Sequence[str] = ()) -> Record:
        """Write the index, the record last, and return it.

        Args:
            packing: Whether several features may share a row.
            unread: See ``Record``.
            notes: See ``Record``.

        Raises:
            DataError: There is no feature, or the features' extra arrays differ in shape.
        """
        if not self._lengths:
            what = (
                "has no examples" if not self._examples else f"has no usable example: all {self._dropped} are too long"
            )
            raise DataError(f"{self._where} {what}; add data, or change the task's options")
        numbers = range(len(self._lengths))
        # Extra arrays are a row's: there is one of each for it.
        joins = packing and not self._extra
        rows = pack(self._lengths, size=self._seq_length) if joins else [[number] for number in numbers]
        np.save(self._folder / "bounds.npy", np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)]))
        np.save(self._folder / "rows.npy", np.concatenate([[0], np.cumsum([len(row) for row in rows])]))
        np.save(self._folder / "order.npy", np.array([number for row in rows for number in row], np.int64))
        for name, arrays in self._extra.items():
            if len({array.shape for array in arrays}) > 1:
                raise DataError(
                    f"{self._where}: Task.encode made extra arrays {name!r} of several shapes; mend the task's plugin"
                )
            stacked = np.stack(arrays)
            np.save(
                self._folder / f"extra-{name}.npy",
                stacked.astype(np.float32 if np.issubdtype(stacked.dtype, np.floating) else np.int64),
            )
        record = Record(
            examples=self._examples,
            features=len(self._lengths),
            rows=len(rows),
            tokens=sum(self._lengths),
            cut=self._cut,
            cut_tokens=self._cut_tokens,
            dropped=self._dropped,
            starts_texts=self._starts_texts,
            unread=sorted(unread),
            notes=list(notes),
        )
        (self._folder / "record.json").write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        return record


def _fault(feature: Feature, seq_length: int, *, own_head: bool) -> str | None:
    size = len(feature.tokens)
    segments = np.zeros(size, int) if feature.segments is None else np.asarray(feature.segments)
    weights = np.asarray(feature.weights)
    if not 0 < size <= seq_length:
        return f"{size} tokens are none, or more than data.seq_length={seq_length}"
    if weights.shape != (size,) or segments.shape != (size,):
        return f"weights or segments do not have the shape of its {size} tokens"
    if not np.isin(weights, (0, 1)).all() or not weights.any():
        return "weights are not 0 and 1 with at least one 1"
    if segments[0] != 0 or not np.isin(np.diff(segments), (0, 1)).all():
        return "segments do not ascend from 0 without gaps"
    firsts = np.flatnonzero(np.diff(segments, prepend=-1))
    if not own_head and weights[firsts].any():
        return "weight is 1 at the first token of a segment, which nothing predicts"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a batch; the arrays are as long as what it holds.

    Args:
        tokens: int64 ids.
        weights: uint8, as the features have them.
        documents: int64, ascending: a number for each segment.
        features: The features' numbers.
    """

    tokens: np.ndarray
    weights: np.ndarray
    documents: np.ndarray
    features: np.ndarray


class PreparedSplit:
    """Read what a :class:`FeatureWriter` wrote, through mmap.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        settings: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        self.record = Record(**settings)
        self._streams = {
            name: np.memmap(folder / f"{name}.bin", dtype=dtype, mode="r") for name, dtype in _STREAMS.items()
        }
        self._bounds = np.load(folder / "bounds.npy", mmap_mode="r")
        self._rows = np.load(folder / "rows.npy", mmap_mode="r")
        self._order = np.load(folder / "order.npy", mmap_mode="r")
        self.extra: dict[str, np.ndarray] = {
            file.stem.removeprefix("extra-"): np.load(file, mmap_mode="r")
            for file in sorted(folder.glob("extra-*.npy"))
        }

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows) - 1

    def row(self, number: int) -> Row:
        """Return a row: its features one after the other, segments counted on."""
        features = np.asarray(self._order[self._rows[number] : self._rows[number + 1]])
        parts: dict[str, list[np.ndarray]] = {name: [] for name in _STREAMS}
        first = 0
        for feature in features:
            part = slice(int(self._bounds[feature]), int(self._bounds[feature + 1]))
            for name, stream in self._streams.items():
                parts[name].append(stream[part] + first if name == "segments" else stream[part])
            first += int(self._streams["segments"][part.stop - 1]) + 1
        joined = {name: np.concatenate(found) for name, found in parts.items()}
        return Row(
            tokens=joined["tokens"].astype(np.int64),
            weights=joined["weights"],
            documents=joined["segments"].astype(np.int64),
            features=features,
        )
