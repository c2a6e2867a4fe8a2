"""The one place that adapts Megatron-Core to a machine without CUDA.

Megatron-Core names CUDA in places where any device would do. ``adapt`` answers these on the CPU and does nothing where
CUDA is available; ``construction`` covers literal ``device="cuda"`` arguments and type names while modules, buffers
and optimizers are built, outside of the hot path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def adapt() -> None:
    """Make Megatron-Core run on this machine's CPU if it has no CUDA; idempotent."""
    from llama_scale.train.versions import mcore_random, schedules

    if torch.cuda.is_available() or isinstance(schedules.torch, _TorchOnCpu):
        return
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu
    torch.cuda.synchronize = lambda device=None: None
    # Megatron-Core 0.19 looks at the current stream before each reduction, and waits for nothing on it.
    torch.cuda.current_stream = lambda device=None: _NoStream()
    torch.cuda.manual_seed = torch.manual_seed
    torch.cuda.get_rng_state = lambda device="cuda": torch.get_rng_state()
    torch.cuda.set_rng_state = lambda new_state, device="cuda": torch.set_rng_state(new_state)
    mcore_random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    mcore_random._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(new_state)
    # The schedules create one counter a step on "cuda"; a stand-in for the module is cheaper than a function mode
    # around forward and backward.
    schedules.torch = _TorchOnCpu()


def model_device() -> torch.device:
    """Return the device that Megatron-Core makes weights on: this rank's CUDA device, or the CPU if it has none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


class _NoStream:
    """Stand for a CUDA stream where all work is done when a call returns."""

    def wait_event(self, event: Any) -> None:
        """Return at once."""

    def wait_stream(self, stream: Any) -> None:
        """Return at once."""


class _TorchOnCpu:
    """Stand for the torch module, with ``zeros`` on the CPU whatever device is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        """Do as torch.zeros does, on the CPU."""
        return torch.zeros(*size, device=_on_cpu(device), **kwargs)


def _on_cpu(device: Any) -> Any:
    return "cpu" if "cuda" in str(device) else device


class _CudaMeansCpu(TorchFunctionMode):
    """Rewrite ``device="cuda"``, ``Tensor.cuda()`` and ``Tensor.type()`` for a CPU-only machine."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        if func is torch.Tensor.cuda:
            return args[0]
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and isinstance(result, str):
            return result.replace("torch.", "torch.cuda.", 1)
        return result


@contextlib.contextmanager
def construction() -> Iterator[None]:
    """Build Megatron-Core's modules, buffers and optimizers inside this context; on CUDA it does nothing."""
    if torch.cuda.is_available():
        yield
        return
    with _CudaMeansCpu():
        yield
