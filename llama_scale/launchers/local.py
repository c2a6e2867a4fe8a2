"""Processes on this machine: a shell script that becomes the agent, which forks the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llama_scale.engines.files import engine_files
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
        """Return ``spec.yaml``, ``plan.json``, ``env`` and ``launch.sh``; see ``Launcher.render``."""
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
