"""What the agent of one host of several saw of its ranks' ends, for whoever judges the whole attempt."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from llama_scale.train.failures import write_json
from llama_scale.train.watch import Death


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """Hold ``attempts/NNN/report-node-NNNNN.json``: what an agent saw of its ranks' ends.

    Args:
        first_rank: Global rank of its local rank 0.
        deaths: Ranks of this host that ended other than well.
        out_of_memory: The kernel killed processes for want of memory meanwhile.
        stop_timed_out: Ranks did not leave in time after a stop signal.
    """

    first_rank: int
    deaths: tuple[Death, ...]
    out_of_memory: bool
    stop_timed_out: bool

    def write_quietly(self, attempt_dir: Path, node_rank: int) -> None:
        """Write it whole or not at all; a disk that is full must not hide the verdict."""
        path = attempt_dir / f"report-node-{node_rank:05d}.json"
        try:
            write_json(path, asdict(self))
        except OSError as error:
            sys.stderr.write(f"cannot write {path}: {error}\n")

    @classmethod
    def read(cls, attempt_dir: Path, node_rank: int) -> NodeReport | None:
        """Return a host's report; None if it has left none."""
        try:
            values = json.loads((attempt_dir / f"report-node-{node_rank:05d}.json").read_text(encoding="utf-8"))
            deaths = tuple(Death(**death) for death in values.pop("deaths"))
            return cls(deaths=deaths, **values)
        except (OSError, ValueError, TypeError, KeyError):
            return None
