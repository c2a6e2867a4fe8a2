"""Judge an attempt on several hosts from what each agent wrote; exit statuses of srun and mpirun are no proof."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path

from llama_scale.errors import PREEMPTED_EXIT, LaunchError
from llama_scale.spec.nearby import some
from llama_scale.train.verdict import FirstFailure, Verdict


def part_path(attempt_dir: Path, node_rank: int) -> Path:
    """Return the name of one host's verdict."""
    return attempt_dir / f"verdict-node-{node_rank:05d}.json"


def read_parts(attempt_dir: Path) -> dict[int, Verdict]:
    """Return the verdicts of an attempt by number of the host."""
    found = {}
    for path in attempt_dir.glob("verdict-node-*.json"):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # replaced at this moment, on a network file system
            continue
        failure = values.pop("first_failure")
        victims = tuple(values.pop("victims"))
        first = FirstFailure(**failure) if failure else None
        found[int(path.stem.rpartition("-")[2])] = Verdict(**values, first_failure=first, victims=victims)
    return found


def merge(verdicts: Mapping[int, Verdict], *, nodes: int, devices: int, command: str, status: int) -> Verdict:
    """Return the verdict of the run.

    Hosts whose agents left no word count as lost. A failure that is no consequence of another is the cause: the
    earliest of those; without one, a lost host; else the earliest of all.

    Args:
        verdicts: What the agents of the hosts wrote.
        nodes: Hosts of the run.
        devices: Ranks of each.
        command: Program that started the agents, for people.
        status: Its exit status, minus the signal that ended it.
    """
    lost = [node for node in range(nodes) if node not in verdicts]
    failed = {node: verdict for node, verdict in verdicts.items() if verdict.state == "failed"}
    if not lost and not failed:
        saved = [verdict for verdict in verdicts.values() if verdict.state == "preempted"]
        return saved[0] if saved else Verdict(state="ok", exit_code=0, message="done")
    causes = [v for v in failed.values() if v.first_failure is not None and v.first_failure.kind != "collateral"]
    chosen = min(causes, key=_time, default=None)
    if chosen is None and lost:
        return _lost(lost, failed, nodes=nodes, devices=devices, how=_how(command, status))
    if chosen is None:
        chosen = min(failed.values(), key=_time)
    first = chosen.first_failure
    victims = {rank for verdict in failed.values() for rank in verdict.victims}
    victims |= {v.first_failure.rank for v in failed.values() if v.first_failure and v.first_failure.rank is not None}
    victims |= {rank for node in lost for rank in range(node * devices, (node + 1) * devices)}
    victims -= {first.rank} if first else set()
    return Verdict(
        state="failed",
        exit_code=chosen.exit_code,
        first_failure=first,
        victims=tuple(sorted(victims)),
        message=chosen.message.partition(" (victims: ")[0],
    )


def _lost(lost: list[int], failed: Mapping[int, Verdict], *, nodes: int, devices: int, how: str) -> Verdict:
    what = "every host" if len(lost) == nodes else f"host {some(lost)} (of 0 to {nodes - 1})"
    error = f"the agent of {what} left no word of its end; {how}; the agent's log has what it printed"
    ranks = [rank for node in lost for rank in range(node * devices, (node + 1) * devices)]
    victims = {rank for verdict in failed.values() for rank in verdict.victims} | set(ranks)
    return Verdict(
        state="failed",
        exit_code=LaunchError.exit_code,
        first_failure=FirstFailure(rank=None, kind="node-lost", error=error),
        victims=tuple(sorted(victims)),
        message=error,
    )


def _how(command: str, status: int) -> str:
    if status >= 0:
        return f"{command} ended with status {status}"
    return f"{command} was killed by {signal.Signals(-status).name}"


def _time(verdict: Verdict) -> str:
    return verdict.first_failure.time_utc if verdict.first_failure else ""


def stopped_early(by: str) -> Verdict:
    """Return the verdict of an attempt that was told to stop before its agents were started."""
    message = f"stopped by {by} before training began; nothing had to be saved"
    return Verdict(state="preempted", exit_code=PREEMPTED_EXIT, message=message)
