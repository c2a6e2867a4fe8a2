"""Rules about degrees: world size, sequence parallelism, the interleaved schedule."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, inf, log
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.nearby import divisors, either, multiples_around, nearest, suggest
from llama_scale.spec.rule import Rule, problem
from llama_scale.spec.view import Absent

if TYPE_CHECKING:
    from llama_scale.spec.model import InlineModel
    from llama_scale.spec.run import RunSpec


def _world_size(spec: RunSpec) -> Iterator[Problem]:
    parallel, cluster = spec.parallel, spec.cluster
    wanted = parallel.data * parallel.tensor * parallel.pipeline
    world = cluster.nodes * cluster.devices_per_node
    if wanted == world:
        return
    hints = [f"nearest degrees: {_degrees(spec)}"]
    if wanted % cluster.nodes == 0:
        hints.append(f"or cluster nodes={cluster.nodes}, devices_per_node={wanted // cluster.nodes}")
    elif wanted % cluster.devices_per_node == 0:
        hints.append(f"or cluster nodes={wanted // cluster.devices_per_node}")
    yield problem(
        "parallel",
        f"data x tensor x pipeline = {parallel.data} x {parallel.tensor} x {parallel.pipeline} = {wanted} processes, "
        f"but the cluster has nodes x devices_per_node = {cluster.nodes} x {cluster.devices_per_node} = {world}",
        hint="; ".join(hints),
        code="world-size",
    )


def _degrees(spec: RunSpec) -> str:
    """Name the (data, tensor, pipeline) with the right product that change the fewest degrees, then by the least."""
    asked = (spec.parallel.data, spec.parallel.tensor, spec.parallel.pipeline)
    world = spec.cluster.nodes * spec.cluster.devices_per_node
    found: list[tuple[int, int, int]] = []
    widths, layers = _limits(spec)
    for tensor in divisors(world):
        if widths % tensor:
            continue
        for pipeline in divisors(world // tensor):
            if pipeline > layers:
                continue
            found.append((world // tensor // pipeline, tensor, pipeline))

    def distance(degrees: tuple[int, int, int]) -> tuple[int, float]:
        pairs = list(zip(degrees, asked, strict=True))
        return sum(a != b for a, b in pairs), sum(abs(log(a / b)) for a, b in pairs)

    best = sorted(found, key=distance)[:3]
    return ", ".join(f"(data={d}, tensor={t}, pipeline={p})" for d, t, p in best)


def _limits(spec: RunSpec) -> tuple[int, float]:
    """Return what tensor has to divide (0: anything does) and the most stages, as far as the model is known."""
    model: InlineModel | None = vars(spec).get("model")  # broken sections are absent
    if model is None:
        return 0, inf
    try:
        return gcd(model.num_heads, model.num_kv_heads, model.ffn_hidden_size), model.num_layers
    except Absent:
        return 0, inf


def _sequence(spec: RunSpec) -> Iterator[Problem]:
    if spec.parallel.sequence and spec.parallel.tensor == 1:
        yield problem(
            "parallel.sequence",
            "sequence: true needs tensor > 1: it shards what tensor parallelism leaves whole",
            hint="set tensor to 2 or more, or sequence to false",
            code="sequence-tensor",
        )


def _interleaving(spec: RunSpec) -> Iterator[Problem]:
    parallel = spec.parallel
    if parallel.virtual_stages > 1 and parallel.pipeline == 1:
        yield problem(
            "parallel.virtual_stages",
            f"virtual_stages={parallel.virtual_stages} needs pipeline > 1: the interleaved schedule runs over stages",
            hint="set pipeline to 2 or more, or virtual_stages to 1",
            code="interleaving-pipeline",
        )


def _interleaved_batch(spec: RunSpec) -> Iterator[Problem]:
    parallel, accumulation = spec.parallel, spec.batch.accumulation
    assert accumulation is not None  # resolved before rules run
    if parallel.virtual_stages > 1 and parallel.pipeline > 1 and accumulation % parallel.pipeline:
        near = multiples_around(accumulation, parallel.pipeline)
        totals = [count * (spec.batch.micro or 1) * parallel.data for count in near]
        yield problem(
            "batch",
            f"accumulation={accumulation} is not a multiple of pipeline={parallel.pipeline}, as the interleaved "
            "schedule needs",
            hint=f"nearest valid accumulation: {either(near)} (global {either(totals)} at this micro); or "
            "virtual_stages: 1",
            code="interleaving-accumulation",
        )


def _interleaved_p2p(spec: RunSpec) -> Iterator[Problem]:
    engine, parallel = spec.engine, spec.parallel
    if engine.kind != "megatron":
        return
    if parallel.virtual_stages > 1 and parallel.pipeline == 2 and not engine.overlap_p2p:
        yield problem(
            "engine.overlap_p2p",
            "the interleaved schedule at pipeline=2 needs overlap_p2p: true: both neighbours of a stage are the same "
            "process, and paired sends and receives cannot be told apart",
            hint="set engine.overlap_p2p to true, pipeline to 4, or virtual_stages to 1",
            code="interleaving-p2p",
        )
    if engine.overlap_p2p and parallel.virtual_stages == 1:
        yield problem(
            "engine.overlap_p2p",
            "overlap_p2p: true needs virtual_stages > 1: only the interleaved schedule overlaps its sends",
            hint="set overlap_p2p to false, or virtual_stages to 2 or more",
            code="overlap-p2p-schedule",
        )


def _min_nodes(spec: RunSpec) -> Iterator[Problem]:
    least, nodes = spec.restart.min_nodes, spec.cluster.nodes
    if least is not None and least > nodes:
        yield problem(
            "restart.min_nodes",
            f"min_nodes={least} is more than cluster.nodes={nodes}",
            hint=f"use {either(nearest(least, range(1, nodes + 1)))}",
            code="min-nodes",
        )


def _profile(spec: RunSpec) -> Iterator[Problem]:
    name = spec.cluster.profile
    if name is None:
        return
    if spec.cluster.profile_file is not None:
        yield problem(
            "cluster.profile_file",
            f"both cluster.profile={name} and a profile_file are given",
            hint="keep one",
            code="two-profiles",
        )
    from llama_scale.spec.profile_names import profile_names  # lazy: only specs that name a profile

    if name not in profile_names():
        yield problem(
            "cluster.profile",
            f"{name!r} is not a cluster profile",
            hint=suggest(name, profile_names()),
            code="unknown-profile",
        )


RULES = (
    Rule(("parallel", "cluster"), _world_size),
    Rule(("parallel",), _sequence),
    Rule(("parallel",), _interleaving),
    Rule(("parallel", "batch"), _interleaved_batch),
    Rule(("parallel", "engine"), _interleaved_p2p),
    Rule(("restart", "cluster"), _min_nodes),
    Rule(("cluster",), _profile),
)
"""All rules of this file."""
