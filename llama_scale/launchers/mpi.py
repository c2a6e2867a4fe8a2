"""OpenMPI's mpirun starts one agent a host; the agent forks the ranks, as on every launcher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from llama_scale.launchers.base import Bundle, Job
from llama_scale.launchers.cluster import common_files, node_script
from llama_scale.launchers.environment import NETWORK_VARIABLES, forward_regex
from llama_scale.launchers.script import start_script
from llama_scale.launchers.template import fill
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.hostfile import render_hostfile
from llama_scale.spec.launcher_mpi import MpiLauncher as Section
from llama_scale.spec.run import RunSpec

NODE_RANK = "${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-${PMIX_RANK:-${SLURM_PROCID:-}}}}"
"""Number of a host as OpenMPI, MPICH and Intel MPI, PMIx, and srun give it."""
_OWN_VARIABLES = ("LLAMA_SCALE_*",)


class MpiLauncher:
    """Start all ranks through mpirun."""

    def render(self, spec: RunSpec, plan: RunPlan, *, python: str) -> Bundle:
        """Return ``launch.sh``, ``node.sh`` for each host, ``hostfile`` if hosts are named, and what they read."""
        launcher = spec.launcher
        assert isinstance(launcher, Section), "the caller has looked at launcher.kind"
        script = fill(
            "mpi/launch.sh.j2",
            nodes=spec.cluster.nodes,
            devices=spec.cluster.devices_per_node,
            hosts=launcher.hosts,
            command=launcher.command,
            arguments=launcher.arguments,
            master_port=launcher.master_port or 0,
            kill_s=math.ceil(launcher.grace_s),
            grace_s=f"{launcher.grace_s:g}",
            forward_regex=forward_regex((*NETWORK_VARIABLES, *_OWN_VARIABLES, *launcher.forward)),
            python=python,
        )
        node = node_script(spec, python=python, node_rank=NODE_RANK, caller="mpirun")
        files = common_files(spec, plan, forward=launcher.forward) | {"launch.sh": script, "node.sh": node}
        if launcher.hosts:
            files["hostfile"] = render_hostfile(launcher.hosts, slots=spec.cluster.devices_per_node)
        return Bundle(files=files)

    def submit(self, run: Path, *, bundle: Path, environment: Mapping[str, str], log: Path) -> Job:
        """Run the bundle's script on this machine; it reaches the others. See ``Launcher.submit``."""
        return start_script(run, bundle=bundle, environment=environment, log=log)
