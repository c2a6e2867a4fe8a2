"""The ``deepspeed`` command, for those who must use it: on this machine, or on several hosts through pdsh and ssh."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from llama_scale.engines.files import engine_files
from llama_scale.errors import LaunchError
from llama_scale.launchers.base import Bundle, Job
from llama_scale.launchers.environment import render_environment, worker_environment
from llama_scale.launchers.script import start_script
from llama_scale.launchers.template import fill
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec import launcher as forms
from llama_scale.spec.hostfile import render_hostfile
from llama_scale.spec.load import dump_spec
from llama_scale.spec.run import RunSpec

_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+-]+")


class DeepSpeedLauncher:
    """Start all ranks through DeepSpeed's own launcher."""

    def render(self, spec: RunSpec, plan: RunPlan, *, python: str) -> Bundle:
        """Return ``spec.yaml``, ``plan.json``, ``env``, ``launch.sh`` and, for other hosts, ``hostfile``.

        Raises:
            LaunchError: The interpreter's path would not survive the shell of another host.
        """
        launcher = spec.launcher
        assert isinstance(launcher, forms.DeepSpeedLauncher), "the caller has looked at launcher.kind"
        if launcher.hosts and not _PLAIN_PATH.fullmatch(python):
            raise LaunchError(
                f"the interpreter {python!r} has characters in its path that DeepSpeed does not quote on other hosts; "
                "use one in a folder of letters, digits, _, -, + and ."
            )
        # DeepSpeed would otherwise guess from installed packages; its launcher asks as well, whatever the engine.
        environment = {"DS_ACCELERATOR": spec.cluster.device} | worker_environment(spec)
        script = fill(
            "deepspeed/launch.sh.j2",
            processes=plan.topology.world_size,
            nodes=spec.cluster.nodes,
            devices=spec.cluster.devices_per_node,
            device=spec.cluster.device,
            hosts=launcher.hosts,
            master_port=launcher.master_port or 0,
            ssh_port=launcher.ssh_port or 0,
            ssh_timeout_s=f"{launcher.ssh_timeout_s:g}",
            threads=launcher.threads_per_process or 0,
            grace_s=f"{launcher.grace_s:g}",
            python=python,
        )
        files = {
            "spec.yaml": dump_spec(spec),
            "plan.json": plan.to_json(),
            "env": render_environment(dict(sorted(environment.items()))),
            "launch.sh": script,
            **engine_files(spec, plan),
        }
        if launcher.hosts:
            files["hostfile"] = render_hostfile(launcher.hosts, slots=spec.cluster.devices_per_node)
        return Bundle(files=files)

    def submit(self, run: Path, *, bundle: Path, environment: Mapping[str, str], log: Path) -> Job:
        """Run the bundle's script on this machine; it reaches the others. See ``Launcher.submit``."""
        return start_script(run, bundle=bundle, environment=environment, log=log)
