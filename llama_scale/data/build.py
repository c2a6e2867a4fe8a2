"""Turn text into token files: read, encode in several processes, write in the order of the input."""

from __future__ import annotations

import json
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from llama_scale import __version__
from llama_scale.data.documents import Source
from llama_scale.data.output import explain_os_errors, write_file
from llama_scale.data.statistics import entropy_nats
from llama_scale.data.tokenizer import Tokenizer, load_tokenizer
from llama_scale.data.writer import TokenFileWriter
from llama_scale.errors import DataError

_BATCH_CHARS = 1 << 18
"""Text per task of a worker: large enough to hide the cost of handing it over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Report how far a build is."""

    read_bytes: int
    total_bytes: int
    documents: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFileRecord:
    """Describe a .bin/.idx pair; stored beside it as PREFIX.json.

    Args:
        documents: Documents with at least one token.
        empty_documents: Documents of the input that were left out.
        tokens: Ids in the .bin file, EOS included.
        max_token_id: Largest id that occurs.
        dtype: numpy's name of the integer type.
        unigram_entropy_nats: Entropy of the distribution of ids.
        append_eos: Whether each document ends with EOS.
        eos_id: Its id.
        start_ids: Ids before each document, as the tokenizer itself puts them before a text: its BOS, or none.
        special_in_text: Documents whose text spells a special token, which was read as that token.
        tokenizer: ``kind``, ``path``, ``vocab_size`` and the ``sha256`` of its file.
        sha256: Of the ``bin`` and the ``idx`` file.
        inputs: ``path`` and ``bytes`` of the text files.
    """

    documents: int
    empty_documents: int
    tokens: int
    max_token_id: int
    dtype: str
    unigram_entropy_nats: float
    append_eos: bool
    eos_id: int | None
    start_ids: list[int]
    special_in_text: int
    tokenizer: dict[str, str | int]
    sha256: dict[str, str]
    inputs: list[dict[str, str | int]]
    made_by: str = f"llama-scale {__version__}"


