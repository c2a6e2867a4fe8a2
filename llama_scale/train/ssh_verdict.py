"""Judge how an attempt on several hosts ended, from what every host's agent and guard left."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llama_scale.errors import PREEMPTED_EXIT, LaunchError
from llama_scale.train import failures
from llama_scale.train.failures import now_utc
from llama_scale.train.node_report import NodeReport
from llama_scale.train.verdict import FirstFailure, Verdict, judge_failure

_GOOD = (0, PREEMPTED_EXIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEnd:
    """Say how a host's part of an attempt ended.

    Args:
        exit_code: Of its agent, or minus the signal that ended it; None for a host that was lost.
        reason: Why its guard ended the agent; see ``ssh_protocol.Reason``.
        lost: Why nothing is known of it.
    """

    exit_code: int | None = None
    reason: str = ""
    lost: str = ""

    @property
    def failed(self) -> bool:
        """Whether the attempt cannot end well any more."""
        return bool(self.lost) or self.exit_code not in _GOOD or self.reason == "lease"


def judge_nodes(
    attempt_dir: Path,
    *,
    hosts: Sequence[str],
    nproc: int,
    ends: Mapping[int, NodeEnd],
    stopped: str | None,
    stop_timed_out: bool,
) -> Verdict:
    """Return the verdict of an attempt.

    Args:
        attempt_dir: Where agents and ranks left their reports.
        hosts: Names, in order of ranks.
        nproc: Ranks of each host.
        ends: How each host's part ended.
        stopped: Name of the stop signal that came, if any.
        stop_timed_out: Hosts did not end in time after it.
    """
    if all(not end.failed for end in ends.values()):
        if any(end.exit_code == PREEMPTED_EXIT for end in ends.values()):
            message = "stopped on request; the state is saved"
            return Verdict(state="preempted", exit_code=PREEMPTED_EXIT, message=message)
        return Verdict(state="ok", exit_code=0, message="done")
    reports = failures.read_reports(attempt_dir)
    nodes = [report for node in range(len(hosts)) if (report := NodeReport.read(attempt_dir, node))]
    deaths = [
        replace(death, local_rank=report.first_rank + death.local_rank) for report in nodes for death in report.deaths
    ]
    spoke = {report.rank for report in reports}
    named = any(report.kind != "collateral" for report in reports)
    named |= any(not d.by_agent and d.exit_code not in _GOOD and d.local_rank not in spoke for d in deaths)
    if not named:
        blamed = _blame_host(attempt_dir, hosts=hosts, nproc=nproc, ends=ends)
        if blamed is not None:
            return blamed
    verdict = judge_failure(
        reports,
        deaths,
        first_rank=0,
        ranks=len(hosts) * nproc,
        out_of_memory=any(report.out_of_memory for report in nodes),
        stop_timed_out=(stopped is not None and stop_timed_out) or any(report.stop_timed_out for report in nodes),
    )
    return _name_host(verdict, hosts=hosts, nproc=nproc)


def _blame_host(attempt_dir: Path, *, hosts: Sequence[str], nproc: int, ends: Mapping[int, NodeEnd]) -> Verdict | None:
    """Return the verdict if no rank is to blame, but a host or its agent."""
    lost = {node: end for node, end in ends.items() if end.lost}
    if lost:
        texts = [f"host {hosts[node]} ({_ranks(node, nproc)}): {end.lost}" for node, end in sorted(lost.items())]
        return _failed("node-lost", "; ".join(texts), victims=_others(set(lost), ends, nproc))
    for node, end in sorted(ends.items()):
        code, where = end.exit_code, f"host {hosts[node]} ({_ranks(node, nproc)})"
        if end.reason == "lease":
            error = f"{where} did not hear the head machine for too long: the network between them was broken"
            return _failed("node-lost", error, victims=_others({node}, ends, nproc))
        own = _agents_failure(attempt_dir, node)
        if own is not None:
            return replace(own, message=f"{own.message} [agent of {hosts[node]}]")
        if code is not None and code < 0 and end.reason != "end":
            error = f"the agent of {where} was killed by {signal.Signals(-code).name}"
            return _failed("crash", error, victims=_others({node}, ends, nproc))
    return None


def _agents_failure(attempt_dir: Path, node: int) -> Verdict | None:
    """Return an agent's verdict if it was the agent itself that failed (a spec or plan that it cannot use, ...)."""
    name = "verdict.json" if node == 0 else f"verdict-node-{node:05d}.json"
    try:
        values = json.loads((attempt_dir / name).read_text(encoding="utf-8"))
        failure = FirstFailure(**values.pop("first_failure"))
        verdict = Verdict(first_failure=failure, victims=tuple(values.pop("victims")), **values)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    ours = failure.rank is None and failure.kind != "collateral" and "none says why" not in failure.error
    return verdict if verdict.state == "failed" and ours else None


def _failed(kind: failures.Kind, error: str, *, victims: tuple[int, ...]) -> Verdict:
    failure = FirstFailure(rank=None, kind=kind, error=error, time_utc=now_utc())
    return Verdict(
        state="failed", exit_code=LaunchError.exit_code, first_failure=failure, victims=victims, message=error
    )


def _others(nodes: set[int], ends: Mapping[int, NodeEnd], nproc: int) -> tuple[int, ...]:
    """Return the ranks of the hosts that were ended because of some."""
    return tuple(rank for node in sorted(set(ends) - nodes) for rank in range(node * nproc, (node + 1) * nproc))


def _ranks(node: int, nproc: int) -> str:
    first, last = node * nproc, (node + 1) * nproc - 1
    return f"rank {first}" if first == last else f"ranks {first}-{last}"


def _name_host(verdict: Verdict, *, hosts: Sequence[str], nproc: int) -> Verdict:
    failure = verdict.first_failure
    if failure is None or failure.rank is None:
        return verdict
    host = hosts[failure.rank // nproc]
    return replace(verdict, message=f"{verdict.message} [rank {failure.rank} ran on {host}]")
