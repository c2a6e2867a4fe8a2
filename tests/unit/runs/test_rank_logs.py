"""Which file holds a rank's output."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llama_scale.launchers.base import load_launcher
from llama_scale.plan.run_plan import make_plan
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.rank_logs import rank_log_path
from llama_scale.spec.load import load_spec
from tests.live_runs import write_spec


@pytest.mark.parametrize(
    ("devices", "rank", "name"),
    [(32, 63, "rank-00063.log"), (33, 0, "node-00000.log"), (33, 33, "node-00001.log"), (33, 65, "node-00001.log")],
)
def test_logs_are_of_hosts_above_64_ranks(tmp_path: Path, devices: int, rank: int, name: str) -> None:
    changes = [f"cluster.devices_per_node={devices}", "cluster.nodes=2", "launcher={kind: ssh, hosts: [n1, n2]}"]
    layout = ["parallel.tensor=1", "parallel.pipeline=1", f"parallel.data={2 * devices}"]
    batch = [f"batch={{global: {2 * devices}, micro: 1}}"]
    spec = load_spec(write_spec(tmp_path), overrides=[*changes, *layout, *batch])
    bundle = load_launcher("ssh").render(spec, make_plan(spec), python=sys.executable)
    run = RunFolder.create(tmp_path / "runs", name="tiny", files=bundle.files)
    assert rank_log_path(run, rank) == run.logs / name


def test_log_of_an_earlier_layout_is_found(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.logs.mkdir()
    run.rank_log(500).touch()
    assert rank_log_path(run, 500) == run.rank_log(500)
