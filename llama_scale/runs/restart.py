"""Decide whether a failed run starts once more; pure."""

from __future__ import annotations

from dataclasses import dataclass

from llama_scale.spec.train import Restart


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartDecision:
    """Say whether to start again, and why (not)."""

    restart: bool
    reason: str


def decide_restart(
    policy: Restart, *, restarts: int, restarted_from: str | None, newest: str | None
) -> RestartDecision:
    """Apply the spec's ``restart`` section to a failure.

    Args:
        policy: The section.
        restarts: Restarts made so far.
        restarted_from: Checkpoint that the last restart began with, ``""`` for the beginning; None before the first.
        newest: Newest complete checkpoint now; None if there is none.
    """
    if policy.max == 0:
        return RestartDecision(restart=False, reason="restart.max is 0")
    if restarts >= policy.max:
        return RestartDecision(restart=False, reason=f"restart.max={policy.max} restarts are used up")
    if policy.only_if_progress and restarted_from is not None and restarted_from == (newest or ""):
        where = f"checkpoint {newest}" if newest else "the beginning"
        return RestartDecision(
            restart=False, reason=f"no checkpoint was completed since the restart from {where} (only_if_progress)"
        )
    where = newest or "the beginning"
    return RestartDecision(restart=True, reason=f"restart {restarts + 1} of {policy.max} from {where}")
