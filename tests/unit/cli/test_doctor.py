"""``llama-scale doctor`` on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from tests.live_runs import run_cli, write_spec


def test_this_machine_without_a_spec(tmp_path: Path) -> None:
    done = run_cli("doctor", "--quick", "--json", "--runs-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["healthy"] and {"package", "disk", "memory"} <= {finding["check"] for finding in report["findings"]}


def test_links_of_this_machine_are_timed(tmp_path: Path) -> None:
    done = run_cli("doctor", write_spec(tmp_path), "--runs-dir", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "rendezvous of 2 processes in" in done.stdout and "GB/s" in done.stdout
    assert done.stderr == "1 host examined, all is well\n"


def test_missing_data_and_a_place_without_room_for_runs_are_named(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    missing = ("--set", "data.blend=[{path: nope}]")
    done = run_cli("doctor", spec, "--quick", *missing, "--runs-dir", tmp_path / "runs")
    assert done.returncode == 5
    assert "nope.idx: No such file or directory" in done.stdout and "`llama-scale data build`" in done.stdout
    assert "error: 1 check failed: this machine (data)" in done.stderr
    done = run_cli("doctor", spec, "--quick", "--runs-dir", "/proc/runs")
    assert done.returncode == 5
    assert done.stderr == (
        "error: cannot create a run folder in /proc/runs: /proc is on no disk; choose another with --runs-dir\n"
    )


def test_failed_check_is_exit_5_and_keeps_a_launch_from_starting(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    huge = ("--set", "checkpoint.keep_last=1000000000", "--runs-dir", tmp_path / "runs")
    done = run_cli("doctor", spec, "--quick", *huge)
    assert done.returncode == 5
    assert (
        "FAILED   this machine  disk: " in done.stdout and "error: 1 check failed: this machine (disk)" in done.stderr
    )
    done = run_cli("launch", spec, *huge)
    assert done.returncode == 5
    assert "`--no-doctor` launches all the same" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_changes_need_a_spec() -> None:
    assert run_cli("doctor", "--set", "a=1").returncode == 2


def test_hosts_are_waited_for_an_hour_at_most() -> None:
    done = run_cli("doctor", "--timeout", "inf")
    assert done.returncode == 2
    assert "Input should be less than or equal to 3600" in done.stderr
