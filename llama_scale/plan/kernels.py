"""How long single kernels take: GEMM, attention, element-wise.

A GEMM runs in tiles; the last wave of tiles leaves multiprocessors idle, tiles overhang the matrix, and each tile pays
for filling its pipeline. Element-wise kernels and norms move bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd, log2

from llama_scale.plan.constants import Constants
from llama_scale.plan.hardware import Hardware
from llama_scale.plan.workload import AttentionKernel, Precision

_TERA = 1e12

_TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 1.06), (128, 64, 1.25), (64, 64, 1.6))
"""Rows and columns of the tiles that libraries choose from; smaller ones read operands more often."""

_FLASH = {"flash1": 0.62, "flash2": 1.0, "flash3": 1.12}
"""Rate of a flash kernel over FlashAttention-2's on Ampere, each against the best matmul rate of its device. Abstracts:
25-40% of the peak for the first, 50-73% for the second (arXiv:2307.08691), 75% for the third (arXiv:2407.08608)."""

_OLD_INSTRUCTIONS = 0.55
"""FlashAttention-2's 35% of Hopper's peak (abstract of FlashAttention-3, arXiv:2407.08608) over its share on Ampere: it
does not use Hopper's asynchronous matrix instructions."""

_BACKWARD_FLASH = 2.5
"""Five matrix products in place of two: the scores are computed again (arXiv:2205.14135, algorithm 4)."""

_NARROW_HEAD = 1.15
"""FlashAttention-2 paper, figures 4 to 6: head_dim 64 against 128."""

_SCORE_BYTES: dict[AttentionKernel, tuple[float, float]] = {"unfused": (12.0, 18.0), "unfused-eager": (28.0, 38.0)}
"""Bytes moved for each score, forward and backward. Fused softmax: write and read scores, softmax, dropout, read for
the product; eager: also scaling, mask and the fp32 copy. Counted from the kernels of Megatron-LM and PyTorch."""

_ALIGNED = 64
"""Elements of 16 bits in the 128 bytes that tiles are loaded by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Rates that one accelerator sustains in training.

    Args:
        gemm: FLOP/s of large GEMMs in the run's precision.
        gemm_16: FLOP/s of large 16-bit GEMMs.
        bandwidth: Bytes a second of element-wise kernels.
        units: Multiprocessors.
        old_flash: Rate of FlashAttention 1 and 2 over one written for this generation.
        operand_bytes: Bytes of a GEMM's operand.
        constants: The model's constants.
    """

    gemm: float
    gemm_16: float
    bandwidth: float
    units: int
    old_flash: float
    operand_bytes: float
    constants: Constants

    def bytes_seconds(self, moved: float) -> float:
        """Return the time in which kernels read and write so many bytes of device memory."""
        return moved / self.bandwidth


def make_device(hardware: Hardware, *, precision: Precision, constants: Constants) -> Device:
    """Return the rates of an accelerator; formats that it lacks run as bf16."""
    sustained = constants.gemm_ampere
    if hardware.fp8_tflops:
        sustained = constants.gemm_blackwell if hardware.fp4_tflops else constants.gemm_hopper
    gemm_16 = (hardware.achievable_bf16_tflops or hardware.bf16_tflops * 0.8) * _TERA * sustained
    gemm, operand = gemm_16, 2.0
    if precision == "fp32":
        gemm, operand = gemm_16 / 2, 4.0  # TF32
    elif precision in ("fp8", "fp4") and hardware.fp8_tflops:
        gemm = (hardware.achievable_fp8_tflops or hardware.fp8_tflops * 0.75) * _TERA
        gemm *= sustained * constants.gemm_fp8
        operand = 1.0
        if precision == "fp4" and hardware.fp4_tflops:
            gemm *= hardware.fp4_tflops / hardware.fp8_tflops
            operand = 0.5
    return Device(
        gemm=gemm,
        gemm_16=gemm_16,
        bandwidth=hardware.memory_tb_per_s * _TERA * constants.memory,
        units=hardware.multiprocessors,
        old_flash=_OLD_INSTRUCTIONS if hardware.fp8_tflops else 1.0,
        operand_bytes=operand,
        constants=constants,
    )


def gemm_seconds(m: int, n: int, k: int, *, device: Device, rate: float | None = None) -> float:
    """Return the time of one ``[m, k] x [k, n]`` product.

    Args:
        m: Rows of the result.
        n: Columns of the result.
        k: Length of the sums.
        device: The device.
        rate: FLOP/s of large GEMMs, when not in the run's precision.
    """
    units = device.units
    best = float("inf")
    for rows, columns, cost in _TILES:
        tiles = ceil(m / rows) * ceil(n / columns)
        waves = tiles / units
        # Libraries split k or take uneven tiles for the last wave, so that about half of its idle time remains.
        waves = max(1.0, (waves + ceil(waves)) / 2)
        best = min(best, waves * units * rows * columns * cost)
    seconds = 2 * best * (k + device.constants.tile_k) / (rate or device.gemm)
    seconds *= 1 + (device.constants.misaligned - 1) * _misalignment(n, k)
    moved = device.operand_bytes * (m * k + k * n) + 2 * m * n
    return max(seconds, device.bytes_seconds(moved))


def _misalignment(n: int, k: int) -> float:
    """Return 0 for rows of whole 128 bytes, 1 for rows of 16 bytes or less, in between by the power of two."""
    row = gcd(n, k) & -gcd(n, k)
    return 0.0 if row >= _ALIGNED else min(1.0, log2(_ALIGNED / row) / 3)


def attention_seconds(
    *, tokens: int, keys: int, heads: int, head_dim: int, kernel: AttentionKernel, device: Device
) -> tuple[float, float]:
    """Return the time of one layer's attention core, forward and backward.

    Args:
        tokens: Queries of the micro-batch on this rank.
        keys: Length of the sequence; causal kernels skip half of the pairs.
        heads: Query heads on this rank.
        head_dim: Width of a head.
        kernel: Which kernel.
        device: The device.
    """
    if kernel in ("unfused", "unfused-eager"):
        product = 2 * gemm_seconds(tokens * heads, keys, head_dim, device=device, rate=device.gemm_16)
        if head_dim % 8:
            product *= 2  # rows of no multiple of 16 bytes: tensor cores load element by element
        scores = float(tokens) * keys * heads
        forward, backward = _SCORE_BYTES[kernel]
        return product + device.bytes_seconds(forward * scores), 2 * product + device.bytes_seconds(backward * scores)
    rate = device.gemm_16 * device.constants.attention * _FLASH[kernel]
    if kernel != "flash3":
        rate *= device.old_flash
    # Kernels work on heads of 64, 128 or 256; softmax costs as much for a narrow head as for a wide one.
    width = next(size for size in (64, 128, 192, 256, head_dim) if size >= head_dim)
    narrow = 1.0 if width >= 128 else _NARROW_HEAD
    # A causal tile row does whole tiles on its diagonal, about 64 keys more than half.
    flops = 4.0 * tokens * (keys / 2 + 64) * heads * width * narrow
    return flops / rate, _BACKWARD_FLASH * flops / rate
