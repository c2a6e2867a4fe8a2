"""What follows from the hosts' answers; pure: each check yields findings about one subject."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llama_scale.runs.doctor.records import Answer, Finding, Level, Needs

MAX_SKEW_S = 2.0
"""More than this between two hosts mixes up the order of their logs and the age of files."""
_SHM_BYTES = 1 << 30
_GIB = float(1 << 30)

Answers = Mapping[str, Answer]


def check_answers(needs: Needs, answers: Answers, *, own: Answer) -> list[Finding]:
    """Return all findings, those of a check together.

    Args:
        needs: What the run needs.
        answers: Of the hosts, in order of ranks.
        own: Of this machine, where the run would be launched.
    """
    heard = {host: answer for host, answer in answers.items() if answer.facts is not None}
    found = list(_reachable(answers))
    for check in _CHECKS:
        found += check(needs, heard, own)
    return found


def _reachable(answers: Answers) -> Iterator[Finding]:
    for host, answer in answers.items():
        level: Level = "failed" if answer.facts is None else "ok"
        message = answer.fault or "answers"
        yield Finding(check="reachable", host=host, level=level, message=message, remedy=answer.remedy)


def _package(needs: Needs, answers: Answers, own: Answer) -> Iterator[Finding]:
    wanted = _facts(own)
    for host, answer in answers.items():
        facts = _facts(answer)
        if facts["digest"] is None:
            yield _failed("package", host, "llama-scale is not installed there", "install it for this interpreter")
            continue
        if facts["packages"].get("torch") is None:
            yield _failed("package", host, "torch is not installed there", "pip install 'llama-scale[train]' there")
            continue
        wrong = []
        if facts["digest"] != wanted["digest"]:
            wrong.append(f"llama-scale {facts['digest']} is installed there, and {wanted['digest']} here")
        if facts["python"] != wanted["python"]:
            wrong.append(f"Python is {facts['python']} there, and {wanted['python']} here")
        for name, version in wanted["packages"].items():
            theirs = facts["packages"].get(name)
            if theirs != version:
                wrong.append(f"{name} is {theirs or 'missing'} there, and {version or 'missing'} here")
        if wrong:
            yield _failed("package", host, "; ".join(wrong), "install the same environment on every host")
        else:
            yield _ok("package", host, f"llama-scale {facts['digest']}, Python {facts['python']}")


def _gpus(needs: Needs, answers: Answers, own: Answer) -> Iterator[Finding]:
    if needs.device != "cuda":
        return
    drivers: Counter[str] = Counter()
    for host, answer in answers.items():
        gpus = _facts(answer)["gpus"]
        if isinstance(gpus, str):
            yield _failed("gpus", host, gpus, "install or mend the NVIDIA driver, or set cluster.device: cpu")
        elif len(gpus) < needs.devices:
            message = f"{len(gpus)} GPUs are seen, and cluster.devices_per_node={needs.devices}"
            yield _failed("gpus", host, message, "look at `nvidia-smi`: one may have fallen off the bus")
        else:
            yield _ok("gpus", host, f"{len(gpus)} x {gpus[0][0]}, driver {gpus[0][1]}")
        if not isinstance(gpus, str) and gpus:
            drivers[gpus[0][1]] += 1
    yield from _odd_ones("driver", "NVIDIA driver", drivers, answers, lambda f: f["gpus"][0][1] if f["gpus"] else None)
    versions = Counter(str(_facts(answer)["nccl"]) for answer in answers.values())
    yield from _odd_ones("nccl", "NCCL", versions, answers, lambda f: str(f["nccl"]))


def _odd_ones(
    check: str, what: str, counts: Counter[str], answers: Answers, value: Callable[[Any], str | None]
) -> Iterator[Finding]:
    """Name the hosts that differ from most."""
    if len(counts) < 2:
        return
    common, _ = counts.most_common(1)[0]
    for host, answer in answers.items():
        facts = _facts(answer)
        theirs = value(facts) if not isinstance(facts["gpus"], str) else None
        if theirs is not None and theirs != common:
            message = f"{what} is {theirs} there, and {common} on most hosts"
            yield _failed(check, host, message, "install the same on every host")


def _network(needs: Needs, answers: Answers, own: Answer) -> Iterator[Finding]:
    if len(needs.hosts) < 2:
        return
    sizes = Counter(
        facts["interface"][2] for a in answers.values() if isinstance((facts := _facts(a))["interface"], list)
    )
    usual = sizes.most_common(1)[0][0] if sizes else 0
    for host, answer in answers.items():
        facts = _facts(answer)
        interface, first = facts["interface"], facts["first"]
        if isinstance(interface, str):
            yield _failed("network", host, interface, "give all hosts a network that joins them")
        elif first.startswith("cannot"):
            message = f"{needs.hosts[0]}, where the rendezvous is, {first}"
            yield _failed("network", host, message, "mend DNS or /etc/hosts there")
        elif first.startswith("127.") and host != needs.hosts[0]:
            message = f"{needs.hosts[0]} means {first} there, which is that host itself"
            yield _failed("network", host, message, "mend /etc/hosts there")
        elif interface[2] != usual:
            message = f"interface {interface[0]} has MTU {interface[2]}, and {usual} is usual"
            yield Finding(check="network", host=host, level="warning", message=message, remedy="set the same MTU")
        else:
            yield _ok("network", host, f"interface {interface[0]} ({interface[1]}, MTU {interface[2]})")


def _port(needs: Needs, answers: Answers, own: Answer) -> Iterator[Finding]:
    first = needs.hosts[0] if needs.hosts else next(iter(answers), "")
    if not needs.port or first not in answers:
        return
    fault = _facts(answers[first])["port"]
    if fault is None:
        yield _ok("port", first, f"port {needs.port} is free")
    else:
        message = f"port {needs.port} of the rendezvous cannot be used: {fault}"
        yield _failed("port", first, message, "set launcher.master_port to a free one, or leave it out")


def _clock(needs: Needs, answers: Answers, own: Answer) -> Iterator[Finding]:
    for host, answer in answers.items():
        if answer is own:
            continue
        skew, within = answer.skew_s, answer.uncertainty_s
        text = f"its clock is {abs(skew):.3g} s {'ahead of' if skew > 0 else 'behind'} this one"
        if abs(skew) - within > MAX_SKEW_S:
            yield _failed("clock", host, text, "set it: `chronyc makestep`, or start its time service")
        else:
            yield _ok("clock", host, f"{text} (within {within:.2g} s)")


def _shared(needs: Needs, answers: Answers, own: Answer) -> Iterator[Finding]:
    for host, answer in answers.items():
        shared = _facts(answer)["shared"]
        if shared is None:
            continue
        if not shared.get("same"):
            message = f"the runs folder is another one there: a file written here is not seen ({shared['read']})"
            yield _failed("shared", host, message, "mount it there under the same path, or choose one with --runs-dir")
        elif not shared.get("seen_here"):
            message = f"the runs folder cannot be written there: {shared['written']}"
            yield _failed("shared", host, message, "mend its mount or its permissions there")
        elif not shared.get("bases", True):
            message = "the runs folder is shared, but its .bases, where imported weights lie, is another folder there"
            yield _failed("shared", host, message, "make it a plain folder, or mount it there under the same path")
        else:
            yield _ok("shared", host, "the runs folder is shared and can be written")


def _data(needs: Needs, answers: Answers, own: Answer) -> Iterator[Finding]:
    for host, answer in answers.items():
        wrong = []
        for path in needs.files:
            theirs, ours = _facts(answer)["files"][path], _facts(own)["files"][path]
            if isinstance(theirs, str):
                wrong.append(f"{path}: {theirs}")
            elif not isinstance(ours, str) and theirs != ours:
                what = f"{theirs[0]} bytes there, {ours[0]} here" if theirs[0] != ours[0] else "other content there"
                wrong.append(f"{path}: {what}")
        if wrong:
            remedy = "copy the data, or mount it under the same path"
            if answer is own:
                remedy = "make it with `llama-scale data build`, or mend data.blend"
            yield _failed("data", host, "; ".join(wrong), remedy)
        elif needs.files:
            yield _ok("data", host, f"{len(needs.files)} data files{'' if answer is own else ', same size and digest'}")


def _room(needs: Needs, answers: Answers, own: Answer) -> Iterator[Finding]:
    for host, answer in answers.items():
        facts = _facts(answer)
        disk, memory, shm = facts["disk"], facts["memory"], facts["shm"]
        if isinstance(disk, int) and disk < needs.disk_bytes:
            message = f"{_gib(disk)} of disk are free for runs, and their checkpoints take {_gib(needs.disk_bytes)}"
            yield _failed("disk", host, message, "free space, keep fewer (checkpoint.keep_last), or use --runs-dir")
        elif isinstance(disk, int):
            yield _ok("disk", host, f"{_gib(disk)} free, {_gib(needs.disk_bytes)} needed")
        if isinstance(memory, int) and memory < needs.memory_bytes:
            message = (
                f"{_gib(memory)} of memory are free, and its {needs.devices} processes need {_gib(needs.memory_bytes)}"
            )
            yield _failed("memory", host, message, "use more hosts, a smaller batch.micro or more parallel.tensor")
        elif isinstance(memory, int):
            yield _ok("memory", host, f"{_gib(memory)} free")
        if needs.device == "cuda" and needs.devices > 1 and isinstance(shm, int) and shm < _SHM_BYTES:
            message = f"/dev/shm has {_gib(shm)}, and NCCL passes data between GPUs through it"
            remedy = "give it 1 GiB or more (docker: --shm-size)"
            yield Finding(check="shm", host=host, level="warning", message=message, remedy=remedy)


_CHECKS: Sequence[Callable[[Needs, Answers, Answer], Iterator[Finding]]] = (
    _package,
    _gpus,
    _network,
    _port,
    _clock,
    _shared,
    _data,
    _room,
)


def _facts(answer: Answer) -> Mapping[str, Any]:
    assert answer.facts is not None
    return answer.facts


def _ok(check: str, host: str, message: str) -> Finding:
    return Finding(check=check, host=host, level="ok", message=message)


def _failed(check: str, host: str, message: str, remedy: str) -> Finding:
    return Finding(check=check, host=host, level="failed", message=message, remedy=remedy)


def _gib(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= 0.1 * _GIB else f"{count / (1 << 20):.1f} MiB"
