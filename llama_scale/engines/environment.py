"""Environment variables that an engine wants set before its process starts."""

from __future__ import annotations

from llama_scale.spec.run import RunSpec


def engine_environment(spec: RunSpec) -> dict[str, str]:
    """Return the variables of the spec's engine on the spec's device."""
    on_cpu = spec.cluster.device == "cpu"
    if spec.engine.kind == "deepspeed":
        # DeepSpeed guesses the accelerator from installed packages; dynamo would compile with a compiler that a CPU
        # machine need not have.
        return {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"} if on_cpu else {"DS_ACCELERATOR": "cuda"}
    if spec.engine.kind == "megatron" and not on_cpu and spec.parallel.tensor > 1:
        # Megatron-Core overlaps tensor parallel communication with compute by the order in which kernels are
        # launched, which holds only with one hardware queue (megatron/core/tensor_parallel/layers.py).
        return {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    return {}
