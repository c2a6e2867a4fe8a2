"""Time from a fault on one of two hosts to its report and to the first step afterwards; root, Debian, minutes.

    LS_CLUSTER=1 python benchmarks/faults.py

2 hosts x 2 ranks as network namespaces with sshd, launcher ssh, lease_s 9; the hosts answer again by themselves.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.progress import last_step
from tests.cluster import host_faults as faults
from tests.cluster.hosts import PACKAGES, Hosts, bring_up, install_packages
from tests.cluster.ssh_runs import agent_of, cli, launch, ranks_of, status_of, wait_for_step, write_ssh_spec
from tests.live_runs import wait_for

Break = Callable[[Hosts, RunFolder, ExitStack], None]


def _power(hosts: Hosts, run: RunFolder, stack: ExitStack) -> None:
    faults.power_off(hosts.nodes[1])
    hosts.boot(hosts.nodes[1])


FAULTS: dict[str, tuple[Break, tuple[str, ...]]] = {
    "kill -9 of a rank": (lambda h, r, _: os.kill(ranks_of(h.nodes[1], r)[1], signal.SIGKILL), ()),
    "kill -9 of an agent": (lambda h, r, _: os.kill(agent_of(h.nodes[0], r), signal.SIGKILL), ()),
    "power cut, host comes back": (_power, ()),
    "host hangs for ever": (lambda h, _, stack: stack.enter_context(faults.hang(h.nodes[1])), ("restart.min_nodes=1",)),
    "network cut for ever": (lambda h, _, stack: stack.enter_context(faults.cut(h.nodes[1])), ("restart.min_nodes=1",)),
    "packets dropped for ever": (
        lambda h, _, stack: stack.enter_context(faults.drop(h.nodes[1])),
        ("restart.min_nodes=1",),
    ),
}


def main() -> None:
    """Print one row a fault."""
    if os.geteuid() != 0 or not (os.environ.get("CI") or os.environ.get("LS_CLUSTER")):
        print("NOT RUN: it changes the machine; run it as root with LS_CLUSTER=1")
        return
    install_packages(PACKAGES)
    hosts = bring_up(2)
    print("| fault | named after | first step after |\n|---|---|---|")
    try:
        for name, (break_it, changes) in FAULTS.items():
            for host in hosts.all:
                hosts.boot(host)
            hosts.wait_for_ssh()
            # A host that was cut off may still write for as long as its lease: it has the same disk here.
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
                named_s, resumed_s = _measure(hosts, Path(folder), break_it, changes, stack)
            print(f"| {name} | {named_s:.1f} s | {resumed_s:.1f} s |", flush=True)
    finally:
        hosts.close()


def _measure(
    hosts: Hosts, folder: Path, break_it: Break, changes: tuple[str, ...], stack: ExitStack
) -> tuple[float, float]:
    run = launch(hosts, folder / "runs", write_ssh_spec(folder / "spec", hosts, *changes, steps=100000))
    wait_for_step(run, 5)
    break_it(hosts, run, stack)
    begin = time.monotonic()
    wait_for(lambda: status_of(run).restarts == 1, timeout_s=120)
    named_s = time.monotonic() - begin
    line = last_step(run.metrics)
    assert line is not None
    before = line.time_utc
    wait_for(lambda: (now := last_step(run.metrics)) is not None and now.time_utc > before, timeout_s=120)
    resumed_s = time.monotonic() - begin
    cli(hosts.head, "stop", run.path)
    return named_s, resumed_s


if __name__ == "__main__":
    main()
