"""Workloads of the cost model for tests, and strategies that draw them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from llama_scale.plan.hardware import Hardware, find_hardware
from llama_scale.plan.workload import Dimensions, Parallelism, Software, Workload

LLAMA_8B = Dimensions(
    layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8, head_dim=128, vocab=128256, gated=True, tied=False
)


def hardware(name: str = "h100") -> Hardware:
    """Return a row of the hardware table."""
    found = find_hardware(name)
    assert found is not None
    return found


def workload(**changes: Any) -> Workload:
    """Return Llama 3.1 8B on 64 H100, with fields of the workload or of its parallelism and software replaced."""
    base = Workload(
        model=LLAMA_8B,
        parallel=Parallelism(dp=8, tp=4, pp=2, sharding="zero1", sequence=True),
        software=Software(),
        hardware=hardware(),
        devices_per_node=8,
        precision="bf16",
        seq_length=8192,
        micro_batch=1,
        global_batch=128,
    )
    for part in ("parallel", "software"):
        inner = {name: changes.pop(name) for name in list(changes) if hasattr(getattr(base, part), name)}
        base = replace(base, **{part: replace(getattr(base, part), **inner)})
    return replace(base, **changes)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Draw workloads of many shapes."""
    heads = 2 ** draw(st.integers(2, 6))
    head_dim = draw(st.sampled_from([64, 96, 128, 192]))
    model = Dimensions(
        layers=draw(st.integers(8, 64)),
        hidden=64 * draw(st.integers(8, 128)),
        ffn=64 * draw(st.integers(16, 512)),
        heads=heads,
        kv_heads=heads // 2 ** draw(st.integers(0, 2)),
        head_dim=head_dim,
        vocab=draw(st.sampled_from([32000, 50257, 128256])),
        gated=draw(st.booleans()),
        tied=draw(st.booleans()),
    )
    tp = 2 ** draw(st.integers(0, 2))
    pp = 2 ** draw(st.integers(0, 2))
    dp = 2 ** draw(st.integers(0, 4))
    micro = 2 ** draw(st.integers(0, 2))
    vp = draw(st.sampled_from([1, 2])) if pp > 1 else 1
    return Workload(
        model=model,
        parallel=Parallelism(
            dp=dp,
            tp=tp,
            pp=pp,
            vp=vp,
            sharding=draw(st.sampled_from(["none", "zero1", "zero1-node", "zero2", "zero3", "hsdp"])),
            sequence=tp > 1 and draw(st.booleans()),
            recompute=draw(st.sampled_from(["none", "selective", "full"])),
        ),
        software=Software(
            attention=draw(st.sampled_from(["flash1", "flash2", "flash3", "unfused", "unfused-eager"])),
            fused=draw(st.booleans()),
            overlap_grads=draw(st.booleans()),
            chunked_loss=draw(st.booleans()),
        ),
        hardware=hardware(draw(st.sampled_from(["a100", "h100", "h200", "b200", "gb200", "gb300", "h100-pcie"]))),
        devices_per_node=8,
        precision=draw(st.sampled_from(["bf16", "fp8"])),
        seq_length=draw(st.sampled_from([1024, 2048, 8192])),
        micro_batch=micro,
        global_batch=dp * micro * pp * draw(st.integers(1, 8)),
    )
