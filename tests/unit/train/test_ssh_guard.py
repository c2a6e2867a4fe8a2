"""The guard of a host, as a process that the test is the head of."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_scale.resources import package_digest
from llama_scale.train.ssh_guard import agent_environment, interface_toward
from llama_scale.train.ssh_protocol import Lease, NodeJob, Order
from tests.live_runs import environment


def job_of(run: Path, **changes: Any) -> NodeJob:
    values = {"attempt": 0, "node_rank": 0, "nnodes": 2, "nproc": 2, "lease_s": 3.0, "grace_s": 5.0}
    return NodeJob(run=str(run), **(values | {"version": package_digest()} | changes))


@contextmanager
def guard(job: NodeJob) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-P", "-m", "llama_scale.train.ssh_guard", job.encode()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        try:
            yield process
        finally:
            process.kill()


def hello(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def test_guard_tells_what_its_host_lacks(tmp_path: Path) -> None:
    run = tmp_path / "it's a run"
    with guard(job_of(run, version="0.0.9+old")) as process:
        faults = "; ".join(hello(process)["faults"])
    assert "is installed there, and 0.0.9+old on the head machine" in faults
    assert f"the run folder {run} is not seen there" in faults


def test_guard_of_host_0_offers_a_free_port_and_ends_with_its_channel(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    job.attempt_dir.mkdir(parents=True)
    Lease(job.attempt_dir / "lease").grant(3)
    with guard(job) as process:
        said = hello(process)
        assert said["faults"] == [] and 20_000 <= said["port"] < 30_000
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 75


def test_guard_that_hears_nothing_ends(tmp_path: Path) -> None:
    with guard(job_of(tmp_path)) as process:
        hello(process)
        assert process.wait(timeout=30) == 75


def test_order_to_end_before_the_start(tmp_path: Path) -> None:
    with guard(job_of(tmp_path, lease_s=3600.0)) as process:
        hello(process)
        assert process.stdin is not None
        process.stdin.write(b"what a shell may say\n" + Order(do="end").line())
        process.stdin.flush()
        assert process.wait(timeout=30) == 75


def test_usage_is_explained() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llama_scale.train.ssh_guard", "x"], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2 and "usage:" in done.stderr


def test_environment_of_the_agent() -> None:
    own = {"PATH": "/bin", "A": "own", "PYTHONDONTWRITEBYTECODE": "1"}
    values = agent_environment(own, {"A": "it's\n$x"}, nproc=1)
    assert values["A"] == "it's\n$x" and values["PATH"] == "/bin" and int(values["OMP_NUM_THREADS"]) >= 1
    assert "PYTHONDONTWRITEBYTECODE" not in values and "LOCAL_WORLD_SIZE" not in values


def test_interface_is_told_by_the_way_to_a_host() -> None:
    assert interface_toward("127.0.0.1") == "lo"
    assert interface_toward("no-such-host.invalid") is None
