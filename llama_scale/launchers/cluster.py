"""What launchers for several hosts render alike: common files, and the script that becomes a node's agent."""

from __future__ import annotations

from collections.abc import Sequence

from llama_scale.engines.files import engine_files
from llama_scale.launchers.environment import render_environment, render_forward, worker_environment
from llama_scale.launchers.template import fill
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.load import dump_spec
from llama_scale.spec.run import RunSpec


def common_files(spec: RunSpec, plan: RunPlan, *, forward: Sequence[str]) -> dict[str, str]:
    """Return ``spec.yaml``, ``plan.json``, ``env``, ``forward`` and the engine's own settings.

    Args:
        spec: Resolved spec.
        plan: Its plan.
        forward: Variables that are taken from the shell that launches, beside those of the network.
    """
    return {
        "spec.yaml": dump_spec(spec),
        "plan.json": plan.to_json(),
        "env": render_environment(worker_environment(spec)),
        "forward": render_forward(forward),
        **engine_files(spec, plan),
    }


def node_script(spec: RunSpec, *, python: str, node_rank: str, caller: str, alone: bool = False) -> str:
    """Return ``node.sh``: the same on every host, however it is started there.

    Args:
        spec: Resolved spec.
        python: Absolute path of the interpreter on that host.
        node_rank: Bash expression for the host's number.
        caller: Who calls it, for people.
        alone: No process of ours is above all agents: this puts spec and plan into the run folder, and host 0's
            verdict is the run's.
    """
    return fill(
        "node.sh.j2",
        nodes=spec.cluster.nodes,
        devices=spec.cluster.devices_per_node,
        threads=spec.launcher.threads_per_process or 0,
        grace_s=f"{spec.launcher.grace_s:g}",
        python=python,
        node_rank=node_rank,
        caller=caller,
        alone=alone,
    )
