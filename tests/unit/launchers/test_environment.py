from __future__ import annotations

from pathlib import Path

import pytest

from llama_scale.errors import LaunchError
from llama_scale.launchers.base import Bundle
from llama_scale.launchers.environment import forward_regex, forwarded, render_forward, worker_environment
from llama_scale.spec.load import load_spec
from tests.live_runs import write_spec


def _variables(folder: Path, *overrides: str) -> dict[str, str]:
    return worker_environment(load_spec(write_spec(folder), overrides=overrides))


def test_cpu_run_uses_the_loopback_interface(tmp_path: Path) -> None:
    assert _variables(tmp_path)["GLOO_SOCKET_IFNAME"] == "lo"


def test_spec_wins_and_the_list_is_sorted(tmp_path: Path) -> None:
    values = _variables(tmp_path, "launcher.env={GLOO_SOCKET_IFNAME: eth0, A: b}")
    assert values["GLOO_SOCKET_IFNAME"] == "eth0"
    assert list(values) == sorted(values)


@pytest.mark.parametrize(("tensor", "expected"), [(2, "1"), (1, None)])
def test_tensor_parallel_megatron_on_cuda_launches_kernels_in_order(
    tmp_path: Path, tensor: int, expected: str | None
) -> None:
    values = _variables(
        tmp_path, "cluster.device=cuda", f"parallel.tensor={tensor}", f"cluster.devices_per_node={2 * tensor}"
    )
    assert values.get("CUDA_DEVICE_MAX_CONNECTIONS") == expected
    assert "GLOO_SOCKET_IFNAME" not in values


def test_network_variables_are_always_forwarded_and_others_by_name() -> None:
    text = render_forward(["WANDB_API_KEY"])
    shell = {"NCCL_DEBUG": "INFO", "UCX_TLS": "rc", "WANDB_API_KEY": "k", "HF_TOKEN": "t", "XNCCL_A": "x"}
    assert list(forwarded(shell, text)) == ["NCCL_DEBUG", "UCX_TLS", "WANDB_API_KEY"]
    assert "HF_TOKEN" not in text and forward_regex(["B", "A_*"]) == "^(A_.*|B)$"


def test_bundle_with_a_secret_is_refused() -> None:
    secret = "hf_" + "a1B2" * 8
    with pytest.raises(
        LaunchError, match=r"launch.sh of the bundle holds what looks like a Hugging Face token"
    ) as found:
        Bundle(files={"spec.yaml": "", "launch.sh": f"export X={secret}\n"})
    assert secret not in str(found.value)
