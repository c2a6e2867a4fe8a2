"""Descriptors of the built-in launchers; their options are the keys of the section ``launcher`` itself."""

from __future__ import annotations

from llama_scale.extensions.api import LauncherDescriptor
from llama_scale.spec.launcher import DeepSpeedLauncher, LocalLauncher
from llama_scale.spec.launcher_kubernetes import KubernetesLauncher
from llama_scale.spec.launcher_mpi import MpiLauncher
from llama_scale.spec.launcher_slurm import SlurmLauncher
from llama_scale.spec.launcher_ssh import SshLauncher

LOCAL = LauncherDescriptor(
    name="local",
    options=LocalLauncher,
    implementation="llama_scale.launchers.local:LocalLauncher",
    summary="processes on this machine",
)
SSH = LauncherDescriptor(
    name="ssh",
    options=SshLauncher,
    implementation="llama_scale.launchers.ssh:SshLauncher",
    summary="several hosts over plain ssh, with a lease",
    sample_options={"hosts": ["node1"]},
)
DEEPSPEED = LauncherDescriptor(
    name="deepspeed",
    options=DeepSpeedLauncher,
    implementation="llama_scale.launchers.deepspeed:DeepSpeedLauncher",
    summary="the `deepspeed` command, here or through pdsh",
)
SLURM = LauncherDescriptor(
    name="slurm",
    options=SlurmLauncher,
    implementation="llama_scale.launchers.slurm:SlurmLauncher",
    summary="a Slurm batch job",
)
MPI = LauncherDescriptor(
    name="mpi",
    options=MpiLauncher,
    implementation="llama_scale.launchers.mpi:MpiLauncher",
    summary="mpirun, one agent a host",
)
KUBERNETES = LauncherDescriptor(
    name="kubernetes",
    options=KubernetesLauncher,
    implementation="llama_scale.launchers.kubernetes:KubernetesLauncher",
    summary="a job of a Kubernetes cluster",
    sample_options={"image": "registry.example/llama-scale:1", "claim": "runs"},
)
