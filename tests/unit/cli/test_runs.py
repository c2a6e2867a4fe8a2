from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from llama_scale.cli.follow import PlainDisplay, StopKeys, conclude
from llama_scale.cli.progress_bar import ProgressBar
from llama_scale.errors import LaunchError
from llama_scale.launchers.local import LocalLauncher
from llama_scale.plan.run_plan import make_plan
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.progress import StepLine
from llama_scale.runs.records import RankFailure, Status
from llama_scale.runs.view import look
from llama_scale.spec.load import load_spec
from tests.live_runs import write_spec
from tests.unit.cli.calling import call

_LINE = '{"step": 2, "loss": 1.25, "tokens_per_s": 1000.0, "step_time_s": 0.5, "time_utc": "x"}\n'
_STEP = StepLine.parse(_LINE)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that has ended, as its processes leave it."""
    spec = load_spec(write_spec(tmp_path / "spec"))
    bundle = LocalLauncher().render(spec, make_plan(spec), python=sys.executable)
    made = RunFolder.create(tmp_path / "runs", name="tiny", files=bundle.files)
    made.metrics.write_text(_LINE)
    _end(made, state="succeeded", exit_code=0, message="all steps are done", checkpoint="step-00000004")
    return made


def _end(run: RunFolder, **values: object) -> None:
    base: dict[str, object] = {"supervisor_pid": 1, "steps": 4, "started_utc": "t0", "updated_utc": "t1"}
    run.status.write_text(Status(**(base | values)).model_dump_json())  # type: ignore[arg-type]


def test_runs_lists_state_step_and_loss(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    call("runs", "--runs-dir", run.path.parent)
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["RUN", "STATE", "STEP", "LOSS", "UPDATED", "UTC"]
    assert row.split() == [run.name, "succeeded", "2/4", "1.2500", "t1"]

    call("runs", "--runs-dir", run.path.parent, "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["name"], found["path"], found["state"]) == (run.name, str(run.path), "succeeded")


def test_runs_fit_80_columns(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    _end(run, state="succeeded", updated_utc="2026-11-30T15:02:25+00:00")
    run.path.rename(run.path.with_name("four-tasks-tiny-20261130T151007Z-896e"))
    call("runs", "--runs-dir", run.path.parent)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("11-30 15:02")
    assert max(map(len, lines)) <= 80


def test_runs_of_no_folder_is_an_empty_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("runs", "--runs-dir", tmp_path / "none")
    assert capsys.readouterr().err == f"no runs in {tmp_path}/none\n"
    call("runs", "--runs-dir", tmp_path / "none", "--json")
    assert json.loads(capsys.readouterr().out) == []


def test_runs_folder_comes_from_the_environment(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_SCALE_RUNS", str(run.path.parent))
    call("status", "tiny")
    assert run.name in capsys.readouterr().out


def test_status_shows_the_first_failure_and_its_victims(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    failure = RankFailure(rank=2, kind="crash", error="ValueError: boom", traceback="Traceback: boom")
    _end(run, state="failed", exit_code=5, message="rank 2 failed first", first_failure=failure, victims=(0, 1))
    call("status", run.path, "--watch")
    out = capsys.readouterr().out
    assert "failed      rank 2: ValueError: boom\n" in out
    assert "victims     rank 0, rank 1\n" in out
    call("status", run.path, "--json")
    assert json.loads(capsys.readouterr().out)["first_failure"]["rank"] == 2


def test_status_of_a_run_whose_supervisor_is_gone(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    _end(run, state="running", message="running")
    call("status", run.path, "--watch")
    out = capsys.readouterr().out
    assert "state       supervisor gone\n" in out
    assert f"nothing runs; go on with `llama-scale resume {run.name}`" in out


def test_status_that_is_damaged_is_said(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.status.write_text("{")
    call("status", run.path)
    assert "status.json is damaged, so what became of it is not known" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "logs", "stop", "resume"])
def test_unknown_runs_are_refused(run: RunFolder, command: str) -> None:
    with pytest.raises(LaunchError, match=r"is called 'nothing' or begins with it; the newest there: tiny-"):
        call(command, "nothing", "--runs-dir", run.path.parent)


def test_logs_print_the_last_lines_of_a_rank(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.rank_log(1).write_bytes(b"one\ntwo\nthree \xff\n")
    call("logs", run.path, "--rank", "1", "--lines", "2")
    assert capsys.readouterr().out == "two\nthree \ufffd\n"
    call("logs", run.path, "--rank", "1", "--lines", "9" * 20)
    assert capsys.readouterr().out == "one\ntwo\nthree \ufffd\n"
    call("logs", run.path, "--rank", "1", "-f")
    assert capsys.readouterr().out == "one\ntwo\nthree \ufffd\n"
    call("logs", run.path, "--rank", "3")
    assert "rank-00003.log does not exist yet" in capsys.readouterr().err
    run.agent_log.write_text("agent\n")
    call("logs", run.path, "--rank", "agent")
    assert capsys.readouterr().out == "agent\n"


@pytest.mark.parametrize("rank", ["4", "-1", "x"])
def test_logs_of_a_rank_that_the_run_does_not_have(run: RunFolder, rank: str) -> None:
    with pytest.raises(LaunchError, match=rf"--rank {rank}: the run has ranks 0 to 3; agent and supervisor"):
        call("logs", run.path, f"--rank={rank}")


def test_logs_do_not_need_the_plan_of_a_run(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.rank_log(0).write_text("one\n")
    run.plan.write_text("{}")

    assert call("logs", run.path) == 0
    assert capsys.readouterr().out == "one\n"
    with pytest.raises(LaunchError, match=r"plan\.json is damaged \(name: not a plan.*; the logs themselves") as raised:
        call("logs", run.path, "--rank", "7")
    assert "\n" not in str(raised.value)


def test_stop_of_a_run_that_has_ended_says_so(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("stop", run.path) == 0
    assert "is not running: succeeded: all steps are done" in capsys.readouterr().err
    assert not run.stop.exists()


def test_resume_plan_says_start_where_nothing_was_saved(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("resume", run.path, "--plan") == 0
    assert capsys.readouterr().out == "start: from step 0: there is no complete checkpoint\n"
    assert call("resume", run.path, "--plan", "--json", "--set", "parallel.tensor=1") == 0
    assert json.loads(capsys.readouterr().out)["followed"] == ["cluster.devices_per_node: 4 -> 2"]


def test_resume_plan_refuses_a_damaged_checkpoint_by_name(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.checkpoints / "step-00000004"
    folder.mkdir()
    (folder / "manifest.json").write_text("{")
    before = run.spec.read_bytes()

    assert call("resume", run.path, "--plan") == 5
    assert f"{folder}/manifest.json is damaged" in capsys.readouterr().out
    with pytest.raises(LaunchError, match=r"(?s)cannot resume .*manifest.json is damaged"):
        call("resume", run.path, "--set", "seed=9")
    assert run.spec.read_bytes() == before and not (run.path / "bundle-000").exists()


def test_conclude_names_run_folder_and_exit_code(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert conclude(look(run)) == 0
    err = capsys.readouterr().err
    assert err == "succeeded: all steps are done; newest checkpoint step-00000004\n"
    _end(run, state="preempted", exit_code=75, message="saved")
    assert conclude(look(run)) == 75
    assert f"go on with: llama-scale resume {run.path}" in capsys.readouterr().err


def test_conclude_raises_what_failed(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    failure = RankFailure(rank=2, kind="config", error="SpecError: no", traceback="Traceback of rank 2")
    _end(run, state="failed", exit_code=3, message="it failed", first_failure=failure, victims=(0,))
    with pytest.raises(
        LaunchError, match=r"it failed; no checkpoint was saved\n  first failure: rank 2: Spec"
    ) as caught:
        conclude(look(run))
    assert caught.value.exit_code == 3
    assert "because of it ended: ranks 0" in str(caught.value)
    assert "Traceback of rank 2" in capsys.readouterr().err


def test_plain_display_shows_every_nth_step_the_first_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    display = PlainDisplay(steps=5, every=3)
    for step in range(1, 6):
        display.show(StepLine.parse(_LINE.replace('"step": 2', f'"step": {step}')))  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/5", "3/5", "5/5"]
    assert lines[1] == "step 3/5  loss 1.2500  1,000 tokens/s  ETA 0:00:01"


def test_progress_bar_shows_step_loss_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert _STEP is not None
    with ProgressBar(steps=4) as bar:
        bar.show(_STEP)
        bar.note("stopping: [not markup]")
    err = capsys.readouterr().err
    assert "2/4" in err and "loss 1.2500" in err and "1,000 tokens/s" in err and "ETA" in err
    assert "stopping: [not markup]" in err


def test_each_ctrl_c_says_what_happens(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    keys = StopKeys(run, grace_s=30, display=PlainDisplay(steps=1, every=1))
    with keys.installed():
        os.kill(os.getpid(), 2)
        assert run.stop.exists()
        assert "stopping: the run finishes its step and saves" in capsys.readouterr().err
        os.kill(os.getpid(), 15)
        assert "still stopping; the run is ended by force 30 s after" in capsys.readouterr().err
        assert not keys.leave
        os.kill(os.getpid(), 2)
        assert keys.leave
