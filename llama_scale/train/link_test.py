"""One end of the links that ``llama-scale doctor`` times: joins process groups as it is told, and reduces over them.

    python -m llama_scale.train.link_test

Takes lines of JSON: ``{"port": true}`` gives a free port of this host; ``{"address", "port", "rank", "world", "bytes",
"timeout_s", "device", "index"}`` joins a group and, with bytes, times an all-reduce in it. Each gets one line.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_ROUNDS = 3


def main() -> int:
    """Answer until the input ends."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        try:
            told = json.loads(line)
            answer = {"port": _free_port()} if "port" in told and told["port"] is True else _join(**told)
        except Exception as error:  # whatever a library says, the doctor is to hear it
            answer = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _join(
    *, address: str, port: int, rank: int, world: int, bytes: int, timeout_s: float, device: str, index: int
) -> dict[str, Any]:
    """Join a group, reduce over it, leave it; return the seconds of joining and the bytes a second of reducing."""
    limit = timedelta(seconds=timeout_s)
    begin = time.monotonic()
    store = dist.TCPStore(address, port, world, rank == 0, timeout=limit, wait_for_workers=False)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo", store=store, rank=rank, world_size=world, timeout=limit
    )
    try:
        target = torch.device("cuda", index) if device == "cuda" else torch.device("cpu")
        word = torch.ones(1, device=target)
        dist.all_reduce(word)  # the connections are made by the first collective
        if word.item() != world:
            return {"error": f"the sum over {world} processes of 1 is {word.item()}"}
        joined_s = time.monotonic() - begin
        values = torch.ones(max(1, bytes // 4), device=target)
        best = 0.0
        for _ in range(_ROUNDS if bytes else 0):
            dist.barrier()
            start = time.monotonic()
            dist.all_reduce(values)
            values[0].item()  # waits for the device
            best = max(best, bytes * 2 * (world - 1) / world / (time.monotonic() - start))
        return {"joined_s": joined_s, "bytes_per_s": best}
    finally:
        dist.destroy_process_group()
        del store


if __name__ == "__main__":
    sys.exit(main())
