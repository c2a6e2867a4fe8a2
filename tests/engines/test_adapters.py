"""Adapters train on every layout and engine as in one process: losses, gradient norms and the weights themselves."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.engines.harness import run_ranks
from tests.engines.specs import Case
from tests.engines.training import start, train_steps

LOSS, NORM, WEIGHTS = 1e-5, 5e-5, 2e-4
"""Relative tolerances of losses and norms, absolute one of weights that have moved by some 1e-1."""


def adapter(kind: str, **options: Any) -> tuple[dict[str, Any], ...]:
    return ({"name": "news.v1", "kind": kind, "options": options},)


LORA = adapter("lora", rank=4, alpha=8)
DORA = adapter("lora", rank=3, dora=True, rs_lora=True, ranks={"k_proj": 2}, layers=[0, 2])


def lora_case(**fields: Any) -> Case:
    # A base whose layers do something, so that changing them changes the loss.
    shape = {"init_std": 0.2, **fields.pop("shape", {})}
    return Case(**{"adapters": LORA, "optimizer": {"lr": 1e-2}, "shape": shape, **fields})


def deepspeed(zero: int) -> dict[str, Any]:
    return {"kind": "deepspeed", "zero": zero}


def trained(case: Case, *, steps: int = 10) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """Train; return the curve and this rank's parts of what trains, each under its name and place."""
    engine = start(case)
    results = train_steps(engine, case, steps=steps)
    weights = {
        f"{p.name}{p.box.offset}": (p.box, p.tensor.clone()) for p in engine.model_pieces() if p.flat_start is None
    }
    return results, weights  # type: ignore[return-value]


@functools.cache
def _reference(key: str) -> Any:
    return run_ranks(1, trained, _SINGLES[key])[0]


_SINGLES: dict[str, Case] = {}


def reference(case: Case) -> Any:
    """Return what one process makes of the same samples, computed once for all layouts of a model."""
    single = Case(
        **{
            name: getattr(case, name)
            for name in ("global_batch", "seq_length", "shape", "optimizer", "compute", "isolate_documents", "adapters")
        }
    )
    _SINGLES[repr(single)] = single
    return _reference(repr(single))


def check(case: Case, *, loss: float = LOSS, norm: float = NORM, weights: float = WEIGHTS) -> None:
    expected, whole = reference(case)
    found = run_ranks(case.world_size, trained, case)

    assert all(tensor.abs().max() > 1e-2 for name, (_, tensor) in whole.items()), "the reference does not learn"
    for curve, _ in found:
        assert curve == found[0][0], "ranks report different numbers"
    for (a, n), (b, m) in zip(found[0][0], expected, strict=True):
        assert a == pytest.approx(b, rel=loss)
        assert n == pytest.approx(m, rel=norm)
    logical = {name.partition("(")[0]: tensor for name, (_, tensor) in whole.items()}
    seen = set()
    for _, parts in found:
        for key, (box, tensor) in parts.items():
            name = key.partition("(")[0]
            seen.add(name)
            torch.testing.assert_close(
                tensor, logical[name][box.slices_within(whole_box(logical[name]))], rtol=0, atol=weights
            )
    if case.engine is None or case.engine.get("zero") != 3:
        assert seen == set(logical)


def whole_box(tensor: torch.Tensor) -> Any:
    from llama_scale.layout.boxes import Box

    return Box.whole(tuple(tensor.shape))


CASES = {
    "dp2": lora_case(dp=2),
    "tp2": lora_case(tp=2),
    "pp2": lora_case(pp=2),
    "tp2-sequence-pp2-dp2-distopt": lora_case(tp=2, pp=2, dp=2, sequence=True, distributed_optimizer=True),
    "interleaved-overlap": lora_case(
        pp=2,
        vp=2,
        overlap_p2p=True,
        dp=2,
        overlap_grad_reduce=True,
        distributed_optimizer=True,
        overlap_param_gather=True,
    ),
    "ddp": lora_case(dp=2, engine={"kind": "ddp"}),
    "zero2-tp2": lora_case(tp=2, dp=2, engine=deepspeed(2)),
    "zero3": lora_case(dp=2, engine=deepspeed(3)),
    "pipeline": lora_case(pp=2, dp=2, engine=deepspeed(1)),
    "tied-last1-pp2": lora_case(
        pp=2, shape={"tie_word_embeddings": True}, adapters=adapter("lora", layers={"last": 1})
    ),
    "first-pp2": lora_case(pp=2, adapters=adapter("lora", layers=[0])),
    "middle-deepspeed-pp4": lora_case(pp=4, engine=deepspeed(1), adapters=adapter("lora", layers=[2])),
    "dora-tp2": lora_case(tp=2, adapters=DORA),
    "dora-sequence": lora_case(tp=2, sequence=True, adapters=DORA),
    "dora-zero3": lora_case(dp=2, engine=deepspeed(3), adapters=DORA),
    "recompute-last2": lora_case(
        pp=2, adapters=adapter("lora", layers={"last": 3}), recompute={"kind": "full", "method": "uniform", "layers": 1}
    ),
    "recompute-block-tp2": lora_case(tp=2, recompute={"kind": "full", "method": "block", "layers": 2}),
    "selective": lora_case(tp=2, recompute={"kind": "selective"}),
}


@pytest.mark.parametrize("name", CASES)
def test_layout_trains_as_one_process(name: str) -> None:
    check(CASES[name])


BF16 = {
    "ddp": lora_case(dp=2, engine={"kind": "ddp"}),
    "megatron": lora_case(tp=2, dp=2),
    "distopt": lora_case(dp=2, distributed_optimizer=True),
    "zero1-pp2": lora_case(pp=2, engine=deepspeed(1)),
    "zero2": lora_case(dp=2, engine=deepspeed(2)),
    "zero3": lora_case(dp=2, engine=deepspeed(3)),
}


@pytest.mark.parametrize("name", BF16)
def test_fp32_adapters_train_over_a_bf16_base(name: str) -> None:
    check(replace(BF16[name], compute="bf16", shape={}), loss=2e-3, norm=5e-2, weights=0.15)
