"""Site profiles: shipped ones, and a user's own in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_scale.errors import SpecError
from llama_scale.plan.fit import capacity_bytes
from llama_scale.spec.load import check_text, load_spec
from llama_scale.spec.profile_names import profile_names
from llama_scale.spec.profiles import load_profile, read_profile
from llama_scale.spec.quick import quick_check
from tests.live_runs import run_cli, write_spec

OWN = """
title: our nodes
device: cuda
gpu: h100
devices_per_node: 4
memory_gb: 94
nic: ConnectX-7
nics: 4
env: {NCCL_IB_HCA: "=mlx5_0,mlx5_1"}
"""


@pytest.mark.parametrize("name", [name for name in profile_names() if name != "laptop"])
def test_gpu_sites_say_how_their_network_is_reached(name: str) -> None:
    profile = load_profile(name)
    assert profile.nics and profile.nic and profile.cpus and profile.host_memory_gb
    assert any(variable.startswith(("NCCL_", "FI_")) for variable in profile.env)
    ports = profile.env.get("UCX_NET_DEVICES")
    if ports is not None:
        assert [port.removesuffix(":1") for port in ports.split(",")] == profile.env["NCCL_IB_HCA"][1:].split(",")
        assert len(ports.split(",")) == profile.nics


def test_own_profile_is_used_by_plan_and_launch(tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "specs")
    (tmp_path / "specs" / "site.yaml").write_text(OWN)
    words = ("--set", "cluster.profile_file=site.yaml", "--set", "cluster.device=cuda")

    resolved = load_spec(spec, overrides=[word for word in words if word != "--set"])
    assert resolved.cluster.site == "site.yaml" and resolved.cluster.profile_file == f"{tmp_path}/specs/site.yaml"
    capacity = capacity_bytes(resolved)
    assert capacity is not None and capacity > capacity_bytes_of("dgx-h100", spec)
    assert run_cli("validate", spec, *words).returncode == 0
    shown = run_cli("plan", spec, *words).stdout
    assert "Memory against one device of site.yaml" in shown and "h100" in shown


def capacity_bytes_of(profile: str, spec: Path) -> float:
    found = capacity_bytes(load_spec(spec, overrides=[f"cluster.profile={profile}", "cluster.device=cuda"]))
    assert found is not None
    return found


def test_one_profile_at_most(tmp_path: Path) -> None:
    text = write_spec(tmp_path).read_text().replace("cluster: {", "cluster: {profile: laptop, profile_file: x.yaml, ")
    assert quick_check(text) is None
    (found,) = check_text(text, name="s", folder="/").problems
    assert found.message == "both cluster.profile=laptop and a profile_file are given"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"site.yaml cannot be read: No such file or directory"),
        (b"\xff\xfe", r"site.yaml cannot be read: it is no text"),
        (b"a: [", r"site.yaml is not a profile: "),
        (b"", r"site.yaml is not a profile: the file: .*; see launch/profiles for examples"),
        (
            OWN.replace("memory_gb: 94", "memory: 94").encode(),
            r"memory_gb: Field required; memory: Extra inputs are not",
        ),
        (OWN.replace("our nodes", "hf_" + "a" * 30).encode(), r"looks like a Hugging Face token"),
    ],
)
def test_file_that_is_no_profile_is_told(tmp_path: Path, text: bytes | None, message: str) -> None:
    path = tmp_path / "site.yaml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(SpecError, match=message) as caught:
        read_profile(path)
    assert "aaaa" not in str(caught.value)
