"""The process above srun and mpirun, with shell scripts in place of these."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.live_runs import environment, wait_for

OK = '{"state": "ok", "exit_code": 0, "first_failure": null, "victims": [], "message": "done"}'
SAVED = '{"state": "preempted", "exit_code": 75, "first_failure": null, "victims": [], "message": "saved"}'
FIRST = '{"rank": 1, "kind": "crash", "error": "E", "traceback": "", "time_utc": "1"}'
FAILED = f'{{"state": "failed", "exit_code": 5, "first_failure": {FIRST}, "victims": [], "message": "rank 1: E"}}'


def start(run: Path, script: str, *, signal_name: str = "USR1", grace: float = 5) -> subprocess.Popen[str]:
    words = ["--run", run, "--nodes", "2", "--devices", "1", "--stop-grace-s", str(grace), "--stop-signal", signal_name]
    command = [sys.executable, "-m", "llama_scale.train.command", *words, "--attempt", "1", "--", "bash", "-c", script]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=run, env=environment())


def ended(process: subprocess.Popen[str], timeout_s: float) -> int:
    with process:
        process.communicate(timeout=timeout_s)
    return process.returncode


def verdict(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "attempts" / "001" / "verdict.json").read_text())
    return found


def say(node: int, text: str) -> str:
    return f"echo '{text}' > attempts/001/verdict-node-{node:05d}.json\n"


def test_verdicts_of_all_hosts_count_and_not_the_status(tmp_path: Path) -> None:
    process = start(tmp_path, say(0, OK) + say(1, OK) + "exit 1")
    assert ended(process, 30) == 0 and verdict(tmp_path)["state"] == "ok"

    process = start(tmp_path, say(0, OK) + "exit 0")  # the verdict of the start before is gone
    assert ended(process, 30) == 5
    assert (
        "the agent of host 1 (of 0 to 1) left no word of its end; bash ended with status 0"
        in verdict(tmp_path)["message"]
    )


@pytest.mark.parametrize("signal_name", ["TERM", "USR1"])
def test_stop_is_passed_on_as_the_command_understands_it(tmp_path: Path, signal_name: str) -> None:
    end = f"end() {{\n{say(0, SAVED)}{say(1, SAVED)}exit 0\n}}\n"
    script = f"{end}trap end {signal_name}\ntouch ready\nwhile :; do sleep 0.05; done"
    process = start(tmp_path, script, signal_name=signal_name)
    wait_for((tmp_path / "ready").exists)

    os.kill(process.pid, signal.SIGTERM)

    assert ended(process, 30) == 75 and verdict(tmp_path)["state"] == "preempted"


def test_stop_before_the_agents_is_no_failure(tmp_path: Path) -> None:
    process = start(tmp_path, "touch ready; sleep 100", signal_name="TERM")
    wait_for((tmp_path / "ready").exists)
    os.kill(process.pid, signal.SIGUSR1)
    assert ended(process, 30) == 75
    assert "stopped by SIGUSR1 before training began" in verdict(tmp_path)["message"]


def test_command_that_does_not_stop_is_ended(tmp_path: Path) -> None:
    script = "trap : USR1 TERM\n" + say(0, SAVED) + "touch ready\nwhile :; do sleep 0.05; done"
    process = start(tmp_path, script, grace=0.1)
    wait_for((tmp_path / "ready").exists)
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process, 60) == 75  # one host had saved, and nobody failed
    assert "saved" in verdict(tmp_path)["message"]


def test_attempt_that_the_supervisor_gives_up_is_ended(tmp_path: Path) -> None:
    process = start(tmp_path, "trap 'touch ended; exit' TERM\ntouch ready\nwhile :; do sleep 0.05; done")
    wait_for((tmp_path / "ready").exists)
    (tmp_path / "attempts" / "001" / "end").touch()
    assert ended(process, 30) == 5 and (tmp_path / "ended").exists()


def test_command_ends_with_the_process_above_it(tmp_path: Path) -> None:
    process = start(tmp_path, "trap 'touch ended; exit' TERM\ntouch ready\nwhile :; do sleep 0.05; done")
    wait_for((tmp_path / "ready").exists)
    process.kill()
    wait_for((tmp_path / "ended").exists)
    ended(process, 30)


def test_failure_of_a_host_is_named(tmp_path: Path) -> None:
    process = start(tmp_path, say(1, FAILED) + "exit 5")
    with process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 5 and "llama-scale: failed: rank 1: E" in err
    assert verdict(tmp_path)["victims"] == [0]


def test_request_for_stacks_is_passed_on(tmp_path: Path) -> None:
    script = (
        "trap 'touch stacks' USR2\ntouch ready\nwhile [[ ! -e stacks ]]; do sleep 0.05; done\n"
        + say(0, OK)
        + say(1, OK)
    )
    process = start(tmp_path, script)
    wait_for((tmp_path / "ready").exists)
    os.kill(process.pid, signal.SIGUSR2)
    assert ended(process, 30) == 0


def test_missing_command_and_folder_are_told(tmp_path: Path) -> None:
    words = ["--nodes", "2", "--devices", "1", "--stop-grace-s", "5", "--", "/no/srun"]
    for run, text in ((tmp_path, "cannot start /no/srun: No such file"), (tmp_path / "file", "cannot write into")):
        (tmp_path / "file").touch()
        command = [sys.executable, "-m", "llama_scale.train.command", "--run", run, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert done.returncode == 5 and text in done.stderr
