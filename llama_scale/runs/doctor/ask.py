"""Ask all hosts at once, each within a deadline; what a silent one lacks is told from how ssh failed."""

from __future__ import annotations

import base64
import json
import os
import selectors
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama_scale.runs.doctor import probe
from llama_scale.runs.doctor.records import Answer, Question

_AT_ONCE = 64
_EXCHANGES = 3
_LAUNCHER = "import base64,sys;exec(compile(base64.b64decode(sys.argv[1]),'probe','exec'),{'__name__':'__main__'})"

_SSH_FAULTS = (
    ("Could not resolve hostname", "its name cannot be resolved", "mend its name in the spec, in DNS or /etc/hosts"),
    ("Host key verification failed", "its host key is not known here, or has changed", "run `ssh {host} true` once"),
    ("Permission denied", "ssh needs a password or has no right key", "`ssh {host} true` must work without a password"),
    ("Connection refused", "the host is up, but no sshd listens", "start sshd there, or set launcher.ssh_port"),
    (
        "banner exchange",
        "it takes connections but its sshd does not speak: the host hangs",
        "look at its load, memory and console; restart it or leave it out",
    ),
    ("", "no answer: it is down, or packets to it are dropped", "switch it on, look at its cable and firewall"),
)
"""What ssh says -> what is wrong, what to do; the last one stands for every kind of silence."""
_SILENCES = ("timed out", "No route to host", "unreachable", "Host is down")


def ask_hosts(questions: Mapping[str, Question], *, ssh_port: int | None, timeout_s: float) -> dict[str, Answer]:
    """Ask hosts over ssh.

    Args:
        questions: What each is asked.
        ssh_port: Port of sshd; None leaves it to ssh.
        timeout_s: Time in which each has to answer.
    """

    def one(item: tuple[str, Question]) -> Answer:
        host, question = item
        place = ["-p", str(ssh_port)] if ssh_port else []
        connect_s = max(1, round(min(10.0, 0.6 * timeout_s)))
        options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={connect_s}"]
        remote = shlex.join(_probe_command(question))
        return _ask(host, ["ssh", *options, *place, host, f"exec {remote}"], timeout_s=timeout_s)

    with ThreadPoolExecutor(max(1, min(_AT_ONCE, len(questions)))) as pool:
        return dict(zip(questions, pool.map(one, questions.items()), strict=True))


def ask_here(question: Question) -> Answer:
    """Return this machine's own answer."""
    return Answer(host="this machine", facts=probe.gather(question.to_dict()))


def _probe_command(question: Question) -> list[str]:
    text = base64.b64encode(Path(probe.__file__).read_bytes()).decode("ascii")
    return [sys.executable, "-P", "-c", _LAUNCHER, text, question.encode()]


def _ask(host: str, command: Sequence[str], *, timeout_s: float) -> Answer:
    deadline = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        return Answer(host=host, fault=f"{command[0]} cannot be started: {error.strerror}", remedy="install it here")
    with process:
        try:
            facts = _facts(process, deadline)
            if facts is None:
                return _silent(host, process, deadline, timeout_s=timeout_s)
            skew_s, uncertainty_s = _compare_clocks(process, deadline)
            return Answer(host=host, facts=facts, skew_s=skew_s, uncertainty_s=uncertainty_s)
        finally:
            process.kill()


def _facts(process: subprocess.Popen[bytes], deadline: float) -> Mapping[str, object] | None:
    """Return what the probe found; None if the process ends or time is over without it."""
    while (line := read_line(process, deadline)) is not None:
        try:
            found = json.loads(line)
        except ValueError:  # a host's shell may print things of its own
            continue
        if isinstance(found, dict) and "facts" in found:
            facts: Mapping[str, object] = found["facts"]
            return facts
    return None


def _compare_clocks(process: subprocess.Popen[bytes], deadline: float) -> tuple[float, float]:
    """Return the host's clock minus this one's, and half the time of the fastest exchange; both in seconds."""
    found = []
    for _ in range(_EXCHANGES):
        assert process.stdin is not None
        sent = time.time()
        try:
            process.stdin.write(b"\n")
            process.stdin.flush()
        except OSError:
            break
        line = read_line(process, deadline)
        received = time.time()
        if line is None:
            break
        found.append(((received - sent) / 2, float(line) - (sent + received) / 2))
    half, skew = min(found, default=(0.0, 0.0))
    return skew, half


def read_line(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """Return the next line of a process; None at its end or at the deadline."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    line = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            # A byte at a time: what comes after the line is left for the next call. The facts are a few thousand.
            byte = os.read(descriptor, 1)
            if not byte:
                return None
            line += byte
    return bytes(line)


def _silent(host: str, process: subprocess.Popen[bytes], deadline: float, *, timeout_s: float) -> Answer:
    try:
        status = process.wait(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        fault = f"no answer within {timeout_s:g} s though it takes connections: it hangs or is very slow"
        return Answer(host=host, fault=fault, remedy="look at its load, memory and shared folders")
    assert process.stderr is not None
    said = process.stderr.read().decode("utf-8", "replace").strip()
    last = said.splitlines()[-1].strip() if said else f"status {status}"
    if status == 255:
        words, fault, remedy = next(entry for entry in _SSH_FAULTS if entry[0] in said)
        if not words and not any(silence in said for silence in _SILENCES):
            fault, remedy = "ssh failed", "`ssh {host} true` must work without a password"
        return Answer(host=host, fault=f"{fault} ({last})", remedy=remedy.format(host=host))
    if status in (126, 127):
        remedy = "install the same environment under the same path on every host"
        return Answer(host=host, fault=f"the interpreter {sys.executable} is not there ({last})", remedy=remedy)
    return Answer(host=host, fault=f"the probe failed ({last})", remedy="run the interpreter there by hand")
