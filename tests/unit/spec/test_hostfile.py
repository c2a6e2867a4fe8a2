"""DeepSpeed's hostfile: what is read, what is refused, and how a spec's hosts come from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_scale.errors import SpecError
from llama_scale.spec.hostfile import Host, HostfileError, parse_hostfile, render_hostfile
from llama_scale.spec.launcher import DeepSpeedLauncher
from llama_scale.spec.load import dump_spec, load_spec
from llama_scale.spec.quick import check_document
from llama_scale.spec.run import RunSpec
from tests.live_runs import write_spec
from tests.unit.spec.documents import document


def test_comments_spaces_and_order_are_kept_as_deepspeed_reads_them() -> None:
    text = "# the cluster\n\n  node2   slots=4\t# rack 1\nnode1 slots=8\n"
    assert parse_hostfile(text) == (Host("node2", 4), Host("node1", 8))


def test_rendered_hostfile_is_read_back() -> None:
    assert parse_hostfile(render_hostfile(["a", "b.example.org"], slots=2)) == (Host("a", 2), Host("b.example.org", 2))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("node1\n", "line 1: 'node1' is not NAME slots=N"),
        ("node1 slots=0\n", "line 1: 'node1 slots=0' is not NAME slots=N"),
        ("node1 slots=2 gpus\n", "is not NAME slots=N"),
        ("-oProxyCommand=x slots=2\n", "is not NAME slots=N"),
        ("node[1-4] slots=2\n", "is not NAME slots=N"),
        ("a slots=1\n\na slots=2\n", "line 3: a is named twice"),
        ("# nothing\n", "it names no host"),
    ],
)
def test_bad_lines_are_named(text: str, fault: str) -> None:
    with pytest.raises(HostfileError) as caught:
        parse_hostfile(text)
    assert fault in str(caught.value)


def _load(folder: Path, *launcher: str, nodes: int = 2) -> RunSpec:
    spec = write_spec(folder)
    devices = 4 // nodes
    places = [f"cluster.nodes={nodes}", f"cluster.devices_per_node={devices}"]
    return load_spec(spec, overrides=[f"launcher={{kind: deepspeed, {', '.join(launcher)}}}", *places])


def test_hosts_of_a_file_stand_in_the_resolved_spec(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node1 slots=2\nnode2 slots=8\n", encoding="utf-8")
    spec = _load(tmp_path, "hostfile: hosts")

    assert isinstance(spec.launcher, DeepSpeedLauncher)
    assert (spec.launcher.hosts, spec.launcher.hostfile) == (("node1", "node2"), None)
    (tmp_path / "hosts").unlink()
    (tmp_path / "again.yaml").write_text(dump_spec(spec), encoding="utf-8")
    assert load_spec(tmp_path / "again.yaml") == spec


def test_quick_check_leaves_hostfiles_to_the_whole_one() -> None:
    assert check_document(document(launcher={"kind": "deepspeed"})) is not None
    assert check_document(document(launcher={"kind": "deepspeed", "hostfile": "hosts"})) is None


@pytest.mark.parametrize(
    ("launcher", "nodes", "message"),
    [
        ("hostfile: hosts", 4, r"2 hosts for cluster.nodes=4.*; name 4 hosts, or set cluster.nodes to 2"),
        ("hostfile: none", 2, r"none cannot be read: No such file or directory.*; name a file of lines"),
        ("hostfile: binary", 2, r"binary cannot be read: it is no text"),
        ("hostfile: hosts, hosts: [a, b]", 2, r"both launcher.hosts and the hostfile .*hosts are given.*; keep one"),
        ("hostfile: small", 2, r"node1 has slots=1, and cluster.devices_per_node=2.*; set its slots to 2 or more"),
        ("hostfile: wrong", 2, r"wrong: line 1: 'node1' is not NAME slots=N"),
        ("env: {}", 2, r"no hosts for cluster.nodes=2.*; name 2 hosts, or a hostfile"),
        ("hosts: [a]", 2, r"1 host for cluster.nodes=2.*; name 2 hosts, or set cluster.nodes to 1"),
        (
            "hosts: [a, b]",
            1,
            r"2 hosts for cluster.nodes=1.*; name 1 host, or set cluster.nodes to 2, or none to run on",
        ),
        ("hosts: [a, a]", 2, r"a is named 2 times.*; name each host once"),
        ("hosts: [a, localhost]", 2, r"localhost means another machine on each host.*; use its name in the network"),
        ("hosts: [127.0.0.1]", 1, r"127.0.0.1 means another machine on each host"),
        ("hosts: [a, '-oX=y']", 2, r"launcher.hosts\[1\]"),
        ("hosts: [a, 'b;c']", 2, r"launcher.hosts\[1\]"),
        ("hosts: ['a,b', c]", 2, r"launcher.hosts\[0\]"),
        ("hosts: [a, b], master_port: 80", 2, r"launcher.master_port"),
        ("hosts: [a, b], ssh_port: 0", 2, r"launcher.ssh_port"),
        ("env: {DS_ENV_FILE: x}", 1, r"DS_ENV_FILE is set by the launcher"),
    ],
)
def test_hosts_that_cannot_be_are_refused(tmp_path: Path, launcher: str, nodes: int, message: str) -> None:
    (tmp_path / "hosts").write_text("node1 slots=2\nnode2 slots=2\n", encoding="utf-8")
    (tmp_path / "small").write_text("node1 slots=1\nnode2 slots=2\n", encoding="utf-8")
    (tmp_path / "wrong").write_text("node1\n", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=message):
        _load(tmp_path, launcher, nodes=nodes)
