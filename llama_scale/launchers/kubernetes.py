"""Kubernetes: a job of Kubeflow Trainer, of the Training Operator or of JobSet, with the bundle in a ConfigMap."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llama_scale.errors import LaunchError
from llama_scale.launchers.base import Bundle, Job
from llama_scale.launchers.cluster import common_files, node_script
from llama_scale.launchers.kubernetes_jobs import JOBS
from llama_scale.launchers.kubernetes_objects import MAX_MAP_BYTES, RUN_NAME, bundle_map, dump_objects
from llama_scale.launchers.kubernetes_queue import KubernetesQueue
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.launcher_kubernetes import KubernetesLauncher as Section
from llama_scale.spec.run import RunSpec


class KubernetesLauncher:
    """Render the objects of a job and hand them to a cluster through kubectl."""

    queue = KubernetesQueue()

    def render(self, spec: RunSpec, plan: RunPlan, *, python: str) -> Bundle:
        """Return ``job.yaml``, and the files that its ConfigMap holds.

        ``python`` is of this machine and means nothing in an image, so ``launcher.python`` is used.

        Raises:
            LaunchError: The spec holds the word that stands for the run's name, or is too large for a ConfigMap.
        """
        launcher = spec.launcher
        assert isinstance(launcher, Section), "the caller has looked at launcher.kind"
        flavour = JOBS[launcher.flavour]
        node = node_script(spec, python=launcher.python, node_rank=flavour.node_rank, caller="Kubernetes", alone=True)
        files = common_files(spec, plan, forward=()) | {"node.sh": node}
        if any(RUN_NAME in text for text in files.values()):
            raise LaunchError(f"the spec holds the word {RUN_NAME!r}, which stands for the run's name in job.yaml")
        mounted = {name: text for name, text in files.items() if name != "forward"}
        size = sum(len(text.encode()) for text in mounted.values())
        if size > MAX_MAP_BYTES:
            raise LaunchError(f"a ConfigMap holds {MAX_MAP_BYTES} bytes, and the bundle has {size}; shorten the spec")
        objects = [bundle_map(mounted), *flavour.objects(spec, launcher)]
        for item in objects:
            if launcher.namespace is not None:
                item["metadata"]["namespace"] = launcher.namespace
        return Bundle(files=files | {"job.yaml": dump_objects(objects)})

    def submit(self, run: Path, *, bundle: Path, environment: Mapping[str, str], log: Path) -> Job:
        """Refuse: pods are started by the cluster.

        Raises:
            LaunchError: Always.
        """
        raise LaunchError("launcher.kind: kubernetes starts no processes here; use `llama-scale launch`")
