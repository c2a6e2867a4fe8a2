"""Cut token files into training samples: sample k of a run is a pure function of (seed, blend, k).

Data, tensor and pipeline parallel degrees change who reads a sample, never which samples a step reads: step t,
replica d, micro-batch m reads sample ``first + (m * dp_size + d) * micro + j``, where ``first`` is the number of
samples consumed by the steps before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from llama_scale.data.examples import SPLITS, SplitName
from llama_scale.data.reader import TokenFile
from llama_scale.data.windows import count_windows, split_bounds
from llama_scale.errors import DataError
from llama_scale.train.blend import Blend, blend_once
from llama_scale.train.engine import MicroBatch
from llama_scale.train.evaluation_rows import deal

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import BatchPlan
    from llama_scale.spec.data import IndexedData


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Hold one window of a token stream; arrays are int64 ``[seq + 1]``.

    Args:
        tokens: Token ids.
        documents: Number of the document of each token, counted within the window.
        positions: Position of each token in the window or, at isolated documents, since its document began there.
    """

    tokens: np.ndarray
    documents: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Epoch:
    """Hold the orders of one pass over a split."""

    documents: np.ndarray
    """Document numbers in the order of the stream."""
    bounds: np.ndarray
    """``[documents + 1]`` first token of each of them in the stream."""
    windows: np.ndarray
    """Window numbers in the order of the samples."""


