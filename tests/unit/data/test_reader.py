from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from llama_scale.data.reader import TokenFile
from llama_scale.errors import DataError
from tests.unit.train.token_files import write_token_file

DOCUMENTS = [[1, 2, 3], [], [4, 5], [6]]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return write_token_file(tmp_path / "a b", DOCUMENTS)


@pytest.mark.parametrize("code", [4, 8])
def test_documents_are_read_back(tmp_path: Path, code: int) -> None:
    file = TokenFile(write_token_file(tmp_path / "t", DOCUMENTS, code=code))
    assert len(file) == 4
    assert [file.read(d, 0, int(n)).tolist() for d, n in enumerate(file.lengths)] == DOCUMENTS
    assert file.read(0, 1, 3).tolist() == [2, 3]


def test_documents_of_several_sequences_are_joined(tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(np.arange(6, dtype=np.uint16).tobytes())
    lengths, pointers, bounds = np.array([2, 3, 1], np.int32), np.array([0, 4, 10]), np.array([0, 2, 3])
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 3)
    (tmp_path / "t.idx").write_bytes(head + lengths.tobytes() + pointers.tobytes() + bounds.tobytes())
    file = TokenFile(str(tmp_path / "t"))
    assert file.lengths.tolist() == [5, 1]
    assert file.read(0, 0, 5).tolist() == [0, 1, 2, 3, 4]


def test_file_without_tokens_has_no_documents_to_read(tmp_path: Path) -> None:
    assert len(TokenFile(write_token_file(tmp_path / "t", []))) == 0


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_missing_file_is_named(prefix: str, suffix: str) -> None:
    Path(prefix + suffix).unlink()
    with pytest.raises(DataError, match=rf"token file .*a b\{suffix} is missing; data\.blend\.path names the common"):
        TokenFile(prefix)


def test_truncated_tokens_are_told_in_bytes(prefix: str) -> None:
    tokens = Path(prefix + ".bin")
    tokens.write_bytes(tokens.read_bytes()[:-3])
    with pytest.raises(
        DataError, match=r"has 9 bytes, but its index describes 12 \(6 tokens of 2 bytes\); it is trunc"
    ):
        TokenFile(prefix)


def test_tokens_of_another_data_set_are_refused(prefix: str) -> None:
    with Path(prefix + ".bin").open("ab") as file:
        file.write(b"\x00\x00")
    with pytest.raises(DataError, match="it is longer than its index says, or of another data set"):
        TokenFile(prefix)


def _damage(prefix: str, *, at: int, value: bytes) -> None:
    path = Path(prefix + ".idx")
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, b"GARBAGE", "is not an index of token files"),
        (9, struct.pack("<Q", 7), "has index version 7; only version 1"),
        (17, b"\x06", "has token type code 6; token ids need an integer type"),
        (18, struct.pack("<Q", 5), "but its header promises"),
        (34, struct.pack("<i", 4), "sequences do not follow each other without gaps"),
        (34 + 12 * 4, struct.pack("<q", 1), "document bounds do not cover its 4 sequences"),
    ],
)
def test_damaged_index_is_refused(prefix: str, at: int, value: bytes, text: str) -> None:
    _damage(prefix, at=at, value=value)
    with pytest.raises(DataError, match=text):
        TokenFile(prefix)


@pytest.mark.parametrize("left", [0, 20, 40])
def test_truncated_index_is_refused(prefix: str, left: int) -> None:
    path = Path(prefix + ".idx")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DataError, match=r"cut off in its|is truncated or damaged"):
        TokenFile(prefix)
