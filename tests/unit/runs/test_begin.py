"""Starting a run and following it, with a launch.sh of the test's own: what the command prints, and where."""

from __future__ import annotations

import os
import subprocess
import sys

from llama_scale.runs.folder import RunFolder
from tests.live_runs import environment
from tests.terminals import run_in_terminal
from tests.unit.runs.conftest import MakeRun

_BEGIN = """
import sys
from pathlib import Path
from llama_scale.cli.start import begin
from llama_scale.plan.run_plan import make_plan
from llama_scale.runs.folder import RunFolder
from llama_scale.spec.load import load_spec
run = RunFolder(Path(sys.argv[1]))
spec = load_spec(run.spec)
sys.exit(begin(run, spec=spec, plan=make_plan(spec), detach=False))
"""
_VERDICT = '{"state": "failed", "exit_code": 5, "first_failure": {"rank": 1, "kind": "crash", "error": "killed"}}'


def _command(run: RunFolder) -> list[str]:
    return [sys.executable, "-c", _BEGIN, str(run.path)]


def test_run_folder_alone_is_on_stdout(make_run: MakeRun) -> None:
    run = make_run("exit 0")
    done = subprocess.run(_command(run), env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{run.path}\n"), done.stderr
    assert done.stderr.count(str(run.path)) == 1


def test_run_folder_is_seen_once_on_a_terminal(make_run: MakeRun) -> None:
    run = make_run("exit 0")
    code, shown = run_in_terminal(_command(run), env=environment())
    assert code == 0, shown
    assert shown.count(os.fsencode(run.path)) == 1


def test_restart_and_its_cause_are_told(make_run: MakeRun) -> None:
    fail_once = f"[ -e $run/again ] && {{ sleep 1; exit 0; }}; touch $run/again; echo '{_VERDICT}'"
    run = make_run(f"{fail_once} > $run/attempts/000/verdict.json; exit 5", "restart={max: 1}")
    done = subprocess.run(_command(run), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rank 1: killed; restart 1 from the beginning\n" in done.stderr
