"""What goes wrong while writing loses nothing that was complete, and leaves nothing behind."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from llama_scale.checkpoint.manifest import MANIFEST, TopologyRecord, load_manifest, newest_complete, verify_files
from llama_scale.checkpoint.retention import best_checkpoint, clean_unfinished, prune
from llama_scale.checkpoint.writer import ShardWriter, build_manifest, check_free_space, commit
from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box
from tests.children import in_child
from tests.unit.checkpoint.cuts import SHAPE, cut_of, save

W = torch.randn(512, 6)
WHOLE = Box.whole((512, 6))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that anyone may enter (pytest's own is closed to others)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        Path(folder).chmod(0o755)


def message(function: Callable[[], object]) -> str:
    """Return the message of the CheckpointError that a function raises."""
    with pytest.raises(CheckpointError) as caught:
        function()
    return str(caught.value)


def writer_of(path: Path) -> ShardWriter:
    writer = ShardWriter(path)
    writer.add(cut_of(W, WHOLE))
    return writer


def test_a_full_disk_is_reported_and_the_partial_file_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    text = in_child(lambda: message(writer_of(path).finish), largest_file=5000)
    assert text.startswith(f"cannot save into {tmp_path}: s.safetensors needs ")
    assert "bytes" in text and "are free" in text and "free space or lower checkpoint.keep_last" in text
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_manifest_does_not_make_a_checkpoint(tmp_path: Path) -> None:
    before = save(tmp_path, [[cut_of(W, WHOLE)]], step=1)
    tmp = tmp_path / "step-00000002.tmp-0a"
    tmp.mkdir()
    shard = writer_of(tmp / "shard-00000.safetensors").finish()
    manifest = build_manifest([shard], step=2, samples=8, engine="ddp", topology=TopologyRecord(), shape=SHAPE)
    full = in_child(lambda: message(lambda: commit(tmp, tmp_path / "step-00000002", manifest)), largest_file=100)
    assert re.search(r"manifest\.json needs \d+ bytes", full)
    assert newest_complete(tmp_path) == before
    assert clean_unfinished(tmp_path) == [tmp]
    verify_files(before)


def test_a_shard_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    path.write_text("mine")
    with pytest.raises(CheckpointError, match=r"s\.safetensors exists; another process is writing"):
        writer_of(path).finish()
    assert path.read_text() == "mine"


def test_a_read_only_folder_is_reported(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    denied = in_child(lambda: message(writer_of(open_folder / "s.safetensors").finish), unprivileged=True)
    assert f"cannot save into {open_folder}: Permission denied; check the folder's permissions" in denied


def test_too_little_space_is_refused_before_writing(tmp_path: Path) -> None:
    check_free_space(tmp_path, needed_bytes=[10, 20])
    with pytest.raises(CheckpointError, match=rf"cannot save into {tmp_path}: {10**18 + 1} bytes are needed, \d+ are"):
        check_free_space(tmp_path, needed_bytes=[10**18, 1])


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    first = save(tmp_path, [[cut_of(W, WHOLE)]], step=5)
    digest = load_manifest(first).parameter_digest
    second = save(tmp_path, [[cut_of(W + 1, WHOLE)]], step=5)
    assert (first, [second]) == (second, list(tmp_path.iterdir()))
    assert load_manifest(second).parameter_digest != digest


def test_a_replacement_killed_half_way_loses_nothing(tmp_path: Path) -> None:
    old = save(tmp_path, [[cut_of(W, WHOLE)]], step=5)
    aside = old.rename(tmp_path / "step-00000005.old-0b")
    assert newest_complete(tmp_path) == aside
    assert clean_unfinished(tmp_path) == []
    assert newest_complete(tmp_path) == old


def test_a_replacement_killed_at_the_end_leaves_the_new_one(tmp_path: Path) -> None:
    old = save(tmp_path, [[cut_of(W, WHOLE)]], step=5).rename(tmp_path / "step-00000005.old-0b")
    new = save(tmp_path, [[cut_of(W + 1, WHOLE)]], step=5)
    assert newest_complete(tmp_path) == new
    assert clean_unfinished(tmp_path) == [old]
    assert list(tmp_path.iterdir()) == [new]


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 4.0}
    for step, loss in losses.items():
        save(tmp_path, [[cut_of(W, WHOLE)]], step=step, metrics={"validation_loss": loss})
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000002"
    prune(tmp_path, keep_last=2, keep_best=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004", "step-00000005"]
    prune(tmp_path, keep_last=1, keep_best=False)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]
    assert prune(tmp_path, keep_last=1, keep_best=True) == []


def test_losses_over_other_rows_are_not_compared(tmp_path: Path) -> None:
    for step, (loss, rows) in enumerate([(1.0, None), (3.0, 8), (4.0, 8)], start=1):
        metrics = {"validation_loss": loss} | ({} if rows is None else {"validation_rows": rows})
        save(tmp_path, [[cut_of(W, WHOLE)]], step=step, metrics=metrics)

    assert best_checkpoint(tmp_path) == tmp_path / "step-00000002"


def test_a_checkpoint_with_a_damaged_manifest_is_not_the_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, [[cut_of(W, WHOLE)]], step=1, metrics={"validation_loss": 3.0})
    bad = save(tmp_path, [[cut_of(W, WHOLE)]], step=2, metrics={"validation_loss": 1.0})
    (bad / MANIFEST).write_text("{")
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000001"
    assert f"{bad / MANIFEST} is damaged" in caplog.text


def test_what_cannot_be_removed_is_left_and_logged(open_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        save(open_folder, [[cut_of(W, WHOLE)]], step=step)
    (open_folder / "step-00000003.tmp-0a").mkdir()
    (open_folder / "step-00000003.tmp-0a" / "x").write_text("x")
    open_folder.chmod(0o555)

    def clean() -> str:
        assert prune(open_folder, keep_last=1, keep_best=False) == []
        assert clean_unfinished(open_folder) == []
        return caplog.text

    log = in_child(clean, unprivileged=True)
    assert "cannot remove the old checkpoint" in log
    assert "cannot remove" in log and "step-00000003.tmp-0a" in log
    verify_files(open_folder / "step-00000001")


def test_a_folder_that_cannot_be_read_is_named(open_folder: Path) -> None:
    open_folder.chmod(0o000)
    denied = in_child(lambda: message(lambda: clean_unfinished(open_folder)), unprivileged=True)
    assert re.match(f"cannot read {open_folder}.*: Permission denied", denied)
