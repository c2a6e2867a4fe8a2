"""Run a function on several gloo ranks, cheaply: a fork server imports torch and Megatron-Core once a session.

    results = run_ranks(4, work, "an argument")        # [work("an argument") of rank 0, ..., of rank 3]

``work`` is a module-level function of a test module; it and its arguments are pickled. In it ``RANK``, ``WORLD_SIZE``,
``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` are set, nothing is initialised yet; ``join(plan)`` does that.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

from llama_scale.train.ports import free_port, rank_variables

_PRELOAD = [
    "torch",
    "llama_scale.train.versions",
    "llama_scale.train.megatron_engine",
    "llama_scale.train.deepspeed_engine",
    "tests.engines.harness",
]


class RankError(AssertionError):
    """Report the ranks that failed, each with its traceback; those that only lost their peers come last."""


def fork_server() -> Any:
    """Return the context of the fork server, which is started if it does not run."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with pytest.MonkeyPatch.context() as patch:
        # One thread a rank: the machine is shared and results must not depend on the number of threads. The server
        # inherits this environment when it starts, and the ranks inherit it from the server.
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def _rank_main(rank: int, world: int, port: int, work: bytes, pipe: Connection) -> None:
    os.environ |= rank_variables(rank, world=world, port=port)
    import torch

    torch.set_num_threads(1)
    try:
        function, args, kwargs = pickle.loads(work)
        answer: tuple[str, Any] = ("result", function(*args, **kwargs))
        payload = pickle.dumps(answer)
    except BaseException:  # reported to the parent, whatever it is
        payload = pickle.dumps(("error", traceback.format_exc()))
    pipe.send_bytes(payload)
    pipe.close()
    # No clean-up: a rank whose peer failed would wait for it in destroy_process_group.
    os._exit(0)


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0, **kwargs: Any
) -> list[Any]:
    """Call ``function(*args, **kwargs)`` on every rank and return the results in rank order.

    Raises:
        RankError: A rank raised, died or did not end in time; the message holds every failed rank's traceback.
    """
    context = fork_server()
    work = pickle.dumps((function, args, kwargs))
    port = free_port()
    ranks: list[tuple[Any, Connection]] = []
    try:
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_rank_main, args=(rank, world_size, port, work, sender), daemon=True)
            process.start()
            sender.close()
            ranks.append((process, receiver))
        return _collect(ranks, deadline=time.monotonic() + timeout_s)
    finally:
        for process, receiver in ranks:
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
            receiver.close()


def _collect(ranks: list[tuple[Any, Connection]], *, deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    errors: list[str] = []
    pending = {receiver: rank for rank, (_, receiver) in enumerate(ranks)}
    while pending:
        ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            errors.append(f"ranks {sorted(pending.values())} did not end in time")
            break
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank = pending.pop(receiver)
            try:
                kind, value = _loads(receiver.recv_bytes())
            except EOFError:
                ranks[rank][0].join(5)
                kind, value = "error", f"died with exit code {ranks[rank][0].exitcode}"
            if kind == "result":
                results[rank] = value
                continue
            errors.append(f"--- rank {rank} ---\n{value}")
            # The others can only wait for a peer that is gone: give them a moment to fail by themselves.
            deadline = min(deadline, time.monotonic() + 3.0)
    if errors:
        raise RankError("\n".join(errors))
    return [results[rank] for rank in range(len(ranks))]


def _loads(payload: bytes) -> Any:
    if b"megatron.core" in payload:
        # Tensors that Megatron-Core 0.19 has marked name it; this imports it without its warnings.
        import llama_scale.train.versions  # noqa: F401
    return pickle.loads(payload)


def join(plan: Any, *, device: str = "cpu", timeout_s: float = 60.0) -> Any:
    """Initialise this rank's process groups for a plan; returns its coordinates."""
    from llama_scale.train.distributed import initialize

    return initialize(
        plan.topology, device=device, timeout_s=timeout_s, virtual_stages=max(len(chunks) for chunks in plan.stages)
    )
