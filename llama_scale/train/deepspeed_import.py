"""The one door to DeepSpeed: imports it quietly and keeps it from compiling or guessing on a machine without CUDA."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # One of DeepSpeed's optimizers is compiled at import: three seconds a process for something unused.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime.pipe.module import PipelineModule
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
    from deepspeed.utils import logger as deepspeed_logger

if not torch.cuda.is_available():
    # Or init_distributed builds a shared-memory all-reduce, for minutes, that training does not use.
    deepspeed.ops.__compatible_ops__ = {}

deepspeed_logger.setLevel(logging.WARNING)

__all__ = ["PipeModelDataParallelTopology", "PipelineModule", "deepspeed", "initialize", "join", "quiet"]

_KNOWN_WARNINGS = (
    (FutureWarning, r".*torch\.distributed\..* is deprecated"),
    (FutureWarning, r".*(all_gather_into_tensor|reduce_scatter_tensor).*deprecated"),
    (UserWarning, r".*c10d::broadcast_"),
    (UserWarning, r".*backward hook.*"),
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Run DeepSpeed's code without its known warnings and without what it prints to stdout."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for category, message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


def join() -> None:
    """Let DeepSpeed use the process group that torch.distributed has; idempotent."""
    with quiet():
        deepspeed.init_distributed(dist_init_required=False, auto_mpi_discovery=False, verbose=False)


def initialize(**arguments: Any) -> Any:
    """Return the engine of ``deepspeed.initialize``; torch.distributed is initialised already."""
    with quiet():
        engine, *_ = deepspeed.initialize(dist_init_required=False, **arguments)
    return engine
