"""The objects of launcher.kind: kubernetes, what is said to kubectl, and what its pods run."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_scale.errors import LaunchError
from llama_scale.launchers.kubernetes_jobs import JOBS
from llama_scale.launchers.kubernetes_objects import RUN_NAME, literal
from llama_scale.launchers.kubernetes_queue import JobName, KubernetesQueue, judge_job, object_name
from llama_scale.launchers.queue import JobView
from llama_scale.runs.folder import write_files
from llama_scale.spec.load import load_spec
from tests.unit.launchers.bundles import HOSTILE, TWO_HOSTS, assert_golden, render, write_program

SITE: dict[str, Any] = {
    "kind": "kubernetes",
    "image": "registry.example/llama-scale:1",
    "claim": "runs",
    "namespace": "training",
    "context": "my cluster",
    "volumes": [{"claim": "data", "path": "/data", "read_only": True}],
    "resources": {"cpu": "32", "memory": "200Gi", "rdma/hca": "2"},
    "rdma": True,
    "node_selector": {"node.kubernetes.io/instance-type": "p5.48xlarge"},
    "tolerations": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}, {"key": "team", "value": "llm"}],
    "labels": {"kueue.x-k8s.io/queue-name": "train"},
    "secrets": {"WANDB_API_KEY": {"name": "wandb", "key": "api-key"}},
    "service_account": "trainer",
    "priority_class": "high",
    "image_pull_secrets": ["registry"],
    "threads_per_process": 4,
    "env": {"NCCL_DEBUG": "WARN"},
}


def overrides(flavour: str, **changes: Any) -> tuple[str, ...]:
    launcher = json.dumps({**SITE, "flavour": flavour, **changes})
    return (f"launcher={launcher}", *TWO_HOSTS, "cluster.device=cuda", "restart.max=3")


def objects_of(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("flavour", JOBS)
def test_rendered_text_is_the_golden_one(tmp_path: Path, flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = render(tmp_path, "kubernetes", *overrides(flavour))
    rest = bundle.files["job.yaml"].partition("\n---\n")[2]  # the ConfigMap holds the spec with this folder's name

    assert_golden(
        type(bundle)(files={**bundle.files, "job.yaml": rest}), f"kubernetes-{flavour}", "job.yaml", "node.sh"
    )
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.chdir(tmp_path)
    assert render(tmp_path, "kubernetes", *overrides(flavour), python="/elsewhere").files == bundle.files
    config = objects_of(bundle.files["job.yaml"])[0]
    assert config["data"] == {name: bundle.files[name] for name in ("spec.yaml", "plan.json", "env", "node.sh")}


def _pod(item: dict[str, Any]) -> dict[str, Any]:
    """Return the pod template somewhere inside an object."""
    if "containers" in item.get("spec", {}):
        return item
    for value in item.values():
        for below in value if isinstance(value, list) else [value]:
            if isinstance(below, dict) and (found := _pod(below)):
                return found
    return {}


def _expand(text: str) -> str:
    """Do what Kubernetes does to arguments when no variable of that name is set."""
    return re.sub(r"\$\$", "$", text)


@pytest.mark.parametrize("flavour", JOBS)
def test_command_of_the_pods_really_runs(tmp_path: Path, flavour: str) -> None:
    # What the cluster would do: mount the ConfigMap, give a pod its number, expand and call its command.
    here = tmp_path / "mounted"
    python = write_program(
        tmp_path / "bin", "python", f"printf '%s\\0' \"$@\" > {tmp_path}/argv; env -0 > {tmp_path}/environ"
    )
    changes = {"runs_path": f"{tmp_path}/r $(HOME) $$x 'q' \u00fc", "env": {"HOSTILE": HOSTILE}, "python": str(python)}
    job = render(tmp_path / "spec", "kubernetes", *overrides(flavour, **changes)).files["job.yaml"]
    config, *rest = objects_of(job.replace(RUN_NAME, "run-7"))
    write_files(here, config["data"])
    container = _pod(rest[0])["spec"]["containers"][0]

    command = [
        _expand(word).replace("/llama-scale/", f"{here}/") for word in [*container["command"], *container["args"]]
    ]
    numbers = {"JOB_COMPLETION_INDEX": "1", "RANK": "1", "LLAMA_SCALE_ATTEMPT": ""}
    for _ in range(2):  # a restart finds spec and plan there
        done = subprocess.run(command, env={"PATH": "/usr/bin:/bin", **numbers}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run = Path(changes["runs_path"]) / "run-7"
    argv = (tmp_path / "argv").read_bytes().decode().split("\0")[:-1]
    values = dict(zip(argv[3:-1:2], argv[4::2], strict=False))
    assert argv[:3] == ["-P", "-m", "llama_scale.train.agent"]
    assert values["--run"] == str(run) and values["--node-rank"] == "1" and values["--nnodes"] == "2"
    assert values["--rdzv-endpoint"].startswith("run-7-") and "--part" not in argv
    variables = dict(pair.split("=", 1) for pair in (tmp_path / "environ").read_bytes().decode().split("\0") if pair)
    assert variables["HOSTILE"] == HOSTILE and variables["LLAMA_SCALE_ATTEMPT"] == "0"
    assert (run / "spec.yaml").read_text() == config["data"]["spec.yaml"]
    assert not list(tmp_path.rglob("pwned")) and not list(run.glob(".*"))


def test_secrets_are_references_and_queues_see_one_job(tmp_path: Path) -> None:
    files = render(tmp_path, "kubernetes", *overrides("jobset")).files
    job = objects_of(files["job.yaml"])[-1]
    pod = _pod(job)

    secret = next(item for item in pod["spec"]["containers"][0]["env"] if item["name"] == "WANDB_API_KEY")
    assert secret == {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "api-key"}}}
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "train"
    assert "kueue.x-k8s.io/queue-name" not in pod["metadata"]["labels"]


def test_word_that_stands_for_the_name_is_refused_in_the_spec(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=f"the spec holds the word '{RUN_NAME}'"):
        render(tmp_path, "kubernetes", *overrides("jobset", env={"X": RUN_NAME}))


def test_bundle_that_no_config_map_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"a ConfigMap holds 1000000 bytes, and the bundle has \d+"):
        render(tmp_path, "kubernetes", *overrides("jobset", env={"X": "x" * 1_000_000}))


def test_pods_are_not_started_from_here(tmp_path: Path) -> None:
    from llama_scale.launchers.kubernetes import KubernetesLauncher

    with pytest.raises(LaunchError, match=r"starts no processes here"):
        KubernetesLauncher().submit(tmp_path, bundle=tmp_path, environment={}, log=tmp_path / "log")


@pytest.mark.parametrize("text", ["$", "$$", "$(HOME)", "$$(HOME)", "a $x"])
def test_dollars_survive_kubernetes(text: str) -> None:
    assert _expand(literal(text)) == text


@pytest.mark.parametrize(
    "run", ["tiny-20261124T135326Z-e37e", "7B", "_x", "a" * 90, "\u00fc", "x" * 39 + "-" + "y" * 9]
)
def test_names_of_objects_are_valid_and_differ(run: str) -> None:
    name = object_name(run)
    assert re.fullmatch(r"[a-z](?:[-a-z0-9]{0,38}[a-z0-9])?", name), name
    assert object_name(run + "2") != name


def test_job_names_are_read_back() -> None:
    job = JobName(resource="jobsets.x", name="a", options=(("context", "my cluster&x=y"), ("namespace", "n")))
    assert JobName.parse(str(job)) == job
    assert job.command("get")[:3] == ["kubectl", "--context=my cluster&x=y", "--namespace=n"]


_CONDITION = {"type": "Failed", "status": "True", "reason": "ReachedMaxRestarts", "message": "too many"}


@pytest.mark.parametrize(
    ("flavour", "shown", "expected"),
    [
        ("jobset", {}, ("waiting", "")),
        ("jobset", {"status": {"replicatedJobsStatus": [{"name": "node", "active": 1}]}}, ("running", "")),
        ("jobset", {"status": {"conditions": [{"type": "Completed", "status": "True"}]}}, ("ended", "succeeded")),
        ("jobset", {"status": {"conditions": [_CONDITION]}}, ("ended", "failed")),
        ("jobset", {"status": {"conditions": [{**_CONDITION, "status": "False"}]}}, ("waiting", "")),
        ("trainjob", {"spec": {"suspend": True}}, ("ended", "stopped")),
        ("trainjob", {"status": {"jobsStatus": [{"name": "node", "active": 1}]}}, ("running", "")),
        ("pytorchjob", {"spec": {"runPolicy": {"suspend": True}}}, ("ended", "stopped")),
        ("pytorchjob", {"status": {"replicaStatuses": {"Master": {"active": 1}}}}, ("running", "")),
    ],
)
def test_jobs_are_judged_by_their_conditions(flavour: str, shown: dict[str, Any], expected: tuple[str, str]) -> None:
    view = judge_job(shown, JOBS[flavour], words="job x")
    assert (view.phase, view.outcome) == expected
    assert view.words.startswith("job x is ")
    if expected[1] == "failed":
        assert "ReachedMaxRestarts: too many" in view.words


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that writes down what it is told."""
    folder = tmp_path / "bin"
    write_program(folder, "kubectl", f'printf "%s\\n" "$@" --- >> {folder}/argv; cat >> {folder}/stdin')
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def _submit(tmp_path: Path, flavour: str, **environment: str) -> tuple[str, ...]:
    write_files(tmp_path / "Run_1" / "bundle", render(tmp_path / "spec", "kubernetes", *overrides(flavour)).files)
    spec = load_spec(tmp_path / "Run_1" / "bundle" / "spec.yaml")
    run = tmp_path / "Run_1"
    return KubernetesQueue().submit(run, bundle=run / "bundle", spec=spec, environment=environment)


