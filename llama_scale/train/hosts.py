"""Ask every host over ssh, before anything is started there, whether it can run its ranks.

DeepSpeed itself asks the first host only, and then hangs or fails on any other. Called on the head machine through
``check_hosts``; on a host as ``python -m llama_scale.train.hosts QUESTION``. No torch.
"""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from llama_scale import __version__
from llama_scale.errors import LaunchError
from llama_scale.libraries import missing_libraries
from llama_scale.train.rank_records import Control, RankJob

_AT_ONCE = 64
_SHOWN = 8


def ssh_options(*, timeout_s: float) -> list[str]:
    """Return ssh's options for this run: ask for nothing, give up in time, notice a dead connection."""
    return [
        *("-o", "BatchMode=yes"),
        *("-o", f"ConnectTimeout={max(1, round(timeout_s))}"),
        *("-o", "ServerAliveInterval=5"),
        *("-o", "ServerAliveCountMax=6"),
    ]


def check_hosts(
    hosts: Sequence[str], *, job: RankJob, master_port: int, ssh_port: int | None, timeout_s: float
) -> None:
    """Ask all hosts at once.

    Args:
        hosts: Their names; the first one holds rank 0 and the rendezvous.
        job: What its ranks will be told; its run folder must be seen on every host.
        master_port: Must be free on the first host.
        ssh_port: Port of sshd; None leaves it to ssh.
        timeout_s: Time in which each has to answer.

    Raises:
        LaunchError: pdsh or ssh is missing here, or a host does not answer or cannot run its ranks; all are named.
    """
    for program in ("ssh", "pdsh"):
        if shutil.which(program) is None:
            raise LaunchError(f"{program} is not installed here, and the deepspeed command reaches hosts through it")

    def ask(numbered: tuple[int, str]) -> str | None:
        number, host = numbered
        port = master_port if number == 0 else 0
        question = [sys.executable, "-P", "-m", "llama_scale.train.hosts", job.encode(), str(port), __version__]
        command = ["ssh", *ssh_options(timeout_s=timeout_s), *(["-p", str(ssh_port)] if ssh_port else []), host]
        return _ask(host, [*command, shlex.join(question)], timeout_s=timeout_s)

    with ThreadPoolExecutor(min(_AT_ONCE, len(hosts))) as pool:
        faults = [fault for fault in pool.map(ask, enumerate(hosts)) if fault is not None]
    if faults:
        more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        raise LaunchError("\n  ".join([f"{len(faults)} of {len(hosts)} hosts cannot run:", *faults[:_SHOWN], *more]))


def _ask(host: str, command: list[str], *, timeout_s: float) -> str | None:
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return f"{host}: no answer over ssh within {timeout_s:g} s (launcher.ssh_timeout_s)"
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    if done.returncode == 0 and said[-1:] == ["ok"]:
        return None
    reason = said[-1] if said else f"status {done.returncode}"
    if done.returncode == 255:
        return f"{host}: ssh failed: {reason}; `ssh {host} true` must work without a password"
    return f"{host}: {reason}"


def main(argv: Sequence[str] | None = None) -> int:
    """Answer on a host: print ``ok``, or one line that says what is wrong."""
    word, port, version = sys.argv[1:] if argv is None else argv
    faults = list(_faults(RankJob.decode(word), master_port=int(port), version=version))
    sys.stdout.write(("; ".join(faults) or "ok") + "\n")
    return 1 if faults else 0


def _faults(job: RankJob, *, master_port: int, version: str) -> Iterator[str]:
    if version != __version__:
        yield f"llama-scale {__version__} is installed there, and {version} on the machine that launches"
    missing = missing_libraries("torch", "deepspeed")
    if missing:
        yield f"{' and '.join(missing)} not installed for {sys.executable}"
    if not Control(job.attempt_dir).lease.is_file():
        yield f"the run folder {job.run} is not seen there; use a folder that all hosts share (--runs-dir)"
    if master_port:
        with socket.socket() as probe:
            try:
                probe.bind(("", master_port))
            except OSError as error:
                yield f"port {master_port} of the rendezvous cannot be used: {error.strerror}; set launcher.master_port"


if __name__ == "__main__":
    sys.exit(main())
