"""Silence warnings of the engines that say nothing about the run, each by its own text; all others are shown."""

from __future__ import annotations

import warnings

_KNOWN: tuple[tuple[type[Warning], str], ...] = (
    # Megatron-Core 0.16 sets this default itself and then warns of it.
    (UserWarning, r"full scope is deprecated"),
    # Its optimizer asks every parameter for .grad, also those that are views into a buffer.
    (UserWarning, r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed"),
    # CUDA only; the launcher sets it there.
    (UserWarning, r"When using async grad allreduce it is recommended to set the environment variable"),
    # torch 2.13 renamed what Megatron-Core 0.16 to 0.19 call.
    (FutureWarning, r"`torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated"),
)


def silence() -> None:
    """Filter the known warnings from now on."""
    for category, message in _KNOWN:
        warnings.filterwarnings("ignore", message=message, category=category)