@pytest.mark.parametrize("flavour", JOBS)
def test_submission_applies_the_bundle_and_the_shells_network_variables(
    tmp_path: Path, kubectl: Path, flavour: str
) -> None:
    jobs = _submit(tmp_path, flavour, NCCL_DEBUG=HOSTILE, HF_TOKEN="t")

    resource = JOBS[flavour].resource
    assert jobs == (f"{resource}/run-1?context=my+cluster&namespace=training",)
    first, second, _ = (kubectl / "argv").read_text().split("---\n")
    assert first.splitlines()[2:] == ["delete", f"{resource}/run-1", "--ignore-not-found", "--wait=true"]
    assert second.splitlines() == ["--context=my cluster", "--namespace=training", "apply", "-f", "-"]
    applied = objects_of((kubectl / "stdin").read_text())
    assert applied[-1]["metadata"] == {"name": "run-1-forwarded", "namespace": "training"}
    assert applied[-1]["data"] == {"NCCL_DEBUG": HOSTILE}
    assert RUN_NAME not in (kubectl / "stdin").read_text()
    assert {item["metadata"]["namespace"] for item in applied} == {"training"}


def test_secret_of_the_shell_is_not_sent(tmp_path: Path, kubectl: Path) -> None:
    with pytest.raises(LaunchError, match=r"NCCL_X of this shell looks like a Hugging Face token") as caught:
        _submit(tmp_path, "jobset", NCCL_X="hf_" + "a" * 30)
    assert "aaaa" not in str(caught.value)


