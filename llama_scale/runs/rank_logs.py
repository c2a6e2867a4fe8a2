"""Where a rank's output lies: a file a rank in runs of up to 64 ranks, above that one a host."""

from __future__ import annotations

from pathlib import Path

from llama_scale.runs.folder import RunFolder

RANK_LOGS = 64
"""Most ranks that have a log each: thousands of files would burden a shared file system at every start."""


def stands_for_itself(*, local_rank: int, world_size: int) -> bool:
    """Tell whether a rank has a log of its own, or is the first of those that share their host's.

    Only such ranks look after a log, and say in a file that they lost a peer.
    """
    return local_rank == 0 or world_size <= RANK_LOGS


def rank_log_path(run: RunFolder, rank: int) -> Path:
    """Return the file that holds what a rank printed.

    Args:
        run: The run.
        rank: Global rank; it need not be one of the present layout.
    """
    from llama_scale.plan.run_plan import RunPlan  # lazy: the agent, which imports this module, needs the number only
    from llama_scale.spec.load import load_run_spec

    own = run.rank_log(rank)
    if own.exists() or RunPlan.from_json(run.plan.read_text(encoding="utf-8")).topology.world_size <= RANK_LOGS:
        return own
    return node_log_path(run, rank // load_run_spec(run.spec).cluster.devices_per_node)


def node_log_path(run: RunFolder, node: int) -> Path:
    """Return the file that holds what a host's agent printed, and in a large run its ranks."""
    return run.logs / f"node-{node:05d}.log"
