"""The bundle of launcher.kind: mpi; real runs are in tests/cluster/test_mpi.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from llama_scale.errors import SpecError
from llama_scale.launchers.mpi import NODE_RANK
from llama_scale.runs.folder import write_files
from tests.unit.launchers.bundles import HOSTILE, TWO_HOSTS, assert_golden, render, write_program

HOSTS = (
    "launcher={kind: mpi, hosts: [node1, node2], forward: [WANDB_API_KEY], grace_s: 30, "
    "arguments: [--mca, oob_tcp_if_include, 10.0.0.0/24]}",
    *TWO_HOSTS,
)
ALLOCATION = ("launcher={kind: mpi, command: /opt/open mpi/bin/mpirun, master_port: 23456}", *TWO_HOSTS)


@pytest.mark.parametrize(("case", "overrides"), [("mpi", HOSTS), ("mpi-allocation", ALLOCATION)])
def test_rendered_text_is_the_golden_one(tmp_path: Path, case: str, overrides: tuple[str, ...]) -> None:
    bundle = render(tmp_path, "mpi", *overrides)
    names = {"launch.sh", "node.sh", "env", "forward", *(["hostfile"] if case == "mpi" else [])}

    assert_golden(bundle, case, *sorted(names))
    assert set(bundle.files) == {"spec.yaml", "plan.json", *names}
    assert render(tmp_path, "mpi", *overrides).files == bundle.files


@pytest.mark.parametrize("here", [True, False])
def test_hostile_values_reach_mpirun_and_the_agent(tmp_path: Path, here: bool) -> None:
    # mpirun is a program that writes down what it was called with, and then runs the command at the end of it.
    folder = tmp_path / HOSTILE.replace("/", "")
    python = write_program(
        folder,
        "py thon",
        f"[[ $* == *train.ports* ]] && echo 20001\n[[ $* == *train.command* ]] && {{ while [[ $1 != -- ]]; do shift; "
        f'done; shift; exec "$@"; }}\n[[ $* == *train.agent* ]] && {{ printf "%s\\0" "$@" > {tmp_path}/argv; '
        f"env -0 > {tmp_path}/environ; }}; true",
    )
    rest = 'while [[ $1 != bash ]]; do shift; done; OMPI_COMM_WORLD_RANK=0 exec "$@"'
    mpirun = write_program(tmp_path / "a b'c$(x)", "mpirun", f'printf "%s\\0" "$@" > {tmp_path}/mpirun\n{rest}')
    launcher = {"kind": "mpi", "command": str(mpirun), "env": {"HOSTILE": HOSTILE}}
    words = [f"launcher={json.dumps(launcher | ({} if here else {'hosts': ['node1']}))}"]
    bundle = render(tmp_path / "spec", "mpi", *words, python=str(python))
    write_files(folder / "bundle", bundle.files)

    done = subprocess.run(
        ["bash", "launch.sh", folder / "run"],
        cwd=folder / "bundle",
        env={"PATH": "/usr/bin:/bin", "NCCL_X": HOSTILE, "SECRET": "s"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    called = (tmp_path / "mpirun").read_bytes().decode().split("\0")
    assert "NCCL_X" in called and "SECRET" not in called and HOSTILE not in called
    assert Path(called[-4]) == folder / "bundle" / "node.sh" and called[-3] == str(folder / "run")
    assert called[-2] == ("127.0.0.1:20001" if here else "node1:20001")
    argv = (tmp_path / "argv").read_bytes().decode().split("\0")
    assert argv[3:5] == ["--run", str(folder / "run")]
    variables = dict(pair.split("=", 1) for pair in (tmp_path / "environ").read_bytes().decode().split("\0") if pair)
    assert variables["HOSTILE"] == HOSTILE and variables["NCCL_X"] == HOSTILE
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_RANK": "3", "SLURM_PROCID": "0"},
        {"PMI_RANK": "3"},
        {"PMIX_RANK": "3"},
        {"SLURM_PROCID": "3"},
    ],
)
def test_number_of_a_host_is_found_under_each_mpi(variables: dict[str, str]) -> None:
    done = subprocess.run(["bash", "-c", f"echo {NODE_RANK}"], env=variables, capture_output=True, text=True)
    assert done.stdout == "3\n"


def test_hosts_outside_an_allocation_are_asked_for(tmp_path: Path) -> None:
    write_files(tmp_path / "bundle", render(tmp_path / "spec", "mpi", *ALLOCATION).files)
    script = tmp_path / "bundle" / "launch.sh"
    done = subprocess.run(
        ["bash", script, tmp_path / "run"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 5 and "no hosts: name them in launcher.hosts" in done.stderr


def test_number_of_hosts_is_that_of_the_cluster(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"launcher.hosts: 1 host for cluster.nodes=2 .*; name 2 hosts, or set"):
        render(tmp_path, "mpi", "launcher={kind: mpi, hosts: [node1]}", *TWO_HOSTS)
