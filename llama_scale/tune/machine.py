"""What this machine is: first guesses of its speed for the cost model, and a key under which measurements are kept."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import psutil

from llama_scale.plan.constants import DEFAULT, Constants
from llama_scale.plan.hardware import Hardware
from llama_scale.spec.run import RunSpec

_CORE_TFLOPS = 0.1
"""fp32 matrix rate of one core, two 256-bit multiply-adds a cycle at 3 GHz: a first guess that measurements correct."""
_CORE_MEMORY_TB = 0.01
_LOOPBACK_GB = 1.0

CPU_CONSTANTS: Constants = replace(
    DEFAULT, collective_us=200.0, kernel_us=5.0, dispatch_us=15.0, context_gb=0.5, fragmentation=0.0, straggler=0.0
)
"""Constants of processes on CPUs: gloo's messages take longer than NCCL's, there is no CUDA context and no caching
allocator."""


def cpu_hardware(processes: int) -> Hardware:
    """Return one process's share of this machine as an accelerator of the cost model."""
    cores = len(os.sched_getaffinity(0)) / processes
    return Hardware(
        name="this-machine",
        device_pattern="this-machine",
        bf16_tflops=2 * _CORE_TFLOPS * cores / 0.8,  # the model takes half of the 16-bit rate for fp32
        multiprocessors=1,
        memory_gb=psutil.virtual_memory().total / processes / (1 << 30),
        memory_tb_per_s=_CORE_MEMORY_TB * cores,
        link_gb_per_s=_LOOPBACK_GB,
        link_devices=processes,
        source="first guesses for this machine, corrected by measurements",
    )


def machine_key() -> str:
    """Return a name for this machine that changes with its processor, cores or memory."""
    facts = [_processor(), os.cpu_count(), len(os.sched_getaffinity(0)), psutil.virtual_memory().total >> 30]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def workload_key(spec: RunSpec) -> str:
    """Return a digest of what speed depends on, the layout apart: specs with one key share their measurements."""
    plain = spec.model_dump(mode="json", by_alias=True)
    batch = plain["batch"]["global"]
    kept = ("model", "data", "optimizer", "precision", "cluster", "adapters", "tasks", "mixture")
    launcher = {name: plain["launcher"].get(name) for name in ("kind", "threads_per_process", "env")}
    facts = {name: plain[name] for name in kept} | {"global": batch, "launcher": launcher}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
