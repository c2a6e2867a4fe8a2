from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llama_scale.errors import PREEMPTED_EXIT
from llama_scale.train import launched
from llama_scale.train.rank_records import (
    Control,
    LeaseWatch,
    RankJob,
    RankRecord,
    parse_environment,
    rank_environment,
    read_records,
)
from tests.live_runs import environment

_HOSTILE = 'it\'s "$(touch pwned)" `x` \\ $HOME\n\u00fc; #'


@pytest.fixture
def job(tmp_path: Path) -> RankJob:
    """A job in a run folder with a hostile name, which its agent has prepared."""
    run = tmp_path / _HOSTILE
    job = RankJob(run=str(run), attempt=2, environment=str(run / "environment"))
    Control(job.attempt_dir).begin()
    Path(job.environment).write_text("A=b\n", encoding="utf-8")
    return job


def _rank(job: RankJob, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llama_scale.train.launched", job.encode()],
        env=environment(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", LOCAL_SIZE="2", **variables),
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def test_job_passes_through_a_remote_shell_unquoted(job: RankJob) -> None:
    out = subprocess.run(["sh", "-c", f"printf %s {job.encode()}"], capture_output=True, text=True, check=True).stdout
    assert RankJob.decode(out) == job


def test_assignments_are_read_as_a_shell_reads_them() -> None:
    assert parse_environment(f"A={shlex.quote(_HOSTILE)}\nB=''\n") == {"A": _HOSTILE, "B": ""}


def test_ranks_of_a_host_share_its_cores_unless_told_otherwise() -> None:
    own = {"LOCAL_SIZE": "4", "A": "own", "PYTHONDONTWRITEBYTECODE": "1"}
    values = rank_environment(own, {"A": "run's"}, cores=10)
    assert values == {"LOCAL_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "A": "run's", "OMP_NUM_THREADS": "2"}
    assert rank_environment(own, {"OMP_NUM_THREADS": "7"}, cores=10)["OMP_NUM_THREADS"] == "7"
    assert rank_environment(own, {}, cores=1)["OMP_NUM_THREADS"] == "1"


def test_lease_ends_when_nothing_changes_whatever_the_clock_says(tmp_path: Path) -> None:
    control = Control(tmp_path)
    control.begin()
    os.utime(control.lease, (1, 1))  # a clock of long ago
    watch = LeaseWatch(control, lease_s=0.2)
    assert not watch.expired()
    time.sleep(0.25)
    os.utime(control.lease, (2, 2))
    assert not watch.expired()
    control.lease.unlink()
    time.sleep(0.25)
    assert watch.expired()


def test_beginning_again_removes_what_an_earlier_try_left(job: RankJob) -> None:
    control = Control(job.attempt_dir)
    RankRecord.begin(0).write(job.attempt_dir)
    for name in ("stop", "end", "error-rank-00000.json", "verdict.json"):
        (job.attempt_dir / name).touch()
    control.begin()
    assert [path.name for path in job.attempt_dir.iterdir()] == ["lease"]


def test_no_second_start_while_a_rank_lives(job: RankJob) -> None:
    control = Control(job.attempt_dir)
    with control.held(), control.held(), pytest.raises(BlockingIOError):
        Control(job.attempt_dir.with_name("003")).begin(patience_s=0.3)
    control.begin()


def test_rank_that_is_not_to_begin_ends_well(job: RankJob) -> None:
    Control(job.attempt_dir).stop.touch()
    code, err = _end(_rank(job))
    assert (code, err) == (0, "")
    assert read_records(job.attempt_dir)[1].exit_code == PREEMPTED_EXIT


def test_rank_whose_worker_cannot_start_says_so(job: RankJob) -> None:
    Path(job.environment).unlink()
    code, err = _end(_rank(job))
    assert code == 1 and "rank 1 on " in err and "cannot start" in err
    assert read_records(job.attempt_dir)[1].exit_code == 1


@pytest.mark.parametrize("cause", ["end", "lease"])
def test_worker_is_killed_when_the_agent_wants_it_or_is_gone(job: RankJob, cause: str) -> None:
    process = _rank(replace(job, lease_s=0.3) if cause == "lease" else job)
    while not read_records(job.attempt_dir):
        time.sleep(0.02)
    if cause == "end":
        Control(job.attempt_dir).end.touch()
    code, _ = _end(process)
    record = read_records(job.attempt_dir)[1]
    assert (record.exit_code, record.by_agent) == (-signal.SIGKILL, True)
    assert code == 128 + signal.SIGKILL
    assert (Path(job.run) / "logs" / "rank-00001.log").is_file()


@pytest.mark.parametrize("arguments", [[], ["x"], ["a", "b"]])
def test_wrong_calls_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert launched.main(arguments) == 2
    assert "usage: RANK=... python -m llama_scale.train.launched JOB" in capsys.readouterr().err
