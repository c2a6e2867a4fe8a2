"""Train a SentencePiece tokenizer with LLaMA's settings, the same model on every machine."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from llama_scale.data.documents import Source
from llama_scale.data.output import write_file
from llama_scale.errors import DataError

ModelType = Literal["bpe", "unigram"]

LEAST_VOCABULARY = 3 + 256 + 1
"""Special pieces, bytes, and one that stands for text."""
LARGEST_VOCABULARY = 2**31 - 1
LEAST_LINES = 101
"""SentencePiece takes no smaller sample."""
LARGEST_SEED = 2**32 - 1

_THREADS = 16
"""Fixed, since Unigram's sums depend on how the text is dealt to threads."""
_LONGEST_LINE_BYTES = 1 << 16
_TOO_HIGH = re.compile(r"Vocabulary size too high \((\d+)\)\. Please set it to a value <= (\d+)")
_TOO_LOW = re.compile(r"smaller than required_chars\. (\d+) vs (\d+)")


def train_sentencepiece(
    source: Source,
    output: Path,
    *,
    vocab_size: int,
    model_type: ModelType = "bpe",
    max_lines: int = 2_000_000,
    seed: int = 1234,
    force: bool = False,
) -> Path:
    """Train a tokenizer and write it.

    LLaMA's conventions: unk 0, bos 1, eos 2, no pad, byte fallback, digits one by one, a space before the text, text
    left as it is (no normalization, no whitespace removed).

    Args:
        source: The text; each of its lines is a sentence, since no piece spans lines.
        output: The model file, or a folder for ``tokenizer.model``.
        vocab_size: Pieces, with the 3 special ones and the 256 bytes.
        model_type: ``bpe`` as LLaMA, or ``unigram``.
        max_lines: Lines to train on; of a longer text a random sample is taken.
        seed: Seed of that sample.
        force: Replace an existing model.

    Returns:
        The model file.

    Raises:
        DataError: The text is missing, empty or too small for this vocabulary (the largest one is named), or the
            output exists.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise DataError("sentencepiece is not installed: pip install 'llama-scale[train]'") from error
    target = output if output.suffix == ".model" else output / "tokenizer.model"
    if target.exists() and not force:
        raise DataError(f"{target} exists; token files made with it would no longer fit: name another, or --force")
    lines = _Lines(source)
    model = io.BytesIO()
    sentencepiece.set_min_log_level(2)
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            input_sentence_size=max_lines,
            shuffle_input_sentence=True,
            max_sentence_length=_LONGEST_LINE_BYTES,
            num_threads=_THREADS,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            character_coverage=0.99995,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
        )
    except RuntimeError as error:
        if lines.fault is not None:
            raise lines.fault from error
        raise _explain(error, vocab_size=vocab_size, lines=lines.count) from error
    if lines.fault is not None:
        raise lines.fault
    write_file(target, model.getvalue())
    return target


class _Lines:
    """Hand lines to SentencePiece; keeps the error that it would only report as 'unknown'."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.count = 0
        self.fault: DataError | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for document in self._source.documents():
                for line in document.splitlines():
                    for piece in _cut(line):
                        self.count += 1
                        yield piece
        except DataError as error:
            self.fault = error


def _cut(line: str) -> Iterator[str]:
    """Cut a line that SentencePiece would leave out for its length; NUL is reserved there."""
    line = line.replace("\0", " ")
    step = _LONGEST_LINE_BYTES // 4
    for start in range(0, len(line), step):
        if (piece := line[start : start + step]).strip():
            yield piece


def _explain(error: RuntimeError, *, vocab_size: int, lines: int) -> DataError:
    text = " ".join(str(error).split())
    if lines == 0:
        return DataError("the input holds no text: every document is empty; name files with text by --input")
    if match := _TOO_HIGH.search(text):
        return DataError(
            f"--vocab-size {vocab_size} is too large for this text ({lines} lines); the largest possible is "
            f"{match[2]}: ask for that or less, or give more text"
        )
    if match := _TOO_LOW.search(text):
        return DataError(
            f"--vocab-size {vocab_size} is too small: 3 special pieces, 256 bytes and the text's characters need "
            f"at least {match[2]}"
        )
    return DataError(f"SentencePiece could not train a tokenizer of {vocab_size} pieces: {text}")
