from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

from llama_scale.launchers.processes import is_alive
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.records import Status, load_record
from llama_scale.runs.view import GONE, look
from tests.live_runs import processes_of, send, wait_for
from tests.unit.runs.conftest import MakeRun, Supervise

# Each script stands where launch.sh stands: what it does, an agent could do.
_COUNTS = 'mkdir -p "$run/seen"; n=$(ls "$run/seen" | wc -l); touch "$run/seen/$n"; '
_CHECKPOINT = (
    'mkdir -p "$run/checkpoints/step-0000000$n"; echo "{}" > "$run/checkpoints/step-0000000$n/manifest.json"; '
)
_GRACEFUL = (
    'trap \'echo "{\\"state\\": \\"preempted\\", \\"exit_code\\": 75, \\"message\\": \\"state saved\\"}" > '
    '"$run/attempts/000/verdict.json"; exit 75\' TERM; touch "$run/ready"; while :; do sleep 0.05; done'
)


def _status(run: RunFolder) -> Status:
    status = load_record(run.status, Status)
    assert status is not None
    return status


def _finish(process: subprocess.Popen[bytes], run: RunFolder, timeout_s: float = 120.0) -> Status:
    code = process.wait(timeout=timeout_s)
    status = _status(run)
    assert status.exit_code == code
    assert processes_of(run) == []
    return status


def _starts(run: RunFolder) -> int:
    return len(list((run.path / "seen").iterdir()))


