"""A run folder whose launch.sh is a script of the test's own: real processes, no torch."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama_scale.launchers.local import LocalLauncher
from llama_scale.plan.run_plan import make_plan
from llama_scale.runs.folder import RunFolder
from llama_scale.spec.load import load_spec
from tests.live_runs import end_run, environment, write_spec

MakeRun = Callable[..., RunFolder]
Supervise = Callable[[RunFolder], "subprocess.Popen[bytes]"]


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[MakeRun]:
    made: list[RunFolder] = []

    def make(script: str = "exit 0", *overrides: str) -> RunFolder:
        spec = load_spec(write_spec(tmp_path / "specs"), overrides=overrides)
        bundle = LocalLauncher().render(spec, make_plan(spec), python=sys.executable)
        files = dict(bundle.files) | {"launch.sh": f"run=$1\n{script}\n"}
        run = RunFolder.create(tmp_path / "runs", name=spec.name, files=files)
        made.append(run)
        return run

    yield make
    for run in made:
        end_run(run)


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """Start the supervisor of a run folder as a process."""
    started: list[subprocess.Popen[bytes]] = []

    def start(run: RunFolder) -> subprocess.Popen[bytes]:
        with run.supervisor_log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "llama_scale.runs.supervisor", str(run.path)],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment(),
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
