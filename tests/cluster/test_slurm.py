"""Runs through a real Slurm on two nodes: submit, stop, preempt, cancel, lose a node, a rank, a link of a chain."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_scale.checkpoint.manifest import newest_complete, verify_files
from llama_scale.runs.find import list_runs
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.progress import last_step
from tests.cluster import host_faults as faults
from tests.cluster.hosts import Host, Hosts, install_packages
from tests.cluster.slurm import PACKAGES, Slurm
from tests.cluster.ssh_runs import processes_of, ranks_of
from tests.live_runs import SPEC, write_spec

_CLUSTER = "{device: cpu, nodes: 2, devices_per_node: 2}"
_ENDLESS = ("--set", "train.steps=1000000", "--set", "checkpoint.every_steps=1000000")


@pytest.fixture(scope="module")
def cluster(machines: Hosts) -> Iterator[Slurm]:
    install_packages(PACKAGES)
    slurm = Slurm(hosts=machines)
    slurm.start()
    yield slurm
    slurm.close()


@pytest.fixture
def slurm(cluster: Slurm, hosts: Hosts) -> Iterator[Slurm]:
    """The cluster with all nodes usable and no jobs; processes that a test leaves behind fail it."""
    cluster.start_nodes()
    yield cluster
    cluster.clear()
    for node in hosts.nodes:
        assert "llama_scale.train" not in node.run(["ps", "-e", "-o", "args"]).stdout


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = write_spec(tmp_path / "spec", text=SPEC)
    text = path.read_text().replace("{device: cpu, devices_per_node: 4}", _CLUSTER)
    launcher = "launcher: {kind: slurm, time: '10', threads_per_process: 1, grace_s: 30}"
    path.write_text("\n".join(launcher if line.startswith("launcher:") else line for line in text.splitlines()))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs with a name that shells and Slurm's file name patterns would stumble over."""
    return tmp_path / 'it\'s a $(touch pwned) "50% %j"\n-x ü folder'


def launch(slurm: Slurm, spec: Path, runs: Path, *words: str) -> RunFolder:
    done = slurm.cli("launch", spec, "--runs-dir", runs, *words)
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(runs)
    assert done.stdout == f"{run.path}\n"
    return run


def status(slurm: Slurm, run: RunFolder) -> dict[str, Any]:
    done = slurm.cli("status", run.path, "--json")
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def written(run: RunFolder) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(run.status.read_text())
    return values


def jobs(run: RunFolder) -> list[str]:
    return list(json.loads(run.submission.read_text())["jobs"])


def wait_for_state(slurm: Slurm, run: RunFolder, *states: str, timeout_s: float = 180) -> dict[str, Any]:
    def reached() -> bool:
        return written(run)["state"] in states

    try:
        slurm.wait(reached, what=f"{states}", timeout_s=timeout_s)
    except AssertionError as error:
        logs = "".join(f"\n== {path.name}\n{path.read_text()[-2000:]}" for path in run.logs.iterdir())
        raise AssertionError(f"{written(run)}{logs}") from error
    return written(run)


def wait_for_steps(slurm: Slurm, run: RunFolder, count: int, *, job: str | None = None) -> None:
    """Wait until a step is done; a job that waits to go on does so at once."""

    def reached() -> bool:
        assert written(run)["state"] not in ("failed", "succeeded", "stopped"), written(run)
        if job is not None and slurm.job(job)["JobState"] == "PENDING":
            slurm.start_now(job)
        line = last_step(run.metrics)
        return line is not None and line.step >= count

    slurm.wait(reached, what=f"step {count}", timeout_s=180)


def steps(run: RunFolder) -> list[int]:
    return [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]


def assert_saved(run: RunFolder) -> int:
    newest = newest_complete(run.checkpoints)
    assert newest is not None
    verify_files(newest)
    return int(newest.name.removeprefix("step-"))


