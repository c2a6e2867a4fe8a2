"""Every layout of a model on some devices that the rules and the compatibility table allow.

A candidate is the spec with its sections ``parallel``, ``engine``, ``recompute`` and ``batch`` replaced; the spec's own
rules judge it on light views, so that a search allows exactly what ``validate`` allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import TYPE_CHECKING, Any

from llama_scale.plan.workload import Parallelism
from llama_scale.plan.workload_sizes import stage_counts
from llama_scale.spec.nearby import divisors
from llama_scale.spec.rule import Rule
from llama_scale.spec.rules import RULES
from llama_scale.spec.view import View

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec

_OUTER, _INNER = {"parallel", "engine"}, {"recompute", "batch"}
_INNER_RULES = tuple(rule for rule in RULES if _INNER & set(rule.needs))
_OUTER_RULES = tuple(rule for rule in RULES if _OUTER & set(rule.needs) and not _INNER & set(rule.needs))
"""Rules that do not read batch and recompute are asked once for all of them."""

_LARGEST_MICRO = 64
"""Micro-batches above this never pay: GEMMs are large enough long before, and activations grow with them."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One allowed layout: its sections as views that read like the spec's."""

    parallel: View
    engine: View
    recompute: View
    batch: View


def candidates(spec: RunSpec, *, devices: int, devices_per_node: int) -> Iterator[Candidate]:
    """Yield the allowed layouts of a resolved spec on so many devices; its global batch stays as it is."""
    sections = {name: getattr(spec, name) for name in type(spec).model_fields}
    nodes = max(1, devices // devices_per_node)
    sections["cluster"] = View(
        **dict(spec.cluster) | {"nodes": nodes, "devices_per_node": devices // nodes, "world_size": devices}
    )
    model = spec.model
    assert model.kind == "inline", "a resolved spec has an inline model"
    layers = model.num_layers
    for parallel in _degrees(spec, devices=devices):
        sections["parallel"] = parallel
        for engine in _engines(spec, parallel):
            sections["engine"] = engine
            if not _accepted(_OUTER_RULES, sections):
                continue
            for batch, recompute in product(_batches(spec, parallel), _recomputes(parallel, layers=layers)):
                sections |= {"batch": batch, "recompute": recompute}
                if _accepted(_INNER_RULES, sections):
                    yield Candidate(parallel, engine, recompute, batch)


def _accepted(rules: Sequence[Rule], sections: dict[str, Any]) -> bool:
    view: Any = View(**sections)
    return not any(True for rule in rules for _ in rule.check(view))


def _degrees(spec: RunSpec, *, devices: int) -> Iterator[View]:
    model = spec.model
    assert model.kind == "inline", "a resolved spec has an inline model"
    total = spec.batch.global_
    assert total is not None, "a resolved spec has all batch numbers"
    widest = gcd(model.num_heads, model.num_kv_heads, model.ffn_hidden_size)
    for tensor in divisors(gcd(devices, widest)):
        for pipeline in divisors(devices // tensor):
            data = devices // tensor // pipeline
            if pipeline > model.num_layers or total % data:
                continue
            for virtual, layers in _chunks(model.num_layers, pipeline):
                for sequence in (False, True) if tensor > 1 else (False,):
                    yield View(
                        data=data,
                        tensor=tensor,
                        pipeline=pipeline,
                        virtual_stages=virtual,
                        sequence=sequence,
                        stage_layers=layers,
                        context=1,
                        expert=1,
                        world_size=devices,
                    )


def _chunks(layers: int, pipeline: int) -> Iterator[tuple[int, tuple[int, ...] | None]]:
    """Yield interleavings with the layers of their chunks, None where they are equal."""
    for virtual in range(1, layers // pipeline + 1) if pipeline > 1 else (1,):
        chunks = pipeline * virtual
        if layers % chunks == 0:
            yield virtual, None
        elif virtual == 1 or (layers + 2) % chunks == 0:
            counts = stage_counts(layers, Parallelism(dp=1, pp=pipeline, vp=virtual))
            if min(counts) >= 1:
                yield virtual, counts


def _engines(spec: RunSpec, parallel: View) -> Iterator[View]:
    for sharded in (True, False):
        yield View(
            kind="megatron",
            distributed_optimizer=sharded,
            overlap_grad_reduce=True,
            overlap_param_gather=sharded,
            overlap_p2p=parallel.virtual_stages > 1,
        )
    own = spec.engine if spec.engine.kind == "deepspeed" else None
    for zero in range(4):
        yield View(
            kind="deepspeed",
            zero=zero,
            offload_optimizer=None,
            offload_parameters=None,
            overlap_comm=zero > 0 and parallel.pipeline == 1,
            bucket_elements=own.bucket_elements if own else 500_000_000,
            persistence_elements=own.persistence_elements if own else 100_000,
        )
    yield View(kind="ddp", bucket_mb=25)


_NONE, _SELECTIVE, _FULL = View(kind="none"), View(kind="selective"), View(kind="full", method="uniform", layers=1)


def _recomputes(parallel: View, *, layers: int) -> Iterator[View]:
    """Yield what may be recomputed: nothing, attention cores, all layers, or half the layers of each chunk."""
    yield from (_NONE, _SELECTIVE, _FULL)
    least = min(parallel.stage_layers or (layers // (parallel.pipeline * parallel.virtual_stages),))
    if least > 1:
        yield View(kind="full", method="block", layers=least // 2)


def _batches(spec: RunSpec, parallel: View) -> Iterator[View]:
    total = spec.batch.global_
    assert total is not None, "a resolved spec has all batch numbers"
    replica = total // parallel.data
    for micro in divisors(replica):
        if micro <= _LARGEST_MICRO:
            yield View(global_=total, micro=micro, accumulation=replica // micro)


def describe(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate's sections as they are written in a spec."""
    parallel, engine, batch = vars(candidate.parallel), vars(candidate.engine), candidate.batch
    skipped: Sequence[str] = ("context", "expert", "world_size")
    layers = parallel["stage_layers"]
    sections: dict[str, Any] = {
        "parallel": {name: value for name, value in parallel.items() if name not in skipped and value is not None},
        "engine": {name: value for name, value in engine.items() if value is not None},
        "batch": {"global": batch.global_, "micro": batch.micro},
        "recompute": vars(candidate.recompute),
    }
    if layers is not None:
        sections["parallel"]["stage_layers"] = list(layers)
    return sections
