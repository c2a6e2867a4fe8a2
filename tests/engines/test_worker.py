"""Worker and agent as real processes: training, stopping, resuming, and each way a rank can die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.run_folders import (
    FOREVER,
    agent,
    environment,
    finish,
    make_run,
    metrics,
    rank_processes,
    session_members,
    verdict,
    wait_for,
    wait_for_step,
)


def test_agent_trains_to_the_end_then_resumes_with_more_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path, "validation.every_steps=2", "validation.batches=2")
    with agent(run, "--tee") as process:
        code, output = finish(process)
        assert code == 0, output
        assert session_members(process.pid) == []
    assert verdict(run)["state"] == "ok"
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["samples"] for line in lines] == [4, 8, 12, 16]
    assert all(line["tokens"] == 64 and line["mfu"] is None for line in lines)
    assert ["validation_loss" in line for line in lines] == [False, True, False, True]
    assert (run / "checkpoints" / "step-00000004" / "manifest.json").is_file()
    log = (run / "logs" / "rank-00000.log").read_text()
    assert "[dp0 pp0 tp0] step 1/4  loss 4." in log and "tokens/s  ETA 0:00:" in log
    assert "step 4/4" in output
    assert "Warning" not in log

    with agent(run, "--attempt", "1") as process:
        code, output = finish(process)
    assert code == 0, output
    assert verdict(run, attempt=1)["state"] == "ok"
    assert "nothing to do: step 4 is done already" in (run / "logs" / "rank-00000.log").read_text()
    assert metrics(run) == lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_saves_exits_75_and_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    run = make_run(tmp_path, *FOREVER)
    with agent(run) as process:
        wait_for_step(run, 2)
        process.send_signal(number)
        process.send_signal(number)
        code, output = finish(process)
        assert code == 75, output
        assert session_members(process.pid) == []
    assert verdict(run) == {
        "state": "preempted",
        "exit_code": 75,
        "first_failure": None,
        "victims": [],
        "message": "stopped on request; the state is saved",
    }
    last = metrics(run)[-1]["step"]
    manifest = json.loads((run / "checkpoints" / f"step-{last:08d}" / "manifest.json").read_text())
    assert (manifest["step"], manifest["samples"]) == (last, 4 * last)


def test_stop_file_stops_and_a_later_attempt_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path, *FOREVER)
    with agent(run) as process:
        wait_for_step(run, 2)
        (run / "stop").touch()
        code, output = finish(process)
    assert code == 75, output
    (run / "stop").unlink()
    last = metrics(run)[-1]["step"]
    # Lines of steps that no checkpoint holds, as a kill leaves them, must not appear twice.
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": last + 1, "loss": 0.0}) + "\n" + '{"step": ')
    with agent(run, "--attempt", "1") as process:
        wait_for(lambda: metrics(run)[-1]["step"] >= last + 2, what="two more steps")
        process.send_signal(signal.SIGTERM)
        code, output = finish(process)
    assert code == 75, output
    steps = [line["step"] for line in metrics(run)]
    assert steps == list(range(1, steps[-1] + 1))
    assert metrics(run)[last]["loss"] > 1.0
    assert f"resumed after step {last}" in (run / "logs" / "rank-00000.log").read_text()


def test_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, *FOREVER)
    with agent(run) as process:
        wait_for_step(run)
        os.kill(rank_processes(process.pid)[3], signal.SIGUSR1)
        code, output = finish(process)
    assert code == 75, output
    (folder,) = (run / "checkpoints").iterdir()
    assert int(folder.name.removeprefix("step-")) == metrics(run)[-1]["step"]


def test_killed_rank_is_named_and_its_victims_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path, *FOREVER)
    with agent(run) as process:
        wait_for_step(run)
        os.kill(rank_processes(process.pid)[2], signal.SIGKILL)
        code, output = finish(process, timeout_s=20.0)
        assert code == 5, output
        assert session_members(process.pid) == []
    found = verdict(run)
    assert found["state"] == "failed"
    assert found["first_failure"]["rank"] == 2
    assert found["first_failure"]["kind"] == "crash"
    assert found["first_failure"]["error"].startswith("killed by SIGKILL")
    assert set(found["victims"]) <= {0, 1, 3} and found["victims"]
    assert "rank 2 failed first: killed by SIGKILL" in output


def test_exception_in_one_rank_is_told_from_its_victims(tmp_path: Path) -> None:
    run = make_run(tmp_path, *FOREVER)
    (run / "metrics.jsonl").mkdir()  # only rank 0 opens it
    with agent(run) as process:
        code, output = finish(process)
        assert code == 5, output
        assert session_members(process.pid) == []
    found = verdict(run)
    assert found["first_failure"]["rank"] == 0
    assert "cannot write" in found["first_failure"]["error"]
    assert "IsADirectoryError" in (run / "logs" / "rank-00000.log").read_text()
    assert "Traceback" not in output  # the message says what to do; a crash is shown whole, see below
    assert 0 not in found["victims"]
    kinds = {p.name: json.loads(p.read_text())["kind"] for p in (run / "attempts" / "000").glob("error-*.json")}
    assert kinds.pop("error-rank-00000.json") == "crash"
    assert set(kinds.values()) <= {"collateral"}


def test_crash_in_one_rank_is_shown_with_its_traceback(tmp_path: Path) -> None:
    run = make_run(tmp_path, *FOREVER, "tracking.tensorboard=true")
    (run / "tensorboard").write_text("no folder")
    with agent(run) as process:
        code, output = finish(process)
        assert code == 5, output
    found = verdict(run)
    assert found["first_failure"]["rank"] == 0
    assert "FileExistsError" in found["first_failure"]["traceback"]
    assert found["first_failure"]["traceback"] in output


def test_rank_that_cannot_start_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "logs" / "rank-00003.log").mkdir(parents=True)
    with agent(run) as process:
        code, output = finish(process)
    assert code == 5, output
    assert verdict(run)["first_failure"]["rank"] == 3
    assert "IsADirectoryError" in verdict(run)["first_failure"]["error"]


def test_ranks_die_with_a_killed_agent(tmp_path: Path) -> None:
    run = make_run(tmp_path, *FOREVER)
    with agent(run) as process:
        wait_for_step(run)
        ranks = rank_processes(process.pid)
        assert len(ranks) == 4
        process.kill()
        process.wait()
        wait_for(lambda: not session_members(process.pid), what="the ranks' end", timeout_s=10.0)


def test_stop_before_training_begins_is_preempted(tmp_path: Path) -> None:
    run = make_run(tmp_path, *FOREVER)
    with agent(run) as process:
        # The handlers are in place before anything slow is imported.
        wait_for(lambda: _catches_term(process.pid), what="the agent's signal handlers")
        process.send_signal(signal.SIGTERM)
        code, output = finish(process)
    assert code == 75, output
    assert verdict(run)["state"] == "preempted"


def _catches_term(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(
    ("overrides", "kind", "text"),
    [
        (["model.vocab_size=32"], "data", "but model.vocab_size=32 allows 0 to 31"),
        (["optimizer.lr=1e30", "train.steps=50"], "crash", "is not finite; training stopped before the update"),
    ],
)
def test_faults_of_data_and_numbers_are_named(tmp_path: Path, overrides: list[str], kind: str, text: str) -> None:
    run = make_run(tmp_path, *overrides)
    with agent(run) as process:
        code, output = finish(process)
    assert code == 5, output
    assert verdict(run)["first_failure"]["kind"] == kind
    assert text in verdict(run)["first_failure"]["error"]


def test_truncated_token_file_is_named_before_training(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    tokens = tmp_path / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with agent(run) as process:
        code, output = finish(process)
    assert code == 5, output
    assert "tokens.bin has" in verdict(run)["first_failure"]["error"]
    assert "it is truncated" in verdict(run)["message"]


def test_profile_writes_a_trace_of_every_rank(tmp_path: Path) -> None:
    run = make_run(tmp_path, "parallel.tensor=1", "parallel.pipeline=1", "cluster.devices_per_node=1")
    with agent(run, "--profile", "2:3") as process:
        code, output = finish(process)
    assert code == 0, output
    trace = json.loads((run / "profile" / "rank-00000-steps-2-3.json").read_text())
    assert any("mm" in event.get("name", "") for event in trace["traceEvents"])


def test_worker_runs_under_plain_torchrun_with_the_same_losses(tmp_path: Path) -> None:
    forked, started = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    with agent(forked) as process:
        assert finish(process)[0] == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4", "--standalone"]
    command += ["-m", "llama_scale.train.worker", str(started)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert [line["loss"] for line in metrics(forked)] == [line["loss"] for line in metrics(started)]


def test_worker_runs_alone_and_names_what_is_no_run_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path, "parallel.tensor=1", "parallel.pipeline=1", "cluster.devices_per_node=1")
    command = [sys.executable, "-m", "llama_scale.train.worker", "--run"]
    result = subprocess.run([*command, str(run)], env=environment(), capture_output=True, text=True, timeout=90)
    assert result.returncode == 0, result.stderr
    assert len(metrics(run)) == 4
    result = subprocess.run([*command, str(tmp_path)], env=environment(), capture_output=True, text=True, timeout=90)
    assert result.returncode == 5
    assert "is no run folder: it has no spec.yaml" in result.stderr
    report = json.loads((tmp_path / "attempts" / "000" / "error-rank-00000.json").read_text())
    assert report["kind"] == "crash"


def test_two_agents_share_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "cluster.nodes=2", "cluster.devices_per_node=2")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    common = ("--nnodes", "2", "--rdzv-endpoint", endpoint)
    with agent(run, *common, "--node-rank", "0") as one, agent(run, *common, "--node-rank", "1") as two:
        assert finish(one) == (0, "llama-scale agent: ok: done\n")
        assert finish(two) == (0, "llama-scale agent: ok: done\n")
    assert len(metrics(run)) == 4
    assert (run / "attempts" / "000" / "verdict-node-00001.json").is_file()


def test_rank_that_hangs_is_suspected_when_its_peers_time_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, *FOREVER, "train.timeout_s=5")
    with agent(run) as process:
        wait_for_step(run)
        os.kill(rank_processes(process.pid)[1], signal.SIGSTOP)
        code, output = finish(process, timeout_s=60.0)
        assert code == 5, output
        assert session_members(process.pid) == []
    found = verdict(run)
    assert found["first_failure"]["rank"] == 1, found
    assert "did not answer (rank" in found["first_failure"]["error"]
    assert found["victims"] == [0, 2, 3]


def test_rank_that_does_not_leave_after_a_stop_is_killed(tmp_path: Path) -> None:
    run = make_run(tmp_path, *FOREVER)
    with agent(run, "--stop-grace-s", "2") as process:
        wait_for_step(run)
        os.kill(rank_processes(process.pid)[3], signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        code, output = finish(process, timeout_s=30.0)
        assert code == 5, output
        assert session_members(process.pid) == []
    assert "did not save and leave in time after a stop signal" in verdict(run)["message"]


def test_agent_that_does_not_fit_the_plan_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with agent(run, "--nproc-per-node", "3") as process:
        code, output = finish(process)
    assert code == 5
    assert "--nnodes 1 x --nproc-per-node 3 are 3 processes, but the plan is for 4" in output
    assert verdict(run)["first_failure"]["rank"] is None