def _agent(host: Host, run: RunFolder) -> int | None:
    """Return the agent of a host, or one of its ranks, which have its environment."""
    return next((pid for pid in processes_of(host, run) if b"train.agent" in command_of(pid)), None)


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_run_is_queued_runs_and_leaves_a_done_marker(slurm: Slurm, hosts: Hosts, spec: Path, runs: Path) -> None:
    hostile = 'it\'s "$(touch pwned)" `x` \\ $HOME\n-y \u00fc'
    slurm.call("scontrol", "update", "PartitionName=main", "State=DOWN")
    options = json.dumps({"comment": "a $(touch pwned) 'b' \u00fc"}, ensure_ascii=False)
    sets = {
        "launcher.env": json.dumps({"HOSTILE": hostile}),
        "launcher.gres": "accelerator:2",
        "launcher.options": options,
    }
    run = launch(slurm, spec, runs, *(word for item in sets.items() for word in ("--set", "=".join(item))))
    (job,) = jobs(run)

    waiting = status(slurm, run)
    assert waiting["state"] == "queued" and "is PENDING (PartitionDown)" in waiting["message"]
    assert slurm.cli("resume", run.path).returncode == 5  # one run at a time
    slurm.call("scontrol", "update", "PartitionName=main", "State=UP")
    agent = slurm.wait(lambda: _agent(hosts.nodes[1], run), what="the agent")
    pairs = Path(f"/proc/{agent}/environ").read_bytes().decode().split("\0")
    variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    ended = wait_for_state(slurm, run, "succeeded", "failed")

    assert ended["state"] == "succeeded" and ended["exit_code"] == 0
    assert steps(run) == [1, 2, 3, 4] and run.done.is_file()
    assert variables["HOSTILE"] == hostile and variables["SLURM_JOB_ID"] == job
    shown = slurm.job(job)
    assert shown["TresPerNode"] == "gres:accelerator:2"
    assert not Path("/pwned").exists() and not list(runs.rglob("pwned"))
    assert slurm.cli("logs", run.path).stdout.count("step 4/4") == 1


def test_run_stops_and_resumes_from_any_terminal(slurm: Slurm, spec: Path, runs: Path) -> None:
    run = launch(slurm, spec, runs, *_ENDLESS)
    wait_for_steps(slurm, run, 2)
    assert status(slurm, run)["state"] == "running"

    stopped = slurm.cli("stop", run.path)

    assert stopped.returncode == 0 and "stopped: stopped on request; the state is saved" in stopped.stderr
    step = assert_saved(run)
    assert step == steps(run)[-1]
    resumed = slurm.cli("resume", run.path, "--set", f"train.steps={step + 2}")
    assert resumed.returncode == 0, resumed.stderr
    assert wait_for_state(slurm, run, "succeeded", "failed")["state"] == "succeeded"
    assert steps(run) == list(range(1, step + 3))


def test_waiting_run_is_taken_out_of_the_queue(slurm: Slurm, spec: Path, runs: Path) -> None:
    run = launch(slurm, spec, runs, "--set", "launcher.options={begin: now+1hour}", "--set", "launcher.chain=2")
    first, second = jobs(run)
    assert slurm.job(second)["Dependency"].startswith(f"afterany:{first}")

    assert slurm.cli("stop", run.path).returncode == 0

    assert status(slurm, run)["state"] == "stopped"
    assert {slurm.job(job)["JobState"] for job in (first, second)} == {"CANCELLED"}


def test_refusal_of_slurm_is_told(slurm: Slurm, spec: Path, runs: Path) -> None:
    done = slurm.cli("launch", spec, "--runs-dir", runs, "--set", "launcher.partition=nowhere")

    assert done.returncode == 5
    assert "error: sbatch refused: sbatch: error: invalid partition specified: nowhere" in done.stderr
    (run,) = list_runs(runs)
    assert written(run)["state"] == "failed"


def test_preempted_run_saves_and_goes_on(slurm: Slurm, spec: Path, runs: Path) -> None:
    run = launch(slurm, spec, runs, *_ENDLESS)
    (job,) = jobs(run)
    wait_for_steps(slurm, run, 2)

    # Lasts until the first one has left.
    other = slurm.call(
        "sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"
    )
    queued = wait_for_state(slurm, run, "queued")

    assert f"job {job} is queued again" in queued["message"] and queued["exit_code"] == 75
    step = assert_saved(run)
    slurm.wait(lambda: slurm.job(job)["JobState"] == "PENDING", what="the requeue")
    slurm.wait(lambda: slurm.job(other.strip())["JobState"] == "COMPLETED", what="the other job")
    wait_for_steps(slurm, run, step + 1, job=job)
    assert slurm.job(job)["Restarts"] == "1"
    assert slurm.cli("stop", run.path).returncode == 0
    assert steps(run) == list(range(1, assert_saved(run) + 1))


def test_cancelled_run_saves_and_leaves_no_process(slurm: Slurm, spec: Path, runs: Path) -> None:
    run = launch(slurm, spec, runs, *_ENDLESS)
    (job,) = jobs(run)
    wait_for_steps(slurm, run, 1)

    slurm.call("scancel", job)
    ended = wait_for_state(slurm, run, "preempted")

    assert f"(Slurm ends job {job})" in ended["message"]
    assert assert_saved(run) == steps(run)[-1]
    slurm.wait(lambda: slurm.job(job)["JobState"] == "CANCELLED", what="the end of the job")
    assert f"Slurm job {job} ended as CANCELLED" in status(slurm, run)["message"]


