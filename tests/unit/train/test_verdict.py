from __future__ import annotations

import json
from pathlib import Path

from llama_scale.train.failures import ErrorReport, Kind
from llama_scale.train.verdict import FirstFailure, Verdict, judge_failure
from llama_scale.train.watch import Death


def report(rank: int, second: int, *, kind: Kind = "crash", error: str = "ValueError: no") -> ErrorReport:
    time = f"2026-01-01T00:00:{second:02d}.000000+00:00"
    return ErrorReport(time_utc=time, rank=rank, kind=kind, error=error, traceback=f"Traceback of {rank}")


def death(local_rank: int, second: int, *, exit_code: int, by_agent: bool = False) -> Death:
    time = f"2026-01-01T00:00:{second:02d}.000000+00:00"
    return Death(local_rank=local_rank, time_utc=time, exit_code=exit_code, by_agent=by_agent)


def judge(
    reports: list[ErrorReport], deaths: list[Death], *, out_of_memory: bool = False, stop_timed_out: bool = False
) -> Verdict:
    return judge_failure(
        reports, deaths, first_rank=0, ranks=4, out_of_memory=out_of_memory, stop_timed_out=stop_timed_out
    )


def test_earliest_rank_with_a_fault_of_its_own_is_the_culprit() -> None:
    reports = [report(0, 1, kind="collateral"), report(2, 2), report(1, 3), report(3, 4, kind="collateral")]
    found = judge(reports, [death(r, 5, exit_code=5) for r in range(4)])
    assert found.first_failure is not None
    assert (found.first_failure.rank, found.first_failure.traceback) == (2, "Traceback of 2")
    assert found.victims == (0, 1, 3)
    assert found.exit_code == 5
    assert found.message == "rank 2 failed first: ValueError: no (victims: rank 0, 1, 3)"


def test_killed_rank_that_wrote_nothing_is_the_culprit() -> None:
    reports = [report(0, 2, kind="collateral"), report(1, 2, kind="collateral")]
    deaths = [death(3, 1, exit_code=-9), death(0, 2, exit_code=5), death(2, 4, exit_code=-9, by_agent=True)]
    found = judge(reports, deaths)
    assert found.first_failure is not None
    assert (found.first_failure.rank, found.first_failure.kind) == (3, "crash")
    assert found.first_failure.error.startswith("killed by SIGKILL, by somebody or, if memory ran out, by the kernel")
    assert found.victims == (0, 1, 2)


def test_kill_for_want_of_memory_is_named() -> None:
    found = judge([], [death(1, 1, exit_code=-9)], out_of_memory=True)
    assert found.first_failure is not None
    assert found.first_failure.kind == "oom"
    assert "the machine ran out of memory" in found.message


def test_fault_after_a_kill_does_not_hide_it() -> None:
    found = judge([report(0, 3)], [death(2, 1, exit_code=-11), death(0, 3, exit_code=5)])
    assert found.first_failure is not None
    assert (found.first_failure.rank, found.first_failure.error) == (2, "killed by SIGSEGV")


def test_exit_without_a_word_is_named() -> None:
    found = judge([], [death(1, 1, exit_code=9)])
    assert found.message == "rank 1 failed first: exited with status 9 without an error file; see its log"


def test_rank_that_never_answered_is_suspected() -> None:
    waiting = [report(r, 9, kind="collateral", error="RuntimeError: Timed out waiting") for r in (0, 1, 3)]
    deaths = [death(r, 9, exit_code=5) for r in (0, 1, 3)] + [death(2, 12, exit_code=-9, by_agent=True)]
    found = judge(waiting, deaths)
    assert found.first_failure is not None
    assert found.first_failure.rank == 2
    assert "did not answer (rank 0 waited for it: RuntimeError: Timed out waiting)" in found.message
    assert found.victims == (0, 1, 3)


def test_rank_that_did_not_leave_after_a_stop_is_named() -> None:
    found = judge([], [death(r, 9, exit_code=-9, by_agent=True) for r in range(4)], stop_timed_out=True)
    assert "rank 0 failed first: did not save and leave in time after a stop signal" in found.message


def test_only_victims_leaves_the_earliest_of_them() -> None:
    found = judge([report(r, r, kind="collateral") for r in range(4)], [])
    assert found.first_failure is not None
    assert found.first_failure.rank == 0


def test_silence_everywhere_is_said_so() -> None:
    found = judge([], [])
    assert found.message == "the agent failed first: the ranks ended and none says why; see their logs"


def test_fault_of_the_spec_ends_with_its_exit_code() -> None:
    assert judge([report(0, 1, kind="config")], []).exit_code == 3


def test_verdict_file_has_the_documented_form(tmp_path: Path) -> None:
    failure = FirstFailure(rank=1, kind="oom", error="e", traceback="t", time_utc="u")
    Verdict(state="failed", exit_code=5, first_failure=failure, victims=(0, 2), message="m").write(tmp_path / "v.json")
    assert json.loads((tmp_path / "v.json").read_text()) == {
        "state": "failed",
        "exit_code": 5,
        "first_failure": {"rank": 1, "kind": "oom", "error": "e", "traceback": "t", "time_utc": "u"},
        "victims": [0, 2],
        "message": "m",
    }
