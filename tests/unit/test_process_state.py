"""The guard of all tests fails those that leave their process changed, and limits in a child leave pytest alone."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.children import in_child
from tests.live_runs import environment
from tests.process_state import forget_surroundings, process_state

ROOT = Path(__file__).resolve().parents[2]
LEFT = {
    "limit RLIMIT_FSIZE": "resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, resource.RLIM_INFINITY))",
    "limit RLIMIT_CPU": "resource.setrlimit(resource.RLIMIT_CPU, (10**6, resource.RLIM_INFINITY))",
    "handler of signal 15": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "environment LEFT": "os.environ['LEFT'] = '1'",
    "environment HOME": "os.environ['HOME'] = '/elsewhere'",
    "current folder": "os.chdir('/')",
    "umask": "os.umask(0o777)",
    "user and group": "os.getgid() or os.setegid(65534)",
    "timer": "signal.setitimer(signal.ITIMER_REAL, 1000)",
    "locale": "locale.setlocale(locale.LC_NUMERIC, 'C' if locale.setlocale(locale.LC_NUMERIC) != 'C' else 'C.UTF-8')",
    "sys.path": "sys.path.append('/nowhere')",
    "recursion limit": "sys.setrecursionlimit(1234)",
    "start method of multiprocessing": "multiprocessing.set_start_method('spawn')",
    "hooks": "sys.excepthook = print",
    "logging": "logging.getLogger('llama_scale').setLevel(50)",
}
KEPT = [
    "monkeypatch.setenv('LEFT', '1')",
    "monkeypatch.chdir('/')",
    "monkeypatch.syspath_prepend('/nowhere')",
    "in_child(lambda: os.umask(0o777), largest_file=10)",
]


@pytest.mark.parametrize("group", ["left", "kept"])
def test_a_test_that_leaves_its_process_changed_fails(tmp_path: Path, group: str) -> None:
    lines = [
        "import locale, logging, multiprocessing, os, resource, signal, sys",
        "from tests.children import in_child",
        "from tests.process_state import ProcessGuard",
    ]
    (tmp_path / "conftest.py").write_text(
        "from tests.process_state import ProcessGuard\n\n"
        "def pytest_configure(config):\n    config.pluginmanager.register(ProcessGuard())\n"
    )
    for number, line in enumerate(LEFT.values() if group == "left" else KEPT):
        lines.append(f"def test_{number}(monkeypatch):\n    {line}")
    (tmp_path / "test_it.py").write_text("\n".join(lines) + "\n")

    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)]
    done = subprocess.run(
        command, env=environment(PYTHONPATH=str(ROOT)), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )

    told = [line for line in done.stdout.splitlines() if line.startswith("the test has left its process changed: ")]
    if group == "kept":
        assert (done.returncode, told) == (0, []), done.stdout
        return
    assert f"{len(LEFT)} passed" in done.stdout, done.stdout
    missed = [name for name in LEFT if not any(f"{name}: " in line for line in told)]
    if os.geteuid() != 0:
        missed.remove("user and group")
    assert missed == [], done.stdout


def test_a_child_is_limited_and_reports(tmp_path: Path) -> None:
    before = process_state()

    def write(size: int) -> str:
        (tmp_path / "file").write_bytes(b"x" * size)
        return f"{os.geteuid()} {resource.getrlimit(resource.RLIMIT_FSIZE)[0]}"

    assert in_child(lambda: write(100), largest_file=100) == f"{os.geteuid()} 100"
    with pytest.raises(AssertionError, match=r"in the child:\nTraceback(.|\n)*File too large"):
        in_child(lambda: write(101), largest_file=100)
    assert in_child(os.geteuid, unprivileged=True) == (os.geteuid() or 65534)
    with pytest.raises(AssertionError, match="the child ended without a result, exit code 3"):
        in_child(lambda: os._exit(3))
    with pytest.raises(AssertionError, match=r"the child did not end within 0\.1 s"):
        in_child(lambda: time.sleep(60), timeout_s=0.1)
    assert process_state() == before


def test_surroundings_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "NO_COLOR", "LLAMA_SCALE_RUNS", "SLURM_JOB_ID", "WORLD_SIZE"):
        monkeypatch.setenv(name, "7")
    for name in ("TERM", "HF_MODULES_CACHE"):
        monkeypatch.setenv(name, os.environ[name])

    forget_surroundings()

    assert {"COLUMNS", "NO_COLOR", "LLAMA_SCALE_RUNS", "SLURM_JOB_ID", "WORLD_SIZE"} & set(os.environ) == set()
    assert os.environ["TERM"] == "dumb"