def build_token_files(
    source: Source,
    tokenizer: Path,
    output: Path,
    *,
    append_eos: bool = True,
    workers: int = 1,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> TokenFileRecord:
    """Write PREFIX.bin, PREFIX.idx and PREFIX.json.

    A document begins as ``tokenizer(text)`` of transformers does, with BOS where the tokenizer puts one; whether it
    ends with EOS is ``append_eos``'s alone. The files depend on text, tokenizer and ``append_eos``, not on ``workers``.

    Args:
        source: The text.
        tokenizer: SentencePiece model, tokenizer.json, or a folder with one of them.
        output: PREFIX; its folder is made if need be.
        append_eos: End each document with the tokenizer's EOS.
        workers: Processes that encode; 1 encodes in this one.
        force: Replace existing files.
        on_progress: Called after each batch.

    Raises:
        DataError: Bad input, a tokenizer without EOS, existing output, or a full disk; nothing is left behind.
    """
    _check_output(output, force=force)
    loaded = load_tokenizer(tokenizer)
    if append_eos and loaded.eos_id is None:
        raise DataError(
            f"the tokenizer {loaded.file} has no EOS token to end documents with; name one as eos_token in its "
            "tokenizer_config.json, or build with --no-append-eos"
        )
    with explain_os_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    encoder = _DocumentEncoder(loaded, append_eos=append_eos)
    read = _ReadCounter()
    total, empty, special = source.size_bytes, 0, 0
    with TokenFileWriter(output, vocab_size=loaded.vocab_size) as writer:
        batches = _batches(source.documents(on_read=read))
        for ids, lengths, spelled in _encode(batches, encoder, workers=workers):
            special += spelled
            kept = [length for length in lengths if length]
            empty += len(lengths) - len(kept)
            writer.add(ids, kept)
            if on_progress:
                done, tokens = len(writer.lengths), int(writer.counts.sum())
                on_progress(Progress(read_bytes=read.bytes, total_bytes=total, documents=done, tokens=tokens))
        digests = writer.commit()
    record = _record(writer, loaded, source, append_eos=append_eos, empty=empty, special=special, digests=digests)
    write_file(_beside(output, ".json"), (json.dumps(asdict(record), indent=2) + "\n").encode())
    return record


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def _check_output(output: Path, *, force: bool) -> None:
    if output.suffix in (".bin", ".idx"):
        raise DataError(f"--output {output}: give the prefix, {output.with_suffix('')}; .bin and .idx are added to it")
    if output.is_dir():
        raise DataError(f"--output {output} is a folder; give a prefix in it, for example {output / 'corpus'}")
    there = [str(path) for suffix in (".bin", ".idx", ".json") if (path := _beside(output, suffix)).exists()]
    if there and not force:
        raise DataError(f"{', '.join(there)} exist; choose another --output, or replace them with --force")


class _ReadCounter:
    """Remember how many bytes have been read."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, read: int) -> None:
        self.bytes = read


_Encoded = tuple[np.ndarray, list[int], int]
"""Ids of a batch, the lengths of its documents, and how many of these spell a special token."""


class _DocumentEncoder:
    """Encode a batch of documents to one array: what starts a document, its ids, EOS; nothing for an empty one."""

    def __init__(self, tokenizer: Tokenizer, *, append_eos: bool) -> None:
        self._encode = tokenizer.encode
        self._start = list(tokenizer.start_ids)
        self._end = [tokenizer.eos_id] if append_eos and tokenizer.eos_id is not None else []
        self._special = tokenizer.special_ids

    def __call__(self, texts: list[str]) -> _Encoded:
        found = self._encode(texts)
        special = sum(not self._special.isdisjoint(ids) for ids in found)
        documents = [[*self._start, *ids, *self._end] if ids else ids for ids in found]
        flat = [token for ids in documents for token in ids]
        return np.array(flat, np.int64), [len(ids) for ids in documents], special


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(batches: Iterator[list[str]], encoder: _DocumentEncoder, *, workers: int) -> Iterator[_Encoded]:
    """Encode batches, in order; at most two batches a worker are under way, which bounds the memory."""
    if workers == 1:
        yield from map(encoder, batches)
        return
    waiting: deque[Future[_Encoded]] = deque()
    context = multiprocessing.get_context("spawn")  # numpy and tokenizers hold threads, which fork does not survive
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(encoder,)) as pool:
        try:
            for batch in batches:
                waiting.append(pool.submit(_encode_in_worker, batch))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                f"one of the {workers} encoding processes was killed, perhaps for want of memory; use fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker_encoder: _DocumentEncoder | None = None


def _start_worker(encoder: _DocumentEncoder) -> None:
    global _worker_encoder  # noqa: PLW0603 - a pool's process has no other place for what it is given once
    _worker_encoder = encoder


def _encode_in_worker(texts: list[str]) -> _Encoded:
    assert _worker_encoder is not None
    return _worker_encoder(texts)


def _record(
    writer: TokenFileWriter,
    tokenizer: Tokenizer,
    source: Source,
    *,
    append_eos: bool,
    empty: int,
    special: int,
    digests: dict[str, str],
) -> TokenFileRecord:
    return TokenFileRecord(
        documents=len(writer.lengths),
        empty_documents=empty,
        tokens=int(writer.counts.sum()),
        max_token_id=int(np.flatnonzero(writer.counts)[-1]),
        dtype=np.dtype(writer.dtype).name,
        unigram_entropy_nats=entropy_nats(writer.counts),
        append_eos=append_eos,
        eos_id=tokenizer.eos_id,
        start_ids=list(tokenizer.start_ids),
        special_in_text=special,
        tokenizer={
            "kind": tokenizer.kind,
            "path": str(tokenizer.file.resolve()),
            "vocab_size": tokenizer.vocab_size,
            "sha256": tokenizer.digest(),
        },
        sha256=digests,
        inputs=[{"path": str(path.resolve()), "bytes": path.stat().st_size} for path in source.files],
    )
