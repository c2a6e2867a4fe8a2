"""What head and guards tell each other, and the wait for hosts that an earlier head has left."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from llama_scale.train.ssh_protocol import (
    BEAT_S,
    Lease,
    NodeJob,
    NodeRecord,
    Order,
    heard,
    read_nodes,
    say,
    wait_for_earlier_hosts,
)


def test_job_passes_through_every_shell_unharmed() -> None:
    job = NodeJob(
        run="it's $(touch pwned)\n-ü",
        attempt=3,
        node_rank=1,
        nnodes=2,
        nproc=8,
        lease_s=30,
        grace_s=60,
        version="0.1.0+x",
    )
    word = job.encode()
    assert word.replace("-", "").replace("_", "").isalnum() and word.isascii()
    assert NodeJob.decode(word) == job
    for word in ("nonsense", "W10"):  # no JSON; a list
        with pytest.raises((ValueError, TypeError)):
            NodeJob.decode(word)


def test_what_a_shell_prints_around_is_no_message() -> None:
    assert Order.parse(b"Welcome to node1!") is None
    assert heard(b"[1, 2]") is None and heard(b"motd") is None
    assert heard(say("alive")) == {"say": "alive"}
    order = Order(do="start", endpoint="node1:20000", variables={"A": "it's\n$x"})
    assert Order.parse(order.line()) == order


def test_lease_counts_in_the_time_of_its_file_system(tmp_path: Path) -> None:
    lease, probe = Lease(tmp_path / "lease"), tmp_path / "probe"
    assert lease.remaining_s(probe) == 0
    lease.grant(10)
    assert 10 < lease.remaining_s(probe) <= 10 + 2 * BEAT_S
    old = time.time() - 100
    os.utime(lease.path, (old, old))
    assert lease.remaining_s(probe) == 0
    lease.renew()
    assert lease.remaining_s(probe) > 9


def test_start_waits_for_hosts_of_an_earlier_attempt(tmp_path: Path) -> None:
    earlier, now = tmp_path / "attempts" / "000", tmp_path / "attempts" / "001"
    now.mkdir(parents=True)
    record = NodeRecord.begin(0)
    record.write(earlier)
    Lease(earlier / "lease").grant(3600)
    timer = threading.Timer(0.5, lambda: record.end(0, reason="").write(earlier))
    timer.start()
    begin = time.monotonic()
    wait_for_earlier_hosts(now, poll_s=0.05)
    timer.join()
    assert time.monotonic() - begin > 0.4
    assert read_nodes(earlier)[0].exit_code == 0


def test_start_does_not_wait_where_the_lease_is_over(tmp_path: Path) -> None:
    earlier, now = tmp_path / "attempts" / "000", tmp_path / "attempts" / "001"
    now.mkdir(parents=True)
    NodeRecord.begin(0).write(earlier)
    Lease(earlier / "lease").grant(5)
    old = time.time() - 60
    os.utime(earlier / "lease", (old, old))
    wait_for_earlier_hosts(now)
    assert list(now.iterdir()) == []
