"""What was damaged after saving is refused, and the message names the file and what to do."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llama_scale.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    list_complete,
    load_manifest,
    newest_complete,
    verify_files,
)
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.checkpoint.safetensors_file import SafetensorsFile
from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box
from tests.unit.checkpoint.cuts import cut_of, save

W = torch.arange(24, dtype=torch.float32).view(4, 6)
SHARD = "shard-00001.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path, [[cut_of(W, Box((0, 0), (4, 3)))], [cut_of(W, Box((0, 3), (4, 3)))]], step=7)


def test_an_undamaged_one_is_good(saved: Path) -> None:
    verify_files(saved)
    assert newest_complete(saved.parent) == saved


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncate, r"it has \d+ bytes, its manifest says \d+"),
        (flip, "its SHA-256 is not the one in its manifest"),
        (Path.unlink, "it is missing"),
        (lambda path: (path.unlink(), path.mkdir()), r"it has \d+ bytes|cannot be read"),
    ],
)
def test_a_damaged_shard_is_named(saved: Path, harm: Callable[[Path], object], message: str) -> None:
    harm(saved / SHARD)
    with pytest.raises(CheckpointError, match=message) as caught:
        verify_files(saved)
    assert str(saved / SHARD) in str(caught.value)
    assert "checkpoint step-00000007 is damaged" in str(caught.value)
    assert f"remove the folder {saved} to go on from the checkpoint before it" in str(caught.value)
    with pytest.raises(CheckpointError, match=message):
        CheckpointReader(saved, verify="hashes")


def test_an_unreadable_shard_is_named(saved: Path) -> None:
    (saved / SHARD).unlink()
    (saved / SHARD).symlink_to(SHARD)  # a loop: stat fails for root as well
    with pytest.raises(CheckpointError, match=rf"{SHARD}: it cannot be read \(Too many levels"):
        verify_files(saved)


def test_any_flipped_bit_is_refused(saved: Path) -> None:
    rng = random.Random(1)
    path = saved / SHARD
    good = path.read_bytes()
    for _ in range(40):
        at = rng.randrange(len(good) * 8)
        bad = bytearray(good)
        bad[at // 8] ^= 1 << (at % 8)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=SHARD):
            verify_files(saved)
    path.write_bytes(good)
    verify_files(saved)


def test_only_the_given_shards_are_checked(saved: Path) -> None:
    flip(saved / SHARD)
    shards = load_manifest(saved).shards
    verify_files(saved, shards=shards[:1])
    with pytest.raises(CheckpointError, match=SHARD):
        verify_files(saved, shards=shards[1:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is no JSON"),
        ("{", "it is no JSON"),
        ("\udcff", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[1]", "document: Input should be an object"),
        ("{}", "Field required"),
        ('{"format": 1, "step": -1}', "step: Input should be greater than or equal to 0"),
        ('{"format": "x"}', "format: Input should be 1"),
    ],
)
def test_a_damaged_manifest_is_named(saved: Path, text: str, message: str) -> None:
    (saved / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_manifest(saved)
    assert f"{saved / MANIFEST} is damaged" in str(caught.value)
    assert f"remove the folder {saved} to resume from the checkpoint before it" in str(caught.value)


def test_a_newer_format_is_refused(saved: Path) -> None:
    data = json.loads((saved / MANIFEST).read_text())
    (saved / MANIFEST).write_text(json.dumps(data | {"format": FORMAT + 1}))
    with pytest.raises(CheckpointError, match=r"has format 2; this llama-scale reads formats up to 1: update"):
        load_manifest(saved)


def test_a_shard_name_cannot_leave_the_folder(saved: Path) -> None:
    data = json.loads((saved / MANIFEST).read_text())
    data["shards"][0]["file"] = "../secret"
    (saved / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"shards\.0\.file: String should match pattern"):
        load_manifest(saved)


@pytest.mark.parametrize("missing", ["manifest", "folder"])
def test_an_unfinished_one_is_no_checkpoint(saved: Path, missing: str) -> None:
    if missing == "manifest":
        (saved / MANIFEST).unlink()
    target = saved if missing == "manifest" else saved / "nowhere"
    what = "has no manifest.json" if missing == "manifest" else "does not exist"
    with pytest.raises(CheckpointError, match=f"is no complete checkpoint: it {what}"):
        load_manifest(target)
    assert newest_complete(target) is None


def test_an_unreadable_manifest_is_named(saved: Path) -> None:
    (saved / MANIFEST).unlink()
    (saved / MANIFEST).mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*manifest\.json: Is a directory"):
        load_manifest(saved)


def test_newest_is_by_step_and_skips_what_is_not_complete(saved: Path) -> None:
    root = saved.parent
    older = save(root, [[cut_of(W, Box.whole((4, 6)))]], step=3)
    (root / "step-00000009").mkdir()
    save(root, [[cut_of(W, Box.whole((4, 6)))]], step=11).rename(root / "step-00000011.tmp-0a")
    save(root, [[cut_of(W, Box.whole((4, 6)))]], step=12).rename(root / "my-backup")
    (root / "step-00000010").write_text("a file")
    assert list_complete(root) == [older, saved]
    assert newest_complete(root / "nothing") is None


def test_a_manifest_that_misses_a_piece_is_refused_when_read(saved: Path) -> None:
    data = json.loads((saved / MANIFEST).read_text())
    data["shards"][1]["pieces"] = {}
    (saved / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"step-00000007 is damaged: only 12 of the 24 elements of model/w"):
        CheckpointReader(saved).read("model", "w")


def test_a_replaced_shard_is_refused_when_read(saved: Path) -> None:
    data = json.loads((saved / MANIFEST).read_text())
    data["tensors"]["model"]["w"]["dtype"] = "int32"
    (saved / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"float32 \[4, 3\], the manifest says int32"):
        CheckpointReader(saved).read("model", "w")


def test_a_tensor_that_is_not_there_is_refused(saved: Path) -> None:
    reader = CheckpointReader(saved)
    assert reader.tensors("model") == ("w",)
    assert reader.tensors("exp_avg") == ()
    with pytest.raises(CheckpointError, match=r"has no tensor exp_avg/w \(it has the groups model\)"):
        reader.read("exp_avg", "w")
    with pytest.raises(CheckpointError, match=r"model/w has the shape \[4, 6\].*another model"):
        reader.read("model", "w", Box((0, 4), (4, 3)))
    with pytest.raises(CheckpointError, match="another model"):
        reader.read("model", "w", Box((0,), (4,)))


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header is not valid"),
        (b"abc", "the file has 3"),
        ((1 << 60).to_bytes(8, "little"), "the header should have"),
        (safetensors_bytes(b"{"), "header is not valid"),
        (safetensors_bytes(b"\xff\xfe"), "header is not valid"),
        (safetensors_bytes([1]), "header is not valid"),
        (safetensors_bytes({"a": 1}), "header is not valid"),
        (safetensors_bytes({"a": ROW}, b"1234567"), "the data should have 8 bytes, the file has 7"),
        (safetensors_bytes({"a": ROW}, b"123456789"), "the data should have 8 bytes, the file has 9"),
        (safetensors_bytes({"a": ROW | {"dtype": "F8_E4M3"}}, b"12345678"), "'F8_E4M3' is not supported"),
        (safetensors_bytes({"a": ROW | {"shape": [3]}}, b"12345678"), r"do not fit shape \[3\]"),
        (safetensors_bytes({"a": ROW | {"shape": [-1, -2]}}, b"12345678"), "do not fit shape"),
        (safetensors_bytes({"a": ROW | {"data_offsets": [4, 12]}}, b"12345678"), "do not fit"),
        (safetensors_bytes({"a": ROW | {"data_offsets": "xy"}}, b"12345678"), "header is not valid"),
    ],
)
def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert f"{path} is damaged" in str(caught.value)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot open .*x\.safetensors: No such file"):
        SafetensorsFile(tmp_path / "x.safetensors")


@pytest.mark.parametrize("threads", [1, 3])
def test_damage_is_found_by_any_number_of_threads(saved: Path, threads: int) -> None:
    verify_files(saved, threads=threads)
    shard = saved / load_manifest(saved).shards[-1].file
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{shard.name}: its SHA-256 is not the one in its manifest"):
        verify_files(saved, threads=threads)
    verify_files(saved, threads=threads, hashes=False)
