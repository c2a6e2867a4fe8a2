"""The flavours of Kubernetes jobs: TrainJob (Kubeflow Trainer v2), PyTorchJob (Training Operator v1), JobSet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llama_scale.errors import PluginError, SpecError
from llama_scale.launchers.kubernetes_objects import RUN_NAME, Object, metadata, pod_template
from llama_scale.spec.launcher_kubernetes import KubernetesLauncher
from llama_scale.spec.run import RunSpec

_PORT = 29400
_RESTARTS = "jobset.sigs.k8s.io/restart-attempt"
"""Annotation that JobSet gives pods."""
_OWN_FAULTS = [SpecError.exit_code, PluginError.exit_code]
"""Exit statuses that another start would not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One kind of job.

    Args:
        resource: What kubectl calls it.
        node_rank: Bash expression for the number of a pod.
        objects: Renders its objects.
        suspend: Path of the switch that takes its pods away.
        first_pod: Labels of the pod of host 0; ``{name}`` is the job's.
        ended: Condition -> how the job ended.
    """

    resource: str
    node_rank: str
    objects: Callable[[RunSpec, KubernetesLauncher], list[Object]]
    suspend: tuple[str, ...]
    first_pod: str
    ended: Mapping[str, str]


def _job_set(spec: RunSpec, launcher: KubernetesLauncher, *, ancestor: bool) -> Object:
    """Return the spec of a JobSet: one indexed job whose pods are restarted as a set."""
    nodes = spec.cluster.nodes
    endpoint = f"{RUN_NAME}-node-0-0.{RUN_NAME}:{_PORT}"
    template = pod_template(spec, launcher, container="node", endpoint=endpoint, attempt=_RESTARTS, port=None)
    job: Object = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}} if ancestor else {},
        "spec": {
            "completionMode": "Indexed",
            "parallelism": nodes,
            "completions": nodes,
            "backoffLimit": 0,
            "podFailurePolicy": {
                "rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": _OWN_FAULTS}}]
            },
            "template": template,
        },
    }
    if not ancestor:
        del job["metadata"]
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": max(spec.restart.max, 0),
            "rules": [
                {"name": "ownFault", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
            ],
        },
        "replicatedJobs": [{"name": "node", "replicas": 1, "template": job}],
    }


def _jobset(spec: RunSpec, launcher: KubernetesLauncher) -> list[Object]:
    return [
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata(launcher),
            "spec": {"suspend": False, **_job_set(spec, launcher, ancestor=False)},
        }
    ]


def _trainjob(spec: RunSpec, launcher: KubernetesLauncher) -> list[Object]:
    """Return a runtime of the run's own, which says all about its pods, and the TrainJob that uses it."""
    version = "trainer.kubeflow.org/v1alpha1"
    numbers = {"numNodes": spec.cluster.nodes}
    runtime: Object = {
        "apiVersion": version,
        "kind": "TrainingRuntime",
        "metadata": metadata(launcher),
        "spec": {
            "mlPolicy": {**numbers, "torch": {}},
            "template": {"spec": _job_set(spec, launcher, ancestor=True)},
        },
    }
    job: Object = {
        "apiVersion": version,
        "kind": "TrainJob",
        "metadata": metadata(launcher),
        "spec": {
            "suspend": False,
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": RUN_NAME},
            "trainer": {**numbers, "numProcPerNode": spec.cluster.devices_per_node},
        },
    }
    return [runtime, job]


def _pytorchjob(spec: RunSpec, launcher: KubernetesLauncher) -> list[Object]:
    port = 23456
    endpoint = f"{RUN_NAME}-master-0:{port}"
    template = pod_template(
        spec, launcher, container="pytorch", endpoint=endpoint, attempt=None, port="pytorchjob-port"
    )
    replicas: Object = {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}
    if spec.cluster.nodes > 1:
        replicas["Worker"] = {"replicas": spec.cluster.nodes - 1, "restartPolicy": "Never", "template": template}
    return [
        {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": metadata(launcher),
            "spec": {
                "nprocPerNode": str(spec.cluster.devices_per_node),
                "runPolicy": {"suspend": False, "cleanPodPolicy": "Running", "backoffLimit": 0},
                "pytorchReplicaSpecs": replicas,
            },
        }
    ]


JOBS = {
    "trainjob": Flavour(
        resource="trainjobs.trainer.kubeflow.org",
        node_rank="${PET_NODE_RANK:-${JOB_COMPLETION_INDEX:-}}",
        objects=_trainjob,
        suspend=("spec", "suspend"),
        first_pod="jobset.sigs.k8s.io/jobset-name={name},batch.kubernetes.io/job-completion-index=0",
        ended={"Complete": "succeeded", "Failed": "failed"},
    ),
    "pytorchjob": Flavour(
        resource="pytorchjobs.kubeflow.org",
        node_rank="${RANK:-}",
        objects=_pytorchjob,
        suspend=("spec", "runPolicy", "suspend"),
        first_pod="training.kubeflow.org/job-name={name},training.kubeflow.org/replica-type=master",
        ended={"Succeeded": "succeeded", "Failed": "failed"},
    ),
    "jobset": Flavour(
        resource="jobsets.jobset.x-k8s.io",
        node_rank="${JOB_COMPLETION_INDEX:-}",
        objects=_jobset,
        suspend=("spec", "suspend"),
        first_pod="jobset.sigs.k8s.io/jobset-name={name},batch.kubernetes.io/job-completion-index=0",
        ended={"Completed": "succeeded", "Failed": "failed"},
    ),
}
"""Flavour -> what it is."""
