"""Several hosts over plain ssh: launch.sh becomes the head, which reaches a guard on every host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llama_scale.launchers.base import Bundle, Job
from llama_scale.launchers.cluster import common_files
from llama_scale.launchers.script import start_script
from llama_scale.launchers.template import fill
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.hostfile import render_hostfile
from llama_scale.spec.launcher_ssh import SshLauncher as SshSection
from llama_scale.spec.run import RunSpec


class SshLauncher:
    """Start the agent of every host over ssh."""

    def render(self, spec: RunSpec, plan: RunPlan, *, python: str) -> Bundle:
        """Return ``spec.yaml``, ``plan.json``, ``env``, ``forward``, ``hostfile`` and ``launch.sh``."""
        launcher = spec.launcher
        assert isinstance(launcher, SshSection), "the caller has looked at launcher.kind"
        script = fill(
            "ssh/launch.sh.j2",
            hosts=len(launcher.hosts),
            devices=spec.cluster.devices_per_node,
            threads=launcher.threads_per_process or 0,
            grace_s=f"{launcher.grace_s:g}",
            lease_s=f"{launcher.lease_s:g}",
            ssh_timeout_s=f"{launcher.ssh_timeout_s:g}",
            ssh_port=launcher.ssh_port or 0,
            master_port=launcher.master_port or 0,
            python=python,
        )
        return Bundle(
            files={
                **common_files(spec, plan, forward=launcher.forward),
                "hostfile": render_hostfile(launcher.hosts, slots=spec.cluster.devices_per_node),
                "launch.sh": script,
            }
        )

    def submit(self, run: Path, *, bundle: Path, environment: Mapping[str, str], log: Path) -> Job:
        """Run the bundle's script on this machine, the head; see ``Launcher.submit``."""
        return start_script(run, bundle=bundle, environment=environment, log=log)
