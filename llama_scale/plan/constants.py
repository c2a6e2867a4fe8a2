"""The few constants of the cost model that no data sheet gives; docs/planner.md says how each was found.

They describe hardware generations and kernels, never a source, a model or a run. ``benchmarks/planner.py`` fits those
marked *fitted* by least squares over published measurements; the others are counted or taken from the named source.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Constants of time and memory; rates are fractions of a data sheet's figure.

    Args:
        gemm_ampere: *Fitted.* Share of the best measured matmul rate that large GEMMs sustain in training, where power
            limits clocks; Ampere.
        gemm_hopper: *Fitted.* The same for Hopper.
        gemm_blackwell: *Fitted.* The same for Blackwell.
        gemm_fp8: *Fitted.* What 8 and 4-bit GEMMs sustain over 16-bit ones, each of its best measured rate.
        tile_k: *Fitted.* Elements of k that a tile's prologue and epilogue are worth.
        misaligned: *Fitted.* Time factor of a GEMM one of whose rows is no multiple of 128 bytes.
        attention: *Fitted.* Share of the achievable matmul rate of a second-generation flash kernel, head_dim 128.
        memory: *Fitted.* Share of the device memory's bandwidth that element-wise kernels reach.
        link: *Fitted.* Share of the scale-up link's bandwidth that large collectives reach.
        network: *Fitted.* Share of the scale-out network's bandwidth that large collectives reach.
        hop_us: *Fitted.* Latency of one step of a ring over the network, microseconds.
        collective_us: *Fitted.* Fixed cost of a collective within a node, microseconds.
        kernel_us: *Fitted.* Gap between two kernels on the device, microseconds.
        dispatch_us: *Fitted.* Time in which the host issues one kernel, microseconds; small layers wait for it.
        tp_hidden: *Fitted.* Share of tensor parallel traffic that overlaps where the framework overlaps it.
        overlap: *Fitted.* Share of compute time under which data parallel traffic can hide.
        straggler: *Fitted.* Slowdown each time the number of nodes doubles: the slowest of many waits for nobody.
        context_gb: *Fitted.* CUDA context and libraries (1.5) and communicators (1) that nvidia-smi counts, GB.
        fragmentation: *Fitted.* Share of all tensors that the allocator holds on top of them.
    """

    gemm_ampere: float = 0.803
    gemm_hopper: float = 0.88
    gemm_blackwell: float = 0.741
    gemm_fp8: float = 1.1
    tile_k: float = 40.5
    misaligned: float = 1.98
    attention: float = 0.475
    memory: float = 0.699
    link: float = 0.76
    network: float = 0.932
    hop_us: float = 20.0
    collective_us: float = 40.0
    kernel_us: float = 2.0
    dispatch_us: float = 16.5
    tp_hidden: float = 0.283
    overlap: float = 0.251
    straggler: float = 0.00276
    context_gb: float = 2.5
    fragmentation: float = 0.1


DEFAULT = Constants()
"""The values that ``benchmarks/planner.py`` found over the calibration rows."""
