"""The store of a rendezvous in its own process: no thread and no child here, and it leaves with those who use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta

import psutil
import pytest
from torch.distributed import DistNetworkError, TCPStore

from llama_scale.launchers.processes import is_alive
from llama_scale.train.ports import free_port
from llama_scale.train.store import StoreProcess
from tests.live_runs import wait_for


def test_serves_without_thread_or_child_until_closed() -> None:
    me = psutil.Process()
    threads, children = me.num_threads(), me.children()
    port = free_port()
    store = StoreProcess(f"127.0.0.1:{port}", timeout_s=30)

    assert set(me.children()) <= set(children)  # those of earlier tests may end meanwhile
    client = TCPStore("127.0.0.1", port, None, False, timedelta(seconds=10))
    client.set("key", "value")
    assert client.get("key") == b"value"
    assert me.num_threads() <= threads

    store.close()
    wait_for(lambda: not is_alive(store._pid))
    with pytest.raises(DistNetworkError):
        client.get("key")


def test_port_in_use_is_named() -> None:
    port = free_port()
    store = StoreProcess(f"127.0.0.1:{port}", timeout_s=30)
    try:
        with pytest.raises(DistNetworkError, match="EADDRINUSE"):
            StoreProcess(f"127.0.0.1:{port}", timeout_s=30)
    finally:
        store.close()


def test_stop_signals_do_not_end_it_and_the_death_of_its_user_does() -> None:
    code = "\n".join(
        [
            "import sys, time",
            "from llama_scale.train.store import StoreProcess",
            f"store = StoreProcess('127.0.0.1:{free_port()}', timeout_s=30)",
            "print(store._pid, flush=True)",
            "time.sleep(600)",
        ]
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        pid = int(user.stdout.readline())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
        assert is_alive(pid)
        user.kill()
    wait_for(lambda: not is_alive(pid))
