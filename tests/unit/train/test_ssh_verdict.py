"""Verdicts over several hosts: who failed first, who only lost its peers, which host was lost."""

from __future__ import annotations

import signal
from pathlib import Path

from llama_scale.train.failures import ErrorReport, Kind, write_report
from llama_scale.train.node_report import NodeReport
from llama_scale.train.ssh_verdict import NodeEnd, judge_nodes
from llama_scale.train.verdict import FirstFailure, Verdict
from llama_scale.train.watch import Death

HOSTS = ("node1", "node2")


def judge(folder: Path, ends: dict[int, NodeEnd], *, stopped: str | None = None) -> Verdict:
    return judge_nodes(folder, hosts=HOSTS, nproc=2, ends=ends, stopped=stopped, stop_timed_out=False)


def report(folder: Path, rank: int, kind: Kind, error: str, *, second: int) -> None:
    time_utc = f"2026-01-01T00:00:{second:02d}+00:00"
    write_report(folder, ErrorReport(time_utc=time_utc, rank=rank, kind=kind, error=error, traceback=""))


def deaths(folder: Path, node: int, *entries: tuple[int, int]) -> None:
    found = tuple(
        Death(local_rank=rank, time_utc="2026-01-01T00:00:05+00:00", exit_code=code, by_agent=False)
        for rank, code in entries
    )
    NodeReport(first_rank=2 * node, deaths=found, out_of_memory=False, stop_timed_out=False).write_quietly(folder, node)


def test_good_ends(tmp_path: Path) -> None:
    assert judge(tmp_path, {0: NodeEnd(exit_code=0), 1: NodeEnd(exit_code=0)}).state == "ok"
    saved = judge(tmp_path, {0: NodeEnd(exit_code=75, reason="stop"), 1: NodeEnd(exit_code=75)}, stopped="SIGTERM")
    assert (saved.state, saved.exit_code) == ("preempted", 75)


def test_killed_rank_is_the_culprit_although_others_wrote_errors_earlier(tmp_path: Path) -> None:
    report(tmp_path, 0, "collateral", "Connection reset by peer", second=1)
    report(tmp_path, 2, "collateral", "Connection reset by peer", second=2)
    deaths(tmp_path, 1, (1, -signal.SIGKILL), (0, 5))
    verdict = judge(tmp_path, {0: NodeEnd(exit_code=5), 1: NodeEnd(exit_code=5)})
    assert verdict.first_failure is not None and verdict.first_failure.rank == 3
    assert verdict.victims == (0, 2)
    assert verdict.message.endswith("[rank 3 ran on node2]")


def test_lost_host_is_named_when_no_rank_is_to_blame(tmp_path: Path) -> None:
    report(tmp_path, 0, "collateral", "Timed out waiting", second=1)
    verdict = judge(tmp_path, {0: NodeEnd(exit_code=-9, reason="end"), 1: NodeEnd(lost="no sign of life for 30 s")})
    assert verdict.first_failure is not None and verdict.first_failure.kind == "node-lost"
    assert verdict.message == "host node2 (ranks 2-3): no sign of life for 30 s"
    assert verdict.victims == (0, 1)


def test_rank_that_crashed_is_named_before_a_host_that_was_lost(tmp_path: Path) -> None:
    report(tmp_path, 1, "crash", "ValueError: x", second=1)
    verdict = judge(tmp_path, {0: NodeEnd(exit_code=5), 1: NodeEnd(lost="gone")})
    assert verdict.first_failure is not None and verdict.first_failure.rank == 1


def test_host_that_did_not_hear_the_head_is_a_lost_one(tmp_path: Path) -> None:
    verdict = judge(tmp_path, {0: NodeEnd(exit_code=75), 1: NodeEnd(exit_code=75, reason="lease")})
    assert verdict.first_failure is not None and verdict.first_failure.kind == "node-lost"
    assert "host node2 (ranks 2-3) did not hear the head machine" in verdict.message


def test_killed_agent_is_named(tmp_path: Path) -> None:
    verdict = judge(tmp_path, {0: NodeEnd(exit_code=-9), 1: NodeEnd(exit_code=-9, reason="end")})
    assert verdict.message == "the agent of host node1 (ranks 0-1) was killed by SIGKILL"


def test_agent_that_could_not_use_the_spec_is_named_with_its_exit_status(tmp_path: Path) -> None:
    failure = FirstFailure(rank=None, kind="config", error="the spec is wrong")
    Verdict(state="failed", exit_code=3, first_failure=failure, message="the spec is wrong").write(
        tmp_path / "verdict-node-00001.json"
    )
    verdict = judge(tmp_path, {0: NodeEnd(exit_code=-9, reason="end"), 1: NodeEnd(exit_code=3)})
    assert verdict.exit_code == 3
    assert verdict.message == "the spec is wrong [agent of node2]"