class Stream:
    """Cut one split of one token file into an endless sequence of windows.

    Each epoch puts the documents into a new order, joins them into one stream of n tokens, cuts it into
    ``(n - 1) // seq_length`` windows of ``seq_length + 1`` tokens (each overlaps the next by one, so that every token
    but the first is predicted once) and puts these into a new order. What is left over at the end is not used in
    that epoch.

    Args:
        file: The token file.
        documents: First document of the split, and the one behind the last.
        seq_length: Tokens per sample.
        seed: Three numbers: the run's seed, the part of the blend, the split.
    """

    def __init__(
        self, file: TokenFile, *, documents: tuple[int, int], seq_length: int, seed: tuple[int, int, int]
    ) -> None:
        self.file = file
        self._first, self._stop = documents
        self._seq_length = seq_length
        self._seed = seed
        self.windows = count_windows(file, documents, seq_length=seq_length, split=SPLITS[seed[2]])
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and document numbers (0 for the first one it touches) of a sample, both ``[seq + 1]``."""
        number, position = divmod(index, self.windows)
        epoch = self._epoch(number)
        start = int(epoch.windows[position]) * self._seq_length
        stop = start + self._seq_length + 1
        tokens = np.empty(stop - start, np.int64)
        documents = np.empty(stop - start, np.int64)
        place = int(np.searchsorted(epoch.bounds, start, side="right")) - 1
        done, count = 0, 0
        while done < len(tokens):
            begin, end = int(epoch.bounds[place]), int(epoch.bounds[place + 1])
            low, high = start + done - begin, min(stop, end) - begin
            if high > low:  # an empty document has no tokens and no number
                tokens[done : done + high - low] = self.file.read(int(epoch.documents[place]), low, high)
                documents[done : done + high - low] = count
                done, count = done + high - low, count + 1
            place += 1
        return tokens, documents

    def _make_epoch(self, number: int) -> _Epoch:
        bits = np.random.PCG64(np.random.SeedSequence([*self._seed, number]))
        documents = self._first + permutation(bits, self._stop - self._first)
        bounds = np.concatenate([[0], np.cumsum(self.file.lengths[documents], dtype=np.int64)])
        return _Epoch(documents=documents, bounds=bounds, windows=permutation(bits, self.windows))


def permutation(bits: np.random.PCG64, size: int) -> np.ndarray:
    """Return a random order of ``range(size)``.

    Not ``Generator.permutation``: NumPy may change its result in any release (NEP 19), which would move the data
    under a run that is resumed after an upgrade; the raw bits of a bit generator are fixed.
    """
    return np.argsort(bits.random_raw(size), kind="stable")


class Samples:
    """Offer the samples of one split of the blend.

    Args:
        data: The spec's section.
        split: Which split.
        seed: The run's seed.
        vocab_size: Token ids must be below it.

    Raises:
        DataError: A token file is missing or damaged, or its split is empty.
    """

    def __init__(self, data: IndexedData, *, split: SplitName, seed: int, vocab_size: int) -> None:
        self._weights = [part.weight for part in data.blend]
        self._blend = Blend(self._weights)
        self._seq_length = data.seq_length
        self._isolate = data.isolate_documents
        self._vocab_size = vocab_size
        self._streams: list[Stream] = []
        for number, part in enumerate(data.blend):
            file = TokenFile(part.path)
            documents = split_bounds(data.split.sizes, split, documents=len(file), prefix=part.path)
            key = (seed, number, SPLITS.index(split))
            self._streams.append(Stream(file, documents=documents, seq_length=data.seq_length, seed=key))
        self._once = lru_cache(maxsize=1)(self._find_once)

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index`` of the endless sequence.

        Raises:
            DataError: A token id is not in the model's vocabulary.
        """
        return self._read(*self._blend.locate(index))

    def _read(self, part: int, local: int) -> Sample:
        """Return sample ``local`` of a part's own sequence."""
        stream = self._streams[part]
        tokens, documents = stream.sample(local)
        if int(tokens.max()) >= self._vocab_size or int(tokens.min()) < 0:
            worst = int(tokens.max()) if int(tokens.max()) >= self._vocab_size else int(tokens.min())
            raise DataError(
                f"{stream.file.prefix}.bin holds token id {worst}, but model.vocab_size={self._vocab_size} allows 0 to "
                f"{self._vocab_size - 1}; the data was built with another tokenizer than the model's"
            )
        positions = np.arange(len(tokens))
        if self._isolate:
            new = np.flatnonzero(np.diff(documents, prepend=-1))
            positions -= np.repeat(new, np.diff(new, append=len(tokens)))
        return Sample(tokens=tokens, documents=documents, positions=positions)

    def micro_batch(self, indices: Sequence[int]) -> MicroBatch:
        """Stack samples into ``[len(indices), seq]`` tensors.

        With ``isolate_documents`` the last token of a document does not predict the first of the next one: its loss
        is masked, for nothing in its context could tell.
        """
        return self._stacked([self[index] for index in indices])

    def _stacked(self, samples: Sequence[Sample]) -> MicroBatch:
        tokens = np.stack([sample.tokens for sample in samples])
        documents = np.stack([sample.documents for sample in samples])
        positions = np.stack([sample.positions for sample in samples])
        mask = np.ones(tokens[:, 1:].shape, np.float32)
        if self._isolate:
            mask[documents[:, 1:] != documents[:, :-1]] = 0.0
        batch = MicroBatch(
            tokens=torch.from_numpy(np.ascontiguousarray(tokens[:, :-1])),
            labels=torch.from_numpy(np.ascontiguousarray(tokens[:, 1:])),
            loss_mask=torch.from_numpy(mask),
            position_ids=torch.from_numpy(np.ascontiguousarray(positions[:, :-1])),
        )
        if self._isolate:
            batch["documents"] = torch.from_numpy(np.ascontiguousarray(documents[:, :-1]))
        return batch

    def global_batch(self, first: int, *, batch: BatchPlan, dp_rank: int, dp_size: int) -> list[MicroBatch]:
        """Return one replica's part of the global batch that begins with sample ``first``."""
        return [self.micro_batch(indices) for indices in replica_samples(first, batch, dp_rank, dp_size)]

    def evaluation(self, limit: int, *, batch: BatchPlan, dp_rank: int, dp_size: int) -> Iterator[list[MicroBatch]]:
        """Yield one replica's part of each global batch of an evaluation, see ``samples.SampleSource``.

        The samples are the first of the endless sequence, without those that it repeats: a part of the blend that is
        used up leaves its place to the others.
        """
        rows = self._once(limit)
        for slots in deal(len(rows), batch=batch, dp_rank=dp_rank, dp_size=dp_size):
            yield [self._padded([rows[k] for piece in slot for k in piece.rows], batch.micro_batch) for slot in slots]

    def _padded(self, rows: Sequence[tuple[int, int]], size: int) -> MicroBatch:
        """Stack samples and fill the micro-batch up with rows that count nothing."""
        zeros = np.zeros(self._seq_length + 1, np.int64)
        nothing = Sample(tokens=zeros, documents=zeros, positions=zeros)
        found = self._stacked([*(self._read(*row) for row in rows), *[nothing] * (size - len(rows))])
        found["loss_mask"][len(rows) :] = 0.0
        return found

    def _find_once(self, limit: int) -> list[tuple[int, int]]:
        return blend_once(self._weights, [stream.windows for stream in self._streams], limit=limit)

    def __len__(self) -> int:
        """Return the number of different samples: one pass over each part of the blend."""
        return sum(stream.windows for stream in self._streams)


def replica_samples(first: int, batch: BatchPlan, dp_rank: int, dp_size: int) -> list[range]:
    """Return the sample numbers of each micro-batch of one replica in the global batch that begins at ``first``."""
    starts = (first + (m * dp_size + dp_rank) * batch.micro_batch for m in range(batch.accumulation))
    return [range(start, start + batch.micro_batch) for start in starts]