def test_run_is_suspended_and_its_log_asked_for(tmp_path: Path, kubectl: Path) -> None:
    queue, job = KubernetesQueue(), "pytorchjobs.kubeflow.org/run-1?namespace=n"
    queue.cancel([job])
    words = (kubectl / "argv").read_text().splitlines()
    assert words[1:3] == ["patch", "pytorchjobs.kubeflow.org/run-1"]
    assert json.loads(words[5]) == {"spec": {"runPolicy": {"suspend": True}}}
    assert queue.log_command([job], follow=True) == [
        *("kubectl", "--namespace=n", "logs", "--selector"),
        "training.kubeflow.org/job-name=run-1,training.kubeflow.org/replica-type=master",
        *("--tail=-1", "--follow"),
    ]
    assert queue.look([job]) == JobView(phase="ended", words="pytorchjobs run-1 is no longer in the cluster")


def test_missing_kubectl_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"kubectl is not installed here"):
        _submit(tmp_path, "jobset")
    assert KubernetesQueue().look(["jobsets.jobset.x-k8s.io/x"]).phase == "unknown"


def test_refusal_of_the_cluster_is_told(tmp_path: Path, kubectl: Path) -> None:
    write_program(kubectl, "kubectl", "echo 'error: no such context' >&2; exit 1")
    with pytest.raises(LaunchError, match=r"kubectl refused: error: no such context"):
        _submit(tmp_path, "jobset")
