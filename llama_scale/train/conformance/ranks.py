"""Run a function on several gloo ranks: processes forked from this one, which has imported everything."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llama_scale.train import distributed
from llama_scale.train.conformance.report import Failed
from llama_scale.train.ports import free_port, rank_variables


def on_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call ``function(*args)`` on every rank and return the results in rank order.

    ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` are set there.

    Raises:
        Failed: A rank raised or died; the text is the first one's.
    """
    with tempfile.TemporaryDirectory(prefix="llama-scale-ranks-") as folder:
        context = torch.multiprocessing.start_processes(
            _rank_main,
            args=(world, free_port(), folder, partial(function, *args)),
            nprocs=world,
            join=False,
            start_method="fork",
        )
        try:
            while not context.join():
                pass
        except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException) as error:
            raise Failed(_first_error(Path(folder)) or " ".join(str(error).split())) from error
        return [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False)  # written by the rank just now
            for rank in range(world)
        ]


def _first_error(folder: Path) -> str:
    errors = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    return errors[0].read_text(encoding="utf-8") if errors else ""


def _rank_main(rank: int, world: int, port: int, folder: str, work: Callable[[], Any]) -> None:
    os.environ |= rank_variables(rank, world=world, port=port)
    torch.set_num_threads(1)
    try:
        torch.save(work(), Path(folder) / f"{rank}.pt")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split()) or "no message"
        place = f"{Path(where.filename).name}:{where.lineno}"
        (Path(folder) / f"{rank}.error").write_text(f"{type(error).__name__}: {text} ({place})", encoding="utf-8")
        raise
    distributed.shutdown()
