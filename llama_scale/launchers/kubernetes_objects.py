"""The parts that all flavours of Kubernetes jobs have: ConfigMap, pod template, YAML text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llama_scale.spec.launcher_kubernetes import KubernetesLauncher, Toleration
from llama_scale.spec.run import RunSpec

RUN_NAME = "llama-scale-run-name"
"""Stands for the run's name in ``job.yaml``, so that a bundle does not depend on it; a valid name itself."""
BUNDLE_PATH = "/llama-scale"
"""Where the bundle's files are mounted."""
MAX_MAP_BYTES = 1_000_000
"""A ConfigMap holds 1 MiB at most."""
Object = dict[str, Any]

_LEAVE_S = 30
"""Time over the grace in which the agent kills ranks that hang and writes its verdict."""


def bundle_map(files: Mapping[str, str]) -> Object:
    """Return the ConfigMap of the bundle's files."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{RUN_NAME}-bundle", "labels": _labels({})},
        "data": dict(files),
    }


def metadata(launcher: KubernetesLauncher) -> Object:
    """Return the metadata of a job."""
    return {"name": RUN_NAME, "labels": _labels(launcher.labels)}


def _labels(extra: Mapping[str, str]) -> dict[str, str]:
    return {"app.kubernetes.io/name": "llama-scale", "app.kubernetes.io/instance": RUN_NAME, **extra}


def pod_template(
    spec: RunSpec, launcher: KubernetesLauncher, *, container: str, endpoint: str, attempt: str | None, port: str | None
) -> Object:
    """Return the template of the pods: one a host, each the same.

    Args:
        spec: Resolved spec.
        launcher: Its launcher section.
        container: Name of the container, on which some controllers rely.
        endpoint: ``HOST:PORT`` of the rendezvous.
        attempt: Annotation of the pod that counts restarts; None if there is none.
        port: Name of the container's port that some controllers want.
    """
    pod: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(launcher.grace_s) + _LEAVE_S,
        "containers": [_container(spec, launcher, name=container, endpoint=endpoint, attempt=attempt, port=port)],
        "volumes": _volumes(launcher),
    }
    if launcher.node_selector:
        pod["nodeSelector"] = dict(launcher.node_selector)
    if launcher.tolerations:
        pod["tolerations"] = [_toleration(item) for item in launcher.tolerations]
    if launcher.service_account is not None:
        pod["serviceAccountName"] = launcher.service_account
    if launcher.priority_class is not None:
        pod["priorityClassName"] = launcher.priority_class
    if launcher.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in launcher.image_pull_secrets]
    # Not the user's labels: a queue would take each pod for a job of its own.
    return {"metadata": {"labels": _labels({})}, "spec": pod}


def _container(
    spec: RunSpec, launcher: KubernetesLauncher, *, name: str, endpoint: str, attempt: str | None, port: str | None
) -> Object:
    resources = dict(launcher.resources)
    if spec.cluster.device == "cuda":
        resources[launcher.gpu_resource] = str(spec.cluster.devices_per_node)
    run = f"{launcher.runs_path.rstrip('/')}/{RUN_NAME}"
    found: Object = {
        "name": name,
        "image": launcher.image,
        "command": ["bash", f"{BUNDLE_PATH}/node.sh"],
        "args": [literal(run), endpoint],
        "env": _variables(launcher, attempt),
        # What the shell that launches forwards: written when the job is submitted, and in no bundle.
        "envFrom": [{"configMapRef": {"name": f"{RUN_NAME}-forwarded", "optional": True}}],
        "volumeMounts": _mounts(launcher),
    }
    if resources:
        found["resources"] = {"limits": resources, "requests": dict(resources)}
    if launcher.rdma:
        found["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}
    if port is not None:
        found["ports"] = [{"name": port, "containerPort": int(endpoint.rpartition(":")[2])}]
    return found


def literal(text: str) -> str:
    """Return text that Kubernetes gives back as it was: it replaces ``$(NAME)`` in arguments, and ``$$`` by ``$``."""
    return text.replace("$", "$$")


def _variables(launcher: KubernetesLauncher, attempt: str | None) -> list[Object]:
    found: list[Object] = []
    if attempt is not None:
        field = {"fieldRef": {"fieldPath": f"metadata.annotations['{attempt}']"}}
        found.append({"name": "LLAMA_SCALE_ATTEMPT", "valueFrom": field})
    for name, key in sorted(launcher.secrets.items()):
        found.append({"name": name, "valueFrom": {"secretKeyRef": {"name": key.name, "key": key.key}}})
    return found


def _mounts(launcher: KubernetesLauncher) -> list[Object]:
    found: list[Object] = [
        {"name": "bundle", "mountPath": BUNDLE_PATH, "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "runs", "mountPath": launcher.runs_path},
    ]
    for number, volume in enumerate(launcher.volumes):
        mount: Object = {"name": f"volume-{number}", "mountPath": volume.path}
        found.append(mount | ({"readOnly": True} if volume.read_only else {}))
    return found


def _volumes(launcher: KubernetesLauncher) -> list[Object]:
    megabytes = math.ceil(launcher.shared_memory_gb * 1000)
    found: list[Object] = [
        {"name": "bundle", "configMap": {"name": f"{RUN_NAME}-bundle"}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{megabytes}M"}},
        {"name": "runs", "persistentVolumeClaim": {"claimName": launcher.claim}},
    ]
    for number, volume in enumerate(launcher.volumes):
        claim: Object = {"claimName": volume.claim} | ({"readOnly": True} if volume.read_only else {})
        found.append({"name": f"volume-{number}", "persistentVolumeClaim": claim})
    return found


def _toleration(item: Toleration) -> Object:
    found: Object = {"operator": "Exists" if item.value is None else "Equal"}
    for name in ("key", "value", "effect"):
        value = getattr(item, name)
        if value is not None:
            found[name] = value
    return found


def dump_objects(objects: Sequence[Object]) -> str:
    """Return objects as YAML documents; texts of several lines stay readable where YAML can hold them so."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, represent)
    return yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120, explicit_start=True)
