"""Layers of stages and weights of ranks of a workload."""

from __future__ import annotations

from llama_scale.plan.workload import Parallelism, Workload


def stage_counts(layers: int, parallel: Parallelism) -> tuple[int, ...]:
    """Return the layers of each chunk in the order of the forward pass.

    Layers that do not divide evenly count embedding and output layer as one each where that comes out even (Llama 3's
    126 layers on 128 places); else the first chunks take one more.
    """
    if parallel.stage_layers is not None:
        return parallel.stage_layers
    chunks = parallel.pp * parallel.vp
    if layers % chunks and (layers + 2) % chunks == 0 and chunks > 1:
        each = (layers + 2) // chunks
        return (each - 1, *(each,) * (chunks - 2), each - 1)
    each, more = divmod(layers, chunks)
    return tuple(each + (index < more) for index in range(chunks))


def layer_numel(workload: Workload) -> float:
    """Return the weights of one layer on one rank, experts divided over their ranks."""
    model, parallel = workload.model, workload.parallel
    mlp = model.mlp_numel / parallel.tp / (parallel.ep if model.experts else 1)
    return model.attention_numel / parallel.tp + mlp + 2 * model.hidden


def stage_numel(workload: Workload, stage: int) -> float:
    """Return the weights of one rank of a stage."""
    model, parallel = workload.model, workload.parallel
    counts = stage_counts(model.layers, parallel)
    table = model.vocab * model.hidden / parallel.tp
    numel = layer_numel(workload) * sum(counts[stage :: parallel.pp])
    if stage == 0:
        numel += table
    if stage == parallel.pp - 1 and not (model.tied and parallel.pp == 1):
        numel += table
    return numel


def rank_numel(workload: Workload) -> float:
    """Return the weights that training updates on a rank of the stage that has most of them."""
    pp = workload.parallel.pp
    if workload.frozen is not None:
        return max(trained_numel(workload, stage) for stage in range(pp))
    counts = stage_counts(workload.model.layers, workload.parallel)
    # Between the ends, the stage with the most layers.
    inner = max(range(1, pp - 1), key=lambda stage: sum(counts[stage::pp]), default=0)
    return max(stage_numel(workload, stage) for stage in {0, inner, pp - 1})


def trained_layers(workload: Workload) -> tuple[int, ...]:
    """Return the layers of each stage that a backward pass goes through: all, or those from the first adapter on."""
    parallel = workload.parallel
    counts = stage_counts(workload.model.layers, parallel)
    if workload.frozen is None:
        return tuple(sum(counts[stage :: parallel.pp]) for stage in range(parallel.pp))
    trained = [0] * parallel.pp
    end = 0
    for index, count in enumerate(counts):
        end += count
        trained[index % parallel.pp] += min(count, max(0, end - workload.frozen.first_layer))
    return tuple(trained)


def trained_numel(workload: Workload, stage: int) -> float:
    """Return the weights of one rank of a stage that training updates."""
    frozen, parallel = workload.frozen, workload.parallel
    if frozen is None:
        return stage_numel(workload, stage)
    total = frozen.head_numel if stage == parallel.pp - 1 else 0
    end = 0
    for index, count in enumerate(stage_counts(workload.model.layers, parallel)):
        start, end = end, end + count
        if index % parallel.pp == stage:
            total += sum(frozen.layer_numel[start:end])
    return float(total)
