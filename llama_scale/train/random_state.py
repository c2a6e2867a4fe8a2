"""Random states in checkpoints.

Initial weights and data order are pure functions of the seed, and nothing draws random numbers without dropout; so
the states matter only to code that draws (adapters with dropout, say). They are restored on the layout that saved
them. A rank of another layout has no counterpart there and keeps the states it got from the seed at its start.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.layout.boxes import Box
from llama_scale.train.engine import LocalPiece


def _states() -> dict[str, torch.Tensor]:
    """Return this process's generator states by name."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    tracker_module = sys.modules.get("megatron.core.tensor_parallel.random")
    if tracker_module is not None:
        for name, state in tracker_module.get_cuda_rng_tracker().get_states().items():
            if isinstance(state, torch.Tensor):  # a CUDA graph's generator object has no bytes to save
                states[f"tracker.{name}"] = state
    return states


def rng_pieces(rank: int) -> Iterator[LocalPiece]:
    """Yield this rank's random states (group ``rng``, uint8 ``[bytes]``, one tensor a generator and rank)."""
    for name, state in _states().items():
        box = Box.whole((state.numel(),))
        yield LocalPiece(
            group="rng",
            name=f"{name}.rank-{rank:05d}",
            global_shape=box.shape,
            box=box,
            flat_start=None,
            tensor=state.cpu().clone(),
        )


def restore_rng(reader: CheckpointReader, *, rank: int) -> int:
    """Set this rank's generators to the states it saved; the caller has checked that the layout is the same.

    Returns:
        Number of generators restored.
    """
    suffix = f".rank-{rank:05d}"
    stored = {n.removesuffix(suffix): n for n in reader.tensors("rng") if n.endswith(suffix)}
    trackers: dict[str, torch.Tensor] = {}
    for name, full in stored.items():
        state = reader.read("rng", full)
        if name == "cpu":
            torch.set_rng_state(state)
        elif name == "cuda":
            torch.cuda.set_rng_state(state)
        else:
            trackers[name.removeprefix("tracker.")] = state
    tracker_module = sys.modules.get("megatron.core.tensor_parallel.random")
    if trackers and tracker_module is not None:
        tracker_module.get_cuda_rng_tracker().set_states(trackers)
    return len(stored)
