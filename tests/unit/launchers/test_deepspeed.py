"""The bundle of launcher.kind: deepspeed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from llama_scale.errors import LaunchError
from llama_scale.launchers.base import Bundle, load_launcher
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.load import load_spec
from tests.live_runs import environment, write_spec

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
HERE = ("launcher={kind: deepspeed, threads_per_process: 1, grace_s: 30}",)
HOSTS = (
    "launcher={kind: deepspeed, hosts: [node1, node2], ssh_port: 2222, env: {NCCL_DEBUG: WARN, TEXT: it is}}",
    "cluster.nodes=2",
    "cluster.devices_per_node=2",
)
_HOSTILE = 'it\'s "$(touch pwned)" `touch pwned` \\ $HOME\n\u00fc; touch pwned #'


def _render(folder: Path, *overrides: str, python: str = "/opt/python/bin/python3") -> Bundle:
    spec = load_spec(write_spec(folder), overrides=overrides)
    return load_launcher("deepspeed").render(spec, make_plan(spec), python=python)


@pytest.mark.parametrize(
    ("case", "overrides", "names"),
    [
        ("deepspeed", HERE, ("launch.sh", "env")),
        ("deepspeed-hosts", HOSTS, ("launch.sh", "env", "hostfile")),
        ("deepspeed-cuda", (*HERE, "cluster.device=cuda"), ("launch.sh", "env")),
    ],
)
def test_rendered_text_is_the_golden_one(
    tmp_path: Path, case: str, overrides: tuple[str, ...], names: tuple[str, ...]
) -> None:
    # A change of the template is reviewed as a change of these files: LS_UPDATE_GOLDEN=1 rewrites them.
    files = _render(tmp_path, *overrides).files
    for name in names:
        golden = GOLDEN / case / name
        if os.environ.get("LS_UPDATE_GOLDEN"):
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(files[name], encoding="utf-8")
        assert files[name] == golden.read_text(encoding="utf-8")
    assert ("hostfile" in files) == ("hostfile" in names)


def test_same_spec_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _render(tmp_path, *HOSTS)
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.chdir(tmp_path)
    assert _render(tmp_path, *HOSTS).files == first.files


def test_deepspeed_engine_brings_its_settings_along(tmp_path: Path) -> None:
    layout = ("parallel.tensor=1", "parallel.pipeline=1", "parallel.data=4", "engine={kind: deepspeed}")
    assert json.loads(_render(tmp_path, *HERE, *layout).files["ds_config.json"])["zero_optimization"]["stage"] == 1


def test_interpreter_that_other_hosts_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"'/opt/my python' has characters in its path that DeepSpeed does not quote"):
        _render(tmp_path, *HOSTS, python="/opt/my python")
    assert "'/opt/my python' -P -m" in _render(tmp_path, *HERE, python="/opt/my python").files["launch.sh"]


@pytest.mark.parametrize("devices", ["", "2,3,4,5"])
def test_hostile_names_and_values_really_run(tmp_path: Path, devices: str) -> None:
    # The interpreter is a script that writes down what it was called with: launch.sh is executed as it is.
    here = tmp_path / _HOSTILE.replace("/", "")
    here.mkdir()
    python = here / "py thon"
    python.write_text(
        f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {tmp_path}/argv; env -0 > {tmp_path}/environ\n", encoding="utf-8"
    )
    python.chmod(0o755)
    launcher = json.dumps({"kind": "deepspeed", "env": {"HOSTILE": _HOSTILE}})
    bundle = _render(tmp_path / "spec", f"launcher={launcher}", "cluster.device=cuda", python=str(python))
    folder = here / "bundle"
    folder.mkdir()
    for name, text in bundle.files.items():
        (folder / name).write_text(text, encoding="utf-8")

    done = subprocess.run(
        ["bash", "launch.sh", str(here / "run")],
        cwd=folder,
        env=environment(PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="77", CUDA_VISIBLE_DEVICES=devices),
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    argv = (tmp_path / "argv").read_bytes().decode().split("\0")[:-1]
    cut = argv.index("--")
    assert argv[:5] == ["-P", "-m", "llama_scale.train.deepspeed_agent", "--run", str(here / "run")]
    assert Path(argv[argv.index("--env-file") + 1]) == folder / "env"
    count = ["--include", f"localhost:{devices}"] if devices else ["--num_nodes", "1", "--num_gpus", "4"]
    assert argv[cut + 1 :] == [
        *(str(python), "-m", "deepspeed.launcher.runner", "--hostfile", "/dev/null", "--no_local_rank"),
        *("--log_level", "warning"),
        *count,
    ]
    variables = dict(pair.split("=", 1) for pair in (tmp_path / "environ").read_bytes().decode().split("\0") if pair)
    assert variables["HOSTILE"] == _HOSTILE and variables["DS_ACCELERATOR"] == "cuda"
    assert "OMP_NUM_THREADS" not in variables and "PYTHONDONTWRITEBYTECODE" not in variables
    assert not list(tmp_path.rglob("pwned"))
