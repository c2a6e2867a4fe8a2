"""Processes on this machine: a shell script that becomes the agent, which forks the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llama_scale.engines.files import engine_files
from llama_scale.errors import Problem, SpecError
from llama_scale.launchers.base import Bundle, Job
from llama_scale.launchers.environment import render_environment, worker_environment
from llama_scale.launchers.script import start_script
from llama_scale.launchers.template import fill
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.load import dump_spec
from llama_scale.spec.run import RunSpec


class LocalLauncher:
    """Start all ranks as processes of this machine."""

    def render(self, spec: RunSpec, plan: RunPlan, *, python: str) -> Bundle:
        """Return ``spec.yaml``, ``plan.json``, ``env`` and ``launch.sh``; see ``Launcher.render``.

        Raises:
            SpecError: The cluster has several nodes. This is no rule of ``validate``: a run for a cluster is checked
                and planned before anybody decides how it is started there.
        """
        if spec.cluster.nodes != 1:
            raise SpecError([_several_nodes(spec.cluster.nodes)])
        script = fill(
            "local/launch.sh.j2",
            processes=plan.topology.world_size,
            threads=spec.launcher.threads_per_process or 0,
            grace_s=f"{spec.launcher.grace_s:g}",
            python=python,
        )
        files = {
            "spec.yaml": dump_spec(spec),
            "plan.json": plan.to_json(),
            "env": render_environment(worker_environment(spec)),
            "launch.sh": script,
            **engine_files(spec, plan),
        }
        return Bundle(files=files)

    def submit(self, run: Path, *, bundle: Path, environment: Mapping[str, str], log: Path) -> Job:
        """Run ``bash bundle/launch.sh RUN`` in a session of its own that ends when the caller dies."""
        return start_script(run, bundle=bundle, environment=environment, log=log)


def _several_nodes(nodes: int) -> Problem:
    return Problem(
        path=("launcher", "kind"),
        message=f"the local launcher starts processes on this machine only, and cluster.nodes={nodes}",
        hint="name a launcher that reaches other hosts (kind: deepspeed), or set cluster.nodes to 1 and "
        "cluster.devices_per_node to the number of processes",
        code="launcher-nodes",
    )
