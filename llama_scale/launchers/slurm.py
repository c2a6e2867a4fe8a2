"""A Slurm batch job: the supervisor runs on its first node and starts one agent a node through srun."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llama_scale.launchers.base import Bundle, Job
from llama_scale.launchers.cluster import common_files, node_script
from llama_scale.launchers.environment import BASE_VARIABLES, NETWORK_VARIABLES, forward_regex
from llama_scale.launchers.script import start_script
from llama_scale.launchers.slurm_queue import SlurmQueue
from llama_scale.launchers.template import fill
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.launcher_slurm import SlurmLauncher as Section
from llama_scale.spec.run import RunSpec
from llama_scale.spec.scheduler_rules import signal_lead_s


class SlurmLauncher:
    """Render and queue a batch job; inside the job, start the ranks."""

    queue = SlurmQueue()

    def render(self, spec: RunSpec, plan: RunPlan, *, python: str) -> Bundle:
        """Return ``job.sh`` for sbatch, ``launch.sh`` for the job, ``node.sh`` for each node, and what they read."""
        launcher = spec.launcher
        assert isinstance(launcher, Section), "the caller has looked at launcher.kind"
        values = {
            "job_name": spec.name,
            "nodes": spec.cluster.nodes,
            "devices": spec.cluster.devices_per_node,
            "device": spec.cluster.device,
            "cpus": _cpus(spec, launcher) or 0,
            "python": python,
        }
        job = fill(
            "slurm/job.sh.j2",
            **values,
            options=_options(spec, launcher),
            requeue=launcher.requeue,
            lead_s=signal_lead_s(launcher.grace_s),
        )
        names = (*BASE_VARIABLES, *launcher.forward)
        launch = fill(
            "slurm/launch.sh.j2",
            **values,
            host_python=python,
            grace_s=f"{launcher.grace_s:g}",
            container=launcher.container,
            bases=spec.model.init_from is not None,
            forward_regex=forward_regex((*NETWORK_VARIABLES, *launcher.forward)),
        )
        inside = launcher.container.python if launcher.container else python
        node = node_script(spec, python=inside, node_rank="${SLURM_NODEID:-}", caller="srun")
        files = common_files(spec, plan, forward=names)
        return Bundle(files=files | {"job.sh": job, "launch.sh": launch, "node.sh": node})

    def submit(self, run: Path, *, bundle: Path, environment: Mapping[str, str], log: Path) -> Job:
        """Run the bundle's ``launch.sh`` inside the job. See ``Launcher.submit``."""
        return start_script(run, bundle=bundle, environment=environment, log=log)


def _cpus(spec: RunSpec, launcher: Section) -> int | None:
    """Return the CPUs of a node: Slurm gives one task one CPU unless it is asked."""
    if launcher.cpus_per_node is not None:
        return launcher.cpus_per_node
    return None if launcher.exclusive else spec.cluster.devices_per_node


def _options(spec: RunSpec, launcher: Section) -> list[tuple[str, str | None]]:
    """Return options of sbatch in the order of the section."""
    gres = launcher.gres
    if gres is None and spec.cluster.device == "cuda":
        gres = f"gpu:{spec.cluster.devices_per_node}"
    chosen: list[tuple[str, str | None]] = [
        (name, value)
        for name, value in (
            ("partition", launcher.partition),
            ("account", launcher.account),
            ("qos", launcher.qos),
            ("time", launcher.time),
            ("gres", gres),
        )
        if value
    ]
    if launcher.exclusive:
        chosen.append(("exclusive", None))
    # An option without a value is a switch, e.g. {contiguous: ''}.
    return chosen + [(name, value or None) for name, value in sorted(launcher.options.items())]
