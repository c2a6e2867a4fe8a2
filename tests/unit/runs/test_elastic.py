"""A run that goes on with fewer hosts: which layout it gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llama_scale.errors import LaunchError
from llama_scale.launchers.base import load_launcher
from llama_scale.plan.run_plan import make_plan
from llama_scale.runs.elastic import choose_nodes, shrink
from llama_scale.runs.folder import RunFolder
from llama_scale.spec.load import load_spec
from llama_scale.spec.run import RunSpec
from tests.live_runs import write_spec


def spec_of(folder: Path, *changes: str) -> RunSpec:
    base = ["launcher={kind: ssh, hosts: [n1, n2, n3, n4]}", "cluster.nodes=4", "cluster.devices_per_node=2"]
    layout = ["parallel.pipeline=1", "parallel.data=4", "batch={global: 12, micro: 1}", "restart.min_nodes=1"]
    return load_spec(write_spec(folder), overrides=[*base, *layout, *changes])


@pytest.mark.parametrize(
    ("healthy", "changes", "chosen"),
    [
        (4, (), (4, 4)),
        (3, (), (3, 3)),
        (3, ("batch={global: 8, micro: 1}",), (2, 2)),
        (1, (), (1, 1)),
        (1, ("restart.min_nodes=2",), None),
        (3, ("parallel.pipeline=2", "parallel.data=2"), (2, 1)),
        (1, ("parallel.pipeline=2", "parallel.data=2"), None),
        (0, (), None),
    ],
)
def test_most_hosts_that_the_layout_allows(
    tmp_path: Path, healthy: int, changes: tuple[str, ...], chosen: tuple[int, int] | None
) -> None:
    assert choose_nodes(spec_of(tmp_path, *changes), healthy=healthy) == chosen


def run_of(folder: Path, spec: RunSpec) -> RunFolder:
    bundle = load_launcher("ssh").render(spec, make_plan(spec), python=sys.executable)
    return RunFolder.create(folder / "runs", name="tiny", files=bundle.files)


def test_bundle_is_remade_for_the_hosts_that_are_left(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    run = run_of(tmp_path, spec)
    shrunk = shrink(run, spec, healthy=["n1", "n3", "n4"])
    assert shrunk.message.startswith("no answer from n2: on 3 of 4 hosts from here on")
    assert (run.bundle / "hostfile").read_text() == "n1 slots=2\nn3 slots=2\nn4 slots=2\n"
    again = load_spec(run.spec)
    assert again == shrunk.spec
    assert (again.parallel.data, again.batch.global_, again.batch.accumulation) == (3, 12, 4)
    assert (run.path / "bundle-000" / "hostfile").read_text().startswith("n1 slots=2\nn2 slots=2\n")


def test_too_few_hosts_are_refused_with_the_rule(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "restart.min_nodes=2")
    with pytest.raises(LaunchError, match=r"no answer from n1, n2, n3; 1 hosts are left, and restart.min_nodes=2"):
        shrink(run_of(tmp_path, spec), spec, healthy=["n4"])
