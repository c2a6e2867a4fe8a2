"""Jobs against a real Kubernetes API server: LS_KUBECONFIG names one that serves TrainJob, PyTorchJob and JobSet.

A server of custom resources alone will do (no pod ever runs there): ConfigMaps are then left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from llama_scale.errors import LaunchError
from llama_scale.launchers.kubernetes_jobs import JOBS
from llama_scale.launchers.kubernetes_queue import KubernetesQueue
from llama_scale.runs.folder import write_files
from llama_scale.spec.load import load_spec
from tests.unit.launchers.bundles import render, write_program
from tests.unit.launchers.test_kubernetes import overrides

# kubectl, with what this server does not know taken out of what is applied.
_WITHOUT_CORE = """
if [[ " $* " == *" apply "* ]]; then
  python3 -c '
import sys
documents = sys.stdin.read().split("---\\n")
print("---\\n".join(text for text in documents if "kind: ConfigMap" not in text))' | exec REAL "$@"
else
  exec REAL "$@"
fi
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration, kubectl = os.environ.get("LS_KUBECONFIG"), shutil.which("kubectl")
    if not configuration or kubectl is None:
        pytest.skip(
            "NOT RUN: LS_KUBECONFIG names no Kubernetes API server with the CRDs of TrainJob, PyTorchJob and JobSet, "
            "or kubectl is missing: nothing was submitted to a real server"
        )
    monkeypatch.setenv("KUBECONFIG", configuration)
    known = subprocess.run(["kubectl", "api-resources", "-o", "name"], capture_output=True, text=True).stdout.split()
    if "configmaps" not in known:
        write_program(tmp_path / "bin", "kubectl", _WITHOUT_CORE.replace("REAL", kubectl))
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def _submit(folder: Path, flavour: str, **changes: object) -> tuple[str, ...]:
    words = overrides(flavour, context=None, namespace="default", **changes)
    shutil.rmtree(folder / "Run_1", ignore_errors=True)
    write_files(folder / "Run_1" / "bundle", render(folder / "spec", "kubernetes", *words).files)
    spec = load_spec(folder / "Run_1" / "bundle" / "spec.yaml")
    return KubernetesQueue().submit(folder / "Run_1", bundle=folder / "Run_1" / "bundle", spec=spec, environment={})


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("flavour", JOBS)
def test_job_is_accepted_suspended_and_submitted_again(tmp_path: Path, flavour: str) -> None:
    queue = KubernetesQueue()
    jobs = _submit(tmp_path, flavour)

    assert queue.look(jobs).phase == "waiting", queue.look(jobs)
    queue.cancel(jobs)
    assert queue.look(jobs).outcome == "stopped"
    assert _submit(tmp_path, flavour, resources={"cpu": "16"}) == jobs  # another bundle, in place of the first
    assert queue.look(jobs).phase == "waiting"
    subprocess.run(["kubectl", "delete", jobs[0].partition("?")[0]], check=True, capture_output=True)
    assert "no longer in the cluster" in queue.look(jobs).words


@pytest.mark.usefixtures("server")
def test_servers_refusal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/dev/null")
    with pytest.raises(LaunchError, match=r"kubectl refused: "):
        _submit(tmp_path, "jobset")