def test_chain_goes_on_where_the_time_limit_ended_a_job(slurm: Slurm, spec: Path, runs: Path) -> None:
    run = launch(slurm, spec, runs, *_ENDLESS, "--set", "launcher.chain=3")
    first, second, third = jobs(run)
    wait_for_steps(slurm, run, 2)

    slurm.call("scancel", "--batch", "--signal=USR1", first)  # what Slurm sends ahead of the time limit
    queued = wait_for_state(slurm, run, "queued")

    assert f"job {second} goes on" in queued["message"]
    wait_for_steps(slurm, run, assert_saved(run) + 1)
    assert slurm.job(first)["JobState"] != "RUNNING" and slurm.job(second)["JobState"] == "RUNNING"
    assert slurm.cli("stop", run.path).returncode == 0
    assert slurm.job(third)["JobState"] == "CANCELLED"
    assert steps(run) == list(range(1, assert_saved(run) + 1))


@pytest.mark.soak
def test_lost_node_ends_the_attempt_and_the_run_goes_on(slurm: Slurm, hosts: Hosts, spec: Path, runs: Path) -> None:
    run = launch(slurm, spec, runs, *_ENDLESS, "--set", "checkpoint.every_steps=2", "--set", "train.timeout_s=20")
    (job,) = jobs(run)
    wait_for_steps(slurm, run, 3)

    faults.power_off(hosts.nodes[1])
    slurm.wait(lambda: slurm.job(job)["JobState"] in ("PENDING", "COMPLETING"), what="the requeue", timeout_s=180)
    step = assert_saved(run)
    hosts.boot(hosts.nodes[1])
    hosts.wait_for_ssh()
    slurm.start_nodes()

    wait_for_steps(slurm, run, step + 3, job=job)
    assert int(slurm.job(job)["Restarts"]) >= 1
    assert slurm.cli("stop", run.path).returncode == 0
    assert steps(run) == list(range(1, assert_saved(run) + 1))


def test_killed_rank_is_named_and_the_job_starts_it_again(slurm: Slurm, hosts: Hosts, spec: Path, runs: Path) -> None:
    restart = ("--set", "restart={max: 1}", "--set", "checkpoint.every_steps=2", "--set", "train.steps=60")
    run = launch(slurm, spec, runs, *restart)
    wait_for_steps(slurm, run, 3)

    os.kill(ranks_of(hosts.nodes[1], run)[-1], signal.SIGKILL)
    ended = wait_for_state(slurm, run, "succeeded", "failed", timeout_s=240)

    assert ended["state"] == "succeeded" and ended["restarts"] == 1
    verdict = json.loads(run.verdict(0).read_text())
    assert verdict["first_failure"]["rank"] == 3 and "killed by SIGKILL" in verdict["message"]
    assert verdict["victims"] == [0, 1, 2]
    assert steps(run) == list(range(1, 61))


def test_step_whose_srun_was_killed_does_not_go_on(slurm: Slurm, hosts: Hosts, spec: Path, runs: Path) -> None:
    restart = ("--set", "restart={max: 1}", "--set", "checkpoint.every_steps=2", "--set", "train.steps=40")
    run = launch(slurm, spec, runs, *restart)
    wait_for_steps(slurm, run, 3)

    for pid in hosts.nodes[0].processes():
        if command_of(pid).startswith(b"srun\0"):
            os.kill(pid, signal.SIGKILL)
    ended = wait_for_state(slurm, run, "succeeded", "failed", timeout_s=240)

    assert ended["state"] == "succeeded" and ended["restarts"] == 1, ended["message"]
    assert "srun was killed by SIGKILL" in json.loads(run.verdict(0).read_text())["message"]
    assert steps(run) == list(range(1, 41))


def test_job_array_is_refused(slurm: Slurm, spec: Path, runs: Path, tmp_path: Path) -> None:
    run = launch(slurm, spec, runs, "--set", "launcher.options={begin: now+1hour}")
    output = tmp_path / "array.log"
    script = run.bundle / "job.sh"
    job = slurm.call(
        "sbatch", "--parsable", "--array=0-1", "--begin=now", f"--output={output}", script, run.path
    ).strip()

    slurm.wait(lambda: output.exists() and "not as a job array" in output.read_text(), what="the refusal")

    assert job.isdecimal()
    assert run.attempt_numbers() == []
