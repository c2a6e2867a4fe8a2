"""Rules about what is asked of Slurm and Kubernetes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_scale.spec.load import check_text
from llama_scale.spec.quick import quick_check
from llama_scale.spec.scheduler_rules import time_limit_s
from tests.unit.spec.documents import document

KUBERNETES = {"kind": "kubernetes", "image": "r/llama:1", "claim": "runs"}


def _messages(**launcher: Any) -> list[str]:
    text = json.dumps(document(launcher=launcher))
    loaded = check_text(text, name="s", folder="/")
    # The quick way must not find good what the whole way does not.
    assert (quick_check(text) is not None) <= (loaded.spec is not None)
    return [str(problem) for problem in loaded.problems]


@pytest.mark.parametrize(
    "launcher",
    [
        {"kind": "slurm"},
        {"kind": "slurm", "partition": "a,b", "account": "p@x", "qos": "n", "time": "1-02:03:04", "gres": "gpu:h100:8"},
        {"kind": "slurm", "gres": "", "options": {"mem": "0", "mail-user": "a b@c", "contiguous": ""}, "chain": 5},
        {"kind": "slurm", "container": {"kind": "pyxis", "image": "/a b.sqsh", "mounts": ["/a:/b:ro", "/c"]}},
        {"kind": "mpi", "command": "mpiexec"},
        KUBERNETES,
        {**KUBERNETES, "flavour": "jobset", "resources": {"cpu": "1500m"}, "tolerations": [{}]},
    ],
)
def test_good_sections(launcher: dict[str, Any]) -> None:
    assert _messages(**launcher) == []


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ({"kind": "slurm", "options": {"array": "0-3"}}, "--array is the launcher's to set; launch one run a job"),
        ({"kind": "slurm", "options": {"export": "ALL"}}, "name the variables in launcher.forward"),
        ({"kind": "slurm", "options": {"--mem": "1"}}, "'--mem' is no long option of sbatch; write it without --"),
        ({"kind": "slurm", "options": {"x\n#SBATCH --wrap": "1"}}, "is no long option of sbatch"),
        ({"kind": "slurm", "options": {"comment": 'a" --wrap="b'}}, "launcher.options.comment"),
        ({"kind": "slurm", "options": {"comment": "a\nb"}}, "launcher.options.comment"),
        ({"kind": "slurm", "partition": "a b"}, "launcher.partition"),
        ({"kind": "slurm", "partition": "--wrap"}, "launcher.partition"),
        ({"kind": "slurm", "account": "$(x)"}, "launcher.account"),
        ({"kind": "slurm", "time": "soon"}, "launcher.time"),
        ({"kind": "slurm", "time": "4"}, "a job of 240 s is told to save up to 150 s before its end"),
        ({"kind": "slurm", "chain": 0}, "launcher.chain"),
        ({"kind": "slurm", "container": {"kind": "pyxis", "image": "-x"}}, "launcher.container.image"),
        (
            {"kind": "slurm", "container": {"kind": "pyxis", "image": "x", "mounts": ["a:b"]}},
            "launcher.container.mounts",
        ),
        ({"kind": "slurm", "forward": ["A B"]}, "launcher.forward"),
        ({"kind": "slurm", "forward": ["PATH"]}, "PATH is set by the launcher or decides which program runs"),
        ({"kind": "slurm", "forward": ["A"], "env": {"A": "b"}}, "A is in launcher.env too, whose value would win"),
        ({"kind": "slurm", "env": {"MY_TOKEN": "abc"}}, "looks like a secret"),
        ({"kind": "mpi", "command": "rm -rf"}, "launcher.command"),
        ({"kind": "mpi", "hosts": ["a", "a"]}, "a is named 2 times"),
        ({"kind": "kubernetes", "image": "x"}, "launcher.claim"),
        ({**KUBERNETES, "claim": "Runs"}, "launcher.claim"),
        ({**KUBERNETES, "resources": {"a b": "1"}}, "'a b' is no name of Kubernetes"),
        ({**KUBERNETES, "resources": {"cpu": "lots"}}, "launcher.resources.cpu"),
        ({**KUBERNETES, "labels": {"x": "a b"}}, "launcher.labels.x"),
        ({**KUBERNETES, "secrets": {"A B": {"name": "s", "key": "k"}}}, "'A B' is no name of an environment variable"),
        ({**KUBERNETES, "secrets": {"K": {"name": "s", "key": "k"}}, "env": {"K": "1"}}, "K is in launcher.env too"),
        ({**KUBERNETES, "volumes": [{"claim": "a", "path": "/runs/"}]}, "/runs is mounted 2 times"),
        ({**KUBERNETES, "volumes": [{"claim": "a", "path": "/"}]}, "/ cannot be mounted over"),
    ],
)
def test_faults_are_named_with_their_remedy(launcher: dict[str, Any], words: str) -> None:
    found = _messages(**launcher)
    assert any(words in message for message in found), found


def test_gpus_are_asked_for_once() -> None:
    launcher = {**KUBERNETES, "resources": {"nvidia.com/gpu": "8"}}
    text = json.dumps(document(launcher=launcher, cluster={"devices_per_node": 8, "device": "cuda"}))
    (found,) = check_text(text, name="s", folder="/").problems
    assert "nvidia.com/gpu is asked for by cluster.devices_per_node=8" in found.message


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("10:30", 630), ("01:00:00", 3600), ("1-2", 93600), ("1-2:3", 93780), ("0-00:00:01", 1)],
)
def test_time_is_read_as_slurm_does(text: str, seconds: int) -> None:
    assert time_limit_s(text) == seconds


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ({"kind": "slurm", "time": "banana"}, "'banana' is not a time limit; write minutes, HH:MM:SS or D-HH"),
        ({"kind": "slurm", "account": "a b"}, "'a b' is not a name that Slurm knows; use letters"),
        ({**KUBERNETES, "image": "-x"}, "'-x' is not an image; write a registry's name"),
        ({**KUBERNETES, "resources": {"cpu": "many"}}, "'many' is not a quantity of Kubernetes; write e.g. 4"),
        ({"kind": "ssh", "hosts": ["a;b"]}, "'a;b' is not a host; write a name or an IPv4 address"),
    ],
)
def test_text_of_another_form_is_told_what_to_write(launcher: dict[str, Any], words: str) -> None:
    assert any(words in message for message in _messages(**launcher)), _messages(**launcher)
