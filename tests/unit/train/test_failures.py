from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llama_scale.errors import CheckpointError, DataError, LaunchError, PluginError, SpecError
from llama_scale.train import failures


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (DataError("x"), "data", 5),
        (SpecError("x"), "config", 3),
        (PluginError("x"), "config", 4),
        (CheckpointError("Connection closed by peer is quoted here"), "crash", 5),
        (LaunchError("x"), "crash", 5),
        (ValueError("x"), "crash", 5),
        (MemoryError(), "oom", 5),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "oom", 5),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "oom", 5),
        (RuntimeError("[/x/pair.cc:553] Connection closed by peer [127.0.0.1]:2374"), "collateral", 5),
        (RuntimeError("Timed out waiting 1000ms for recv operation to complete"), "collateral", 5),
        (torch.distributed.DistNetworkError("The client socket has timed out after 600s"), "collateral", 5),
        (RuntimeError("NCCL communicator was aborted on rank 3"), "collateral", 5),
        (ConnectionResetError("[Errno 104] Connection reset by peer"), "collateral", 5),
    ],
)
def test_kind_and_exit_code_of_an_error(error: BaseException, kind: str, code: int) -> None:
    assert failures.classify(error) == kind
    assert failures.exit_code(error) == code


def test_report_is_written_whole_and_read_back(tmp_path: Path) -> None:
    found = []
    for rank in (7, 0):
        try:
            raise RuntimeError("stack of x is missing")
        except RuntimeError as error:
            found.append(failures.report(error, rank=rank))
            failures.write_report(tmp_path / "attempts" / "000", found[-1])
    folder = tmp_path / "attempts" / "000"
    assert sorted(p.name for p in folder.iterdir()) == ["error-rank-00000.json", "error-rank-00007.json"]
    assert failures.read_reports(folder) == found  # earliest first
    values = json.loads((folder / "error-rank-00007.json").read_text())
    assert set(values) == {"time_utc", "rank", "kind", "error", "traceback"}
    assert values["error"] == "RuntimeError: stack of x is missing"
    assert "in test_report_is_written_whole_and_read_back" in values["traceback"]


def test_report_of_an_error_to_mend_has_no_traceback_unless_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_SCALE_DEBUG", raising=False)
    assert failures.report(CheckpointError("shard-00001.safetensors is damaged"), rank=1).traceback == ""

    monkeypatch.setenv("LLAMA_SCALE_DEBUG", "1")
    assert "is damaged" in failures.report(CheckpointError("shard-00001.safetensors is damaged"), rank=1).traceback


def test_of_a_large_run_one_rank_a_host_says_that_it_lost_a_peer(tmp_path: Path) -> None:
    assert failures.speaks("collateral", local_rank=3, world_size=64)
    assert failures.speaks("crash", local_rank=3, world_size=16_384)
    assert failures.speaks("collateral", local_rank=0, world_size=16_384)
    assert not failures.speaks("collateral", local_rank=3, world_size=16_384)
    for rank in (7, 8, 15, 16):
        report = failures.ErrorReport(time_utc=f"{rank:03d}", rank=rank, kind="crash", error="e", traceback="")
        failures.write_report(tmp_path, report)
    assert [report.rank for report in failures.read_reports(tmp_path, ranks=range(8, 16))] == [8, 15]