def test_a_good_end_is_a_success(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run("exit 0")

    status = _finish(supervise(run), run)

    assert (status.state, status.exit_code, status.agent_pid) == ("succeeded", 0, None)
    assert status.steps == 4


def test_bundle_gets_the_run_folder_and_the_attempt(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run('env > "$run/env.txt"; printf %s "$run" > "$run/arg.txt"')

    _finish(supervise(run), run)

    lines = (run.path / "env.txt").read_text().splitlines()
    assert f"LLAMA_SCALE_RUN={run.path}" in lines
    assert "LLAMA_SCALE_ATTEMPT=0" in lines
    assert (run.path / "arg.txt").read_text() == str(run.path)


def test_verdict_of_the_agent_reaches_the_status(make_run: MakeRun, supervise: Supervise) -> None:
    verdict = {
        "state": "failed",
        "exit_code": 5,
        "message": "rank 2 failed first: ValueError: no",
        "first_failure": {"rank": 2, "kind": "crash", "error": "ValueError: no", "traceback": "Traceback ..."},
        "victims": [0, 1],
    }
    run = make_run(f"echo '{json.dumps(verdict)}' > \"$run/attempts/000/verdict.json\"; exit 5")

    status = _finish(supervise(run), run)

    assert (status.state, status.exit_code) == ("failed", 5)
    assert status.message == "rank 2 failed first: ValueError: no"
    assert status.first_failure is not None and status.first_failure.rank == 2
    assert status.victims == (0, 1)


def test_a_fault_of_the_spec_found_by_a_rank_keeps_its_exit_code(make_run: MakeRun, supervise: Supervise) -> None:
    verdict = '{"state": "failed", "exit_code": 3, "message": "rank 0: tensor=3 does not divide"}'
    run = make_run(f"echo '{verdict}' > \"$run/attempts/000/verdict.json\"; exit 3")

    assert _finish(supervise(run), run).exit_code == 3


def test_agent_without_verdict_is_named_with_its_last_words(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run("echo ModuleNotFoundError: No module named torch >&2; exit 1")

    status = _finish(supervise(run), run)

    assert status.state == "failed"
    assert status.message == (
        "agent ended with status 1 and left no verdict: ModuleNotFoundError: No module named torch; "
        f"see {run.agent_log}"
    )


def test_agent_killed_by_a_signal_is_named(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run("kill -KILL $$")

    assert _finish(supervise(run), run).message == f"agent killed by SIGKILL; see {run.agent_log}"


def test_rank_error_files_are_used_when_the_agent_died(make_run: MakeRun, supervise: Supervise) -> None:
    later = '{"time_utc": "2026-01-01T00:00:02", "rank": 0, "kind": "collateral", "error": "lost a peer"}'
    first = '{"time_utc": "2026-01-01T00:00:01", "rank": 1, "kind": "crash", "error": "ValueError: boom"}'
    run = make_run(
        f"echo '{later}' > \"$run/attempts/000/error-rank-00000.json\"; "
        f"echo '{first}' > \"$run/attempts/000/error-rank-00001.json\"; kill -KILL $$"
    )

    status = _finish(supervise(run), run)

    assert status.message == "rank 1: ValueError: boom; agent killed by SIGKILL"


def test_what_the_agent_leaves_behind_is_killed(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run('sleep 300 & setsid sleep 301 & echo $! > "$run/own-session"; exit 0')

    _finish(supervise(run), run)  # asserts that no process is left

    assert not is_alive(int((run.path / "own-session").read_text()))


def test_stop_file_stops_after_saving(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run(_GRACEFUL)
    process = supervise(run)
    wait_for((run.path / "ready").exists)

    run.stop.touch()
    status = _finish(process, run)

    assert (status.state, status.exit_code) == ("stopped", 75)
    assert status.message == "state saved (stop was requested)"
    assert not run.stop.exists()


def test_sigterm_to_the_supervisor_is_a_stop_request(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run(_GRACEFUL)
    process = supervise(run)
    wait_for((run.path / "ready").exists)

    process.send_signal(signal.SIGTERM)
    status = _finish(process, run)

    assert (status.state, status.exit_code) == ("stopped", 75)
    assert status.message == "state saved (the supervisor got SIGTERM)"


def test_preempted_when_nobody_asked_the_supervisor(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run("exit 75")

    status = _finish(supervise(run), run)

    assert (status.state, status.exit_code) == ("preempted", 75)


def test_stop_before_the_agent_listens(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run('touch "$run/ready"; exec sleep 300')
    process = supervise(run)
    wait_for((run.path / "ready").exists)

    run.stop.touch()
    status = _finish(process, run)

    assert (status.state, status.exit_code) == ("stopped", 75)
    assert "before the first step" in status.message


def test_agent_that_does_not_stop_is_killed(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run('trap "" TERM; touch "$run/ready"; while :; do sleep 0.1; done', "launcher.grace_s=0.1")
    process = supervise(run)
    wait_for((run.path / "ready").exists)

    run.stop.touch()
    status = _finish(process, run)

    assert (status.state, status.exit_code) == ("failed", 5)
    assert status.message.startswith("did not stop within launcher.grace_s and was killed")


def test_restart_while_checkpoints_advance(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run(_COUNTS + _CHECKPOINT + "[[ $n -ge 3 ]] && exit 0; exit 5", "restart.max=5")

    status = _finish(supervise(run), run)

    assert (status.state, status.restarts, _starts(run)) == ("succeeded", 3, 4)
    assert run.attempt_numbers() == [0, 1, 2, 3]
    assert status.checkpoint == "step-00000003"


def test_no_second_restart_from_the_same_checkpoint(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run(_COUNTS + "exit 5", "restart.max=5")

    status = _finish(supervise(run), run)

    assert (status.state, _starts(run)) == ("failed", 2)
    assert "no checkpoint was completed since the restart from the beginning" in run.supervisor_log.read_text()


def test_restarts_are_counted(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run(_COUNTS + "exit 5", "restart.max=3", "restart.only_if_progress=false")

    status = _finish(supervise(run), run)

    assert (status.state, status.restarts, _starts(run)) == ("failed", 3, 4)


def test_a_stop_request_is_not_answered_with_a_restart(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run(_COUNTS + 'touch "$run/stop"; exit 5', "restart.max=3")

    assert _finish(supervise(run), run).state == "failed"
    assert _starts(run) == 1


def test_death_of_the_supervisor_ends_the_agent_and_status_says_so(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run(_GRACEFUL)
    process = supervise(run)
    wait_for((run.path / "ready").exists)
    assert look(run).state == "running"

    process.kill()
    process.wait()

    wait_for(lambda: processes_of(run) == [], timeout_s=120)
    view = look(run)
    assert view.state == GONE
    assert view.message.startswith("the supervisor died without ending the run; nothing runs; go on with")


def test_second_supervisor_is_refused_and_a_dead_ones_lock_is_not(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run(_COUNTS + "exec sleep 300")
    first = supervise(run)
    wait_for((run.path / "seen" / "0").exists)

    assert supervise(run).wait(timeout=120) == 5
    assert f"{run.path} is running already (supervisor {first.pid} on " in run.supervisor_log.read_text()

    first.kill()
    first.wait()
    wait_for(lambda: processes_of(run) == [], timeout_s=120)
    second = supervise(run)
    wait_for((run.path / "seen" / "1").exists)
    send(second.pid, signal.SIGTERM)
    assert _finish(second, run).state == "stopped"


def test_spec_that_is_not_valid_any_more_is_a_failed_start(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run("exit 0")
    run.spec.write_text("version: 1\nname: tiny\n", encoding="utf-8")

    assert supervise(run).wait(timeout=120) == 3
    assert _status(run).state == "failed"
    assert "spec.yaml" in _status(run).message


def test_missing_bundle_is_a_failed_start(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run("exit 0")
    (run.bundle / "launch.sh").unlink()

    status = _finish(supervise(run), run)

    assert status.state == "failed"
    assert "launch.sh" in status.message


def test_status_without_place_to_write_does_not_end_the_run(make_run: MakeRun, supervise: Supervise) -> None:
    # A folder in the file's place fails like a full disk: the replacing rename does not work.
    run = make_run('touch "$run/worked"; exit 0')
    Path(run.status).mkdir()
    (run.status / "in-the-way").touch()

    assert supervise(run).wait(timeout=120) == 0
    assert (run.path / "worked").exists()
    assert "cannot write" in run.supervisor_log.read_text()


_HANGS = (
    'trap \'echo "== rank 0 (process 1)" > "$run/attempts/000/stacks-node-00000.txt"\' USR2; '
    'echo \'{"step": 1, "step_time_s": 0.1, "time_utc": "1"}\' >> "$run/metrics.jsonl"; while :; do sleep 0.05; done'
)


def test_run_that_does_no_more_steps_leaves_stacks_and_ends(make_run: MakeRun, supervise: Supervise) -> None:
    run = make_run(_HANGS, "restart.hang_min_s=0.5", "restart.hang_factor=2")
    status = _finish(supervise(run), run)
    assert status.state == "failed" and status.exit_code == 5
    assert status.first_failure is not None
    assert (status.first_failure.kind, status.first_failure.rank) == ("hang", 0)
    assert "rank 0 did not even answer" in status.message and "hung: no step for" in status.message
    assert not (run.path / "reserve").exists()


def test_hang_is_followed_by_a_restart_like_any_failure(make_run: MakeRun, supervise: Supervise) -> None:
    script = _COUNTS + 'if [ "$n" = 1 ]; then exit 0; fi; ' + _CHECKPOINT + _HANGS
    run = make_run(script, "restart.hang_min_s=0.5", "restart.hang_factor=2", "restart.max=1")
    status = _finish(supervise(run), run)
    assert status.state == "succeeded" and status.restarts == 1
