"""Section ``launcher``, ``kind: kubernetes``: objects for Kubeflow Trainer, the Training Operator or JobSet."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import PositiveFloat, Section
from llama_scale.spec.launcher_fields import AbsolutePath, Grace, Threads, Variables

LABEL_PATTERN = r"^[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?$"
OBJECT_NAME_PATTERN = r"^[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?$"
ObjectName = Annotated[str, Field(pattern=OBJECT_NAME_PATTERN)]
"""Name of an object of the cluster (DNS subdomain)."""
QUALIFIED_PATTERN = r"^(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
"""Name of a label, a resource or a taint, with the domain that it belongs to."""
QualifiedName = Annotated[str, Field(pattern=QUALIFIED_PATTERN)]
LabelValue = Annotated[str, Field(pattern=r"^(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
QUANTITY_PATTERN = r"^[0-9]+(?:\.[0-9]+)?(?:m|[kMGTPE]|[KMGTPE]i)?$"
Quantity = Annotated[str, Field(pattern=QUANTITY_PATTERN)]

IMAGE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}$"


class Volume(Section):
    """A claim that all hosts mount, beside the one of the run folders."""

    claim: ObjectName = Field(description="PersistentVolumeClaim.")
    path: AbsolutePath = Field(description="Where it appears in the containers.")
    read_only: bool = Field(False, description="Mount it read-only.")


class SecretKey(Section):
    """A value that only the cluster knows."""

    name: ObjectName = Field(description="Secret.")
    key: Annotated[str, Field(pattern=r"^[-A-Za-z0-9_.]{1,253}$")] = Field(description="Key in it.")


class Toleration(Section):
    """A taint of nodes that the pods put up with."""

    key: QualifiedName | None = Field(None, description="Key of the taint; none: every taint.")
    value: LabelValue | None = Field(None, description="Its value; none: any.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="Default: all.")


class KubernetesLauncher(Section):
    """Pods, one a host, started as a set and restarted as a set."""

    kind: Literal["kubernetes"]
    flavour: Literal["trainjob", "pytorchjob", "jobset"] = Field(
        "trainjob", description="Kubeflow Trainer v2 TrainJob, Training Operator v1 PyTorchJob, or JobSet."
    )
    image: Annotated[str, Field(pattern=IMAGE_NAME_PATTERN)] = Field(
        description="Container image that has llama-scale."
    )
    python: AbsolutePath = Field("/usr/bin/python3", description="Interpreter inside the image.")
    claim: ObjectName = Field(description="PersistentVolumeClaim (ReadWriteMany) that run folders are on.")
    runs_path: AbsolutePath = Field("/runs", description="Where it appears in the containers.")
    volumes: tuple[Volume, ...] = Field((), description="More claims, e.g. with the token files.")
    context: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-][^\x00-\x1f\x7f]*$")] | None = Field(
        None, description="kubectl's context; default: the current one."
    )
    namespace: Annotated[str, Field(pattern=LABEL_PATTERN)] | None = Field(
        None, description="Namespace; default: the context's."
    )
    resources: dict[str, Quantity] = Field(
        {}, description="Resources of a pod, e.g. {cpu: '96', memory: 1500Gi, rdma/hca: '8'}; GPUs are added."
    )
    gpu_resource: QualifiedName = Field("nvidia.com/gpu", description="Resource that GPUs are.")
    rdma: bool = Field(False, description="Let pods lock memory (IPC_LOCK), as RDMA needs.")
    shared_memory_gb: PositiveFloat = Field(16.0, description="Size of /dev/shm, GB; it counts as memory of the pod.")
    node_selector: dict[str, LabelValue] = Field({}, description="Labels that nodes must have.")
    tolerations: tuple[Toleration, ...] = Field((), description="Taints that pods put up with.")
    labels: dict[str, LabelValue] = Field({}, description="Labels of the job, e.g. a queue of Kueue.")
    service_account: ObjectName | None = Field(None, description="Service account of the pods.")
    priority_class: ObjectName | None = Field(None, description="Priority class of the pods.")
    image_pull_secrets: tuple[ObjectName, ...] = Field((), description="Secrets for the registry, by name.")
    secrets: dict[str, SecretKey] = Field({}, description="Variables whose values are in secrets.")
    threads_per_process: Threads = None
    grace_s: Grace = 60.0
    env: Variables = Field({})
