"""Objects against the real schemas, which are another project's files: LS_CRDS names a folder that has them."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from llama_scale.launchers.kubernetes_jobs import JOBS
from llama_scale.launchers.kubernetes_objects import RUN_NAME
from tests.unit.launchers.bundles import render
from tests.unit.launchers.crds import faults, load_definitions
from tests.unit.launchers.test_kubernetes import _pod, objects_of, overrides

Definitions = dict[tuple[str, str], dict[str, Any]]
KUBERNETES = "1.31"
KINDS = {
    "jobset": ["ConfigMap", "JobSet"],
    "pytorchjob": ["ConfigMap", "PyTorchJob"],
    "trainjob": ["ConfigMap", "TrainingRuntime", "TrainJob"],
}


@pytest.fixture(scope="module")
def definitions() -> Definitions:
    folder = os.environ.get("LS_CRDS")
    if not folder:
        pytest.skip(
            "NOT RUN: LS_CRDS names no folder with the CRDs of kubeflow/trainer, training-operator and jobset "
            "(.yaml or .yaml.gz): Kubernetes objects are not checked against the real schemas"
        )
    return load_definitions(Path(folder))


@pytest.mark.parametrize("flavour", JOBS)
def test_objects_fit_the_schemas_of_their_controllers(tmp_path: Path, flavour: str, definitions: Definitions) -> None:
    objects = objects_of(render(tmp_path, "kubernetes", *overrides(flavour)).files["job.yaml"])

    assert [item["kind"] for item in objects] == KINDS[flavour]
    for item in objects[1:]:
        assert faults(definitions, item) == []


@pytest.mark.parametrize("flavour", JOBS)
def test_core_objects_fit_kubernetes_own_schemas(tmp_path: Path, flavour: str) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    config, *rest = objects_of(render(tmp_path, "kubernetes", *overrides(flavour)).files["job.yaml"])
    validate(config, KUBERNETES, strict=True)
    pod = _pod(rest[0])
    metadata = {"name": "x", **pod["metadata"]}
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}, KUBERNETES, strict=True)
    if flavour == "jobset":
        job = rest[0]["spec"]["replicatedJobs"][0]["template"]["spec"]
        item = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": job}
        validate(item, KUBERNETES, strict=True)


def test_the_check_itself_finds_faults(tmp_path: Path, definitions: Definitions) -> None:
    good = objects_of(render(tmp_path, "kubernetes", *overrides("trainjob")).files["job.yaml"])[-1]
    for path, value, words in (
        (("spec", "trainer", "numNodez"), 1, "numNodez"),
        (("spec", "trainer", "numNodes"), "a", "is not of type 'integer'"),
        (("metadata", "name"), f"1-{RUN_NAME}", "RFC 1035"),
    ):
        bad = copy.deepcopy(good)
        place = bad
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert any(words in fault for fault in faults(definitions, bad)), path
