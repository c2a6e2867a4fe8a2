from __future__ import annotations

from pathlib import Path

import pytest

from llama_scale.launchers.environment import worker_environment
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
