"""The agent above the deepspeed command, with commands of the test's own in its place: real processes, no torch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_scale.launchers.processes import is_alive
from llama_scale.train.failures import ErrorReport, write_report
from llama_scale.train.rank_records import Control, parse_environment
from tests.live_runs import environment, wait_for

# What every test's command begins with: `record RANK CODE` writes a rank's record, CODE null while it runs.
_PRELUDE = """
attempt="$RUN/attempts/000"
record() {
  printf '{"rank": %s, "host": "'$HOSTNAME'", "pid": %s, "exit_code": %s, "ended_utc": "2026-01-01", "by_agent": %s}' \
    "$1" "${3:-$$}" "$2" "${4:-false}" > "$attempt/.r$1"
  mv "$attempt/.r$1" "$attempt/rank-0000$1.json"
}
await() { while [ ! -e "$attempt/$1" ]; do sleep 0.05; done; }
"""


class Agent:
    """An agent whose command is a script."""

    def __init__(self, folder: Path, script: str, *arguments: str) -> None:
        self.run = folder / "it's a run"
        self.run.mkdir(exist_ok=True)
        self.attempt = self.run / "attempts" / "000"
        (folder / "env").write_text("FROM_SPEC='a b'\n", encoding="utf-8")
        (folder / "command").write_text(f"RUN=$1\n{_PRELUDE}\n{script}\n", encoding="utf-8")
        options = ["--run", str(self.run), "--env-file", str(folder / "env"), "--world-size", "2", *arguments]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "llama_scale.train.deepspeed_agent", *options),
                *("--", "bash", str(folder / "command"), str(self.run)),
            ],
            env=environment(HOSTNAME=socket.gethostname(), NCCL_DEBUG="WARN", SECRET_TOKEN="x"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self) -> dict[str, Any]:
        """Return the verdict once the agent has ended."""
        out, _ = self.process.communicate(timeout=60)
        verdict: dict[str, Any] = json.loads((self.attempt / "verdict.json").read_text())
        assert self.process.returncode == verdict["exit_code"], out
        assert verdict["message"] in out
        return verdict


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Any]:
    made: list[Agent] = []

    def make(script: str, *arguments: str) -> Agent:
        made.append(Agent(tmp_path, script, *arguments))
        return made[-1]

    yield make
    for agent in made:
        if agent.process.poll() is None:
            os.killpg(agent.process.pid, signal.SIGKILL)
            agent.process.wait()


def test_all_ranks_done_is_done_and_their_variables_are_listed(agents: Any) -> None:
    agent = agents('record 0 0; record 1 0; echo "$@" > "$RUN/argv"')
    assert agent.end() | {"message": ""} == {
        "state": "ok", "exit_code": 0, "first_failure": None, "victims": [], "message": "",
    }  # fmt: skip
    words = (agent.run / "argv").read_text().rstrip().rpartition(" run --master_port ")[2].split()
    assert 20000 <= int(words[0]) < 30000 and words[1:3] == ["--module", "llama_scale.train.launched"]
    values = parse_environment((agent.attempt / "environment").read_text())
    assert values["FROM_SPEC"] == "a b" and values["NCCL_DEBUG"] == "WARN"
    assert "SECRET_TOKEN" not in values


def test_success_of_the_command_is_not_believed(agents: Any) -> None:
    # DeepSpeed's runner exits with 0 when the process below it was killed by a signal.
    verdict = agents("record 0 0; exit 0").end()
    assert verdict["exit_code"] == 5
    assert verdict["message"].startswith("the deepspeed command ended with status 0 while rank 1 had not been started")


def test_command_that_leaves_running_ranks_behind_is_named_and_they_end(agents: Any) -> None:
    agent = agents('sleep 300 & record 0 null $!; record 1 null $!; echo $! > "$RUN/pid"; kill -9 $$')
    verdict = agent.end()
    assert verdict["message"].startswith("the deepspeed command was killed by SIGKILL while rank 0, 1 still ran")
    assert (agent.attempt / "end").exists()
    left = int((agent.run / "pid").read_text())
    wait_for(lambda: not is_alive(left))


def test_rank_that_loses_its_peer_while_both_are_ended_is_not_blamed(agents: Any) -> None:
    # The command goes; of the ranks that are ended then, one still gets to write that the other has gone.
    later = "await end; record 0 -9 $! true; await lost; record 1 1 $!; kill $!"
    agent = agents(f"sleep 300 & record 0 null $!; record 1 null $!; ({later}) & exit 0")
    wait_for((agent.attempt / "end").exists)
    write_error(agent.attempt, rank=1)
    (agent.attempt / "lost").touch()
    verdict = agent.end()
    assert verdict["message"].startswith("the deepspeed command ended with status 0 while rank 0, 1 still ran")
    assert (verdict["first_failure"]["rank"], verdict["victims"]) == (None, [0, 1])


def test_one_failed_rank_ends_the_others_and_is_named(agents: Any) -> None:
    # Rank 0 runs on when rank 1 dies, as it does on another host; it ends at the agent's request.
    agent = agents("record 0 null; sleep 0.3; record 1 -11; await end; record 0 -9 $$ true; exit 17")
    verdict = agent.end()
    assert (verdict["first_failure"]["rank"], verdict["first_failure"]["error"]) == (1, "killed by SIGSEGV")


def test_rank_whose_watcher_was_killed_is_named(agents: Any) -> None:
    agent = agents("sleep 300 & record 0 null; record 1 null $!; sleep 0.5; kill -9 $!; wait; await end; record 0 5")
    write_error(agent.attempt, rank=0)
    verdict = agent.end()
    assert verdict["first_failure"]["rank"] == 1
    assert "killed by SIGKILL" in verdict["message"] and verdict["victims"] == [0]


def write_error(attempt: Path, *, rank: int) -> None:
    wait_for((attempt / "rank-00001.json").exists)
    text = "RuntimeError: Connection closed by peer"
    write_report(attempt, ErrorReport(time_utc="2026", rank=rank, kind="collateral", error=text, traceback="T"))


def test_stop_lets_ranks_save(agents: Any) -> None:
    agent = agents("record 0 null; record 1 null; await stop; record 0 75; record 1 75")
    wait_for((agent.attempt / "rank-00001.json").exists)
    time.sleep(0.5)  # the agent looks four times a second
    agent.process.send_signal(signal.SIGTERM)
    verdict = agent.end()
    assert (verdict["state"], verdict["exit_code"]) == ("preempted", 75)
    assert verdict["message"] == "stopped on request; the state is saved"


def test_stop_before_all_ranks_are_there_ends_at_once(agents: Any) -> None:
    agent = agents("record 0 null; await never")
    wait_for((agent.attempt / "rank-00000.json").exists)
    agent.process.send_signal(signal.SIGTERM)
    verdict = agent.end()
    assert (verdict["state"], verdict["exit_code"]) == ("preempted", 75)
    assert verdict["message"] == "stopped by SIGTERM before training began; nothing had to be saved"


def test_ranks_that_do_not_stop_in_time_are_ended(agents: Any) -> None:
    agent = agents("record 0 null; record 1 null; await stop; record 1 75; await never", "--stop-grace-s", "0.5")
    wait_for((agent.attempt / "rank-00001.json").exists)
    time.sleep(0.5)
    agent.process.send_signal(signal.SIGTERM)
    verdict = agent.end()
    assert verdict["exit_code"] == 5
    assert verdict["first_failure"]["rank"] == 0
    assert "did not save and leave in time after a stop signal" in verdict["message"]


def test_start_beside_living_ranks_is_refused(agents: Any, tmp_path: Path) -> None:
    control = Control(tmp_path / "it's a run" / "attempts" / "000")
    control.attempt_dir.mkdir(parents=True)
    with control.held():
        verdict = agents("record 0 0; record 1 0", "--lease-s", "0.2").end()
    assert verdict["exit_code"] == 5
    assert "still run, though nobody renews their lease; end them with kill" in verdict["message"]


def test_folder_that_cannot_be_written_and_damaged_hostfile_are_refused(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("node1\n", encoding="utf-8")
    (tmp_path / "env").touch()
    run = tmp_path / "run"
    run.mkdir()
    call = ["--run", str(run), "--env-file", str(tmp_path / "env"), "--world-size", "1"]
    tail = ["--hostfile", str(hosts), "--", "true"]
    done = subprocess.run(
        [sys.executable, "-m", "llama_scale.train.deepspeed_agent", *call, *tail],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert f"{hosts}: line 1: 'node1' is not NAME slots=N; render the bundle again" in done.stderr
    (run / "attempts" / "001").parent.mkdir(exist_ok=True)
    (run / "attempts" / "001").touch()
    done = subprocess.run(
        [sys.executable, "-m", "llama_scale.train.deepspeed_agent", *call, "--attempt", "1", "--", "true"],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5 and f"cannot prepare {run}" in done.stderr and "Traceback" not in done.stderr
