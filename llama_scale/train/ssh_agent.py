"""The head of a run on several hosts: one ssh connection a host, a guard at its other end. No torch.

    python -m llama_scale.train.ssh_agent --run RUN_DIR --hostfile BUNDLE/hostfile --env-file BUNDLE/env ...

All hosts are asked first (same package, run folder seen and writable, port free) and started only if all can run.
Whether a host lives is judged by its guard's signs of life, never by torch's rendezvous, which hangs when a host
vanishes. It ends with 0, 75 (stopped on request, saved), 3 or 5, and writes ``attempts/NNN/verdict.json``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from llama_scale.errors import LaunchError, LlamaScaleError
from llama_scale.resources import package_digest
from llama_scale.spec.hostfile import HostfileError, parse_hostfile
from llama_scale.train import failures
from llama_scale.train.rank_records import parse_environment
from llama_scale.train.ssh_head import Head, Requests
from llama_scale.train.ssh_protocol import Lease, NodeJob, wait_for_earlier_hosts
from llama_scale.train.verdict import FirstFailure, Verdict

_MARKS = ("LLAMA_SCALE_RUN", "LLAMA_SCALE_ATTEMPT", "LLAMA_SCALE_DEBUG")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the attempt on all hosts to its end and return its exit status."""
    options = _parser().parse_args(argv)
    attempt_dir = options.run.absolute() / "attempts" / f"{options.attempt:03d}"
    requests = Requests()
    requests.install()
    try:
        names, job, variables = _prepare(options, attempt_dir)
        verdict = Head(names, job=job, options=options, variables=variables, requests=requests).run()
    except LlamaScaleError as error:
        kind: failures.Kind = "infrastructure" if type(error) is LaunchError else failures.classify(error)
        failure = FirstFailure(rank=None, kind=kind, error=str(error))
        verdict = Verdict(state="failed", exit_code=error.exit_code, first_failure=failure, message=str(error))
    return verdict.conclude(attempt_dir, speaker="llama-scale head")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llama_scale.train.ssh_agent", description=main.__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="RUN_DIR", help="run folder, shared by all hosts")
    parser.add_argument("--hostfile", type=Path, required=True, help="hosts, in order of ranks: lines NAME slots=N")
    parser.add_argument("--env-file", type=Path, required=True, help="the bundle's variables, as a shell reads them")
    parser.add_argument("--nproc-per-node", type=int, required=True, help="ranks of each host")
    parser.add_argument("--threads", type=int, help="OMP threads of a rank; default: the host's cores over its ranks")
    parser.add_argument("--forward-file", type=Path, required=True, help="variables of this shell to pass, by pattern")
    parser.add_argument("--stop-grace-s", type=float, default=60.0, help="time to save and leave after a stop signal")
    parser.add_argument("--lease-s", type=float, default=30.0, help="a host that is not heard for so long is lost")
    parser.add_argument("--attempt", type=int, default=int(os.environ.get("LLAMA_SCALE_ATTEMPT", "0")), help="from 0")
    parser.add_argument("--ssh-port", type=int, help="port of sshd on the hosts")
    parser.add_argument("--ssh-timeout-s", type=float, default=20.0, help="time in which every host has to answer")
    parser.add_argument("--master-port", type=int, help="port of the rendezvous; default: by run and attempt")
    return parser


def _prepare(options: argparse.Namespace, attempt_dir: Path) -> tuple[list[str], NodeJob, dict[str, str]]:
    """Read the bundle, make the attempt's folder, and wait for what an earlier head left on the hosts.

    Raises:
        LaunchError: The bundle or the run folder is damaged, or there is no ssh.
    """
    if shutil.which("ssh") is None:
        raise LaunchError("ssh is not installed here, and hosts are reached through it; install an ssh client")
    try:
        hosts = parse_hostfile(options.hostfile.read_text(encoding="ascii"))
        bundled = parse_environment(options.env_file.read_text(encoding="utf-8"))
        patterns = options.forward_file.read_text(encoding="utf-8").splitlines()
    except (HostfileError, UnicodeDecodeError) as error:
        raise LaunchError(f"{options.hostfile}: {error}; render the bundle again") from error
    except OSError as error:
        raise LaunchError(f"cannot read {error.filename}: {error.strerror}; render the bundle again") from error
    try:
        (options.run / "logs").mkdir(exist_ok=True)
        attempt_dir.mkdir(parents=True, exist_ok=True)
        wait_for_earlier_hosts(attempt_dir)
        for pattern in ("error-rank-*.json", "node-*.json", "report-node-*.json", "verdict*.json", "end"):
            for old in attempt_dir.glob(pattern):
                old.unlink(missing_ok=True)
        Lease(attempt_dir / "lease").grant(options.lease_s)
    except OSError as error:
        raise LaunchError(f"cannot prepare {options.run}: {error}; check its permissions and free space") from error
    job = NodeJob(
        run=str(options.run.absolute()),
        attempt=options.attempt,
        node_rank=0,
        nnodes=len(hosts),
        nproc=options.nproc_per_node,
        lease_s=options.lease_s,
        grace_s=options.stop_grace_s,
        version=package_digest(),
        port=options.master_port,
    )
    variables = forwarded(os.environ, patterns) | bundled
    if options.threads:
        variables["OMP_NUM_THREADS"] = str(options.threads)
    return [host.name for host in hosts], job, dict(sorted(variables.items()))


def forwarded(shell: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Return the variables of the calling shell that hosts get: those that the bundle's ``forward`` names."""
    wanted = [*_MARKS, *(pattern for pattern in patterns if pattern and not pattern.startswith("#"))]
    return {name: value for name, value in shell.items() if any(fnmatchcase(name, pattern) for pattern in wanted)}


if __name__ == "__main__":
    sys.exit(main())
