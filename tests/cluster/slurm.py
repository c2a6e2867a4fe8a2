"""A real Slurm on the test hosts: controller and munge on the head machine, one slurmd on each node.

Everything is in the hosts' own folder (configuration, keys, sockets, state), so that nothing of the machine's Slurm, if
it has one, is touched; SLURM_CONF names the configuration.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Host, Hosts

PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
"""Program -> Debian package that has it."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CONFIGURATION = """\
ClusterName=lstest{slot}
SlurmctldHost={head}({address})
SlurmUser=root
SlurmctldPort={port}
SlurmdPort={node_port}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for the lifetime of its credentials (120 s by default).
AuthInfo=socket={folder}/munge.socket,cred_expire=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
# Neither systemd nor control groups are there.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=30
MessageTimeout=10
SlurmctldTimeout=30
SlurmdTimeout=10
InactiveLimit=0
MinJobAge=300
ReturnToService=2
GresTypes=accelerator
NodeName=DEFAULT CPUs=4 RealMemory=4000 Gres=accelerator:8 State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=10 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL MaxTime=60 State=UP PriorityTier=100 PreemptMode=OFF
"""


@dataclass(slots=True, kw_only=True)
class Slurm:
    """The cluster.

    Args:
        hosts: Where it runs.
        daemons: Its processes, by host and program.
    """

    hosts: Hosts
    daemons: dict[tuple[str, str], subprocess.Popen[str]] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        """Its configuration, state and logs."""
        return self.hosts.folder / "slurm"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a shell on the head machine."""
        drop = {"PYTHONDONTWRITEBYTECODE", "LLAMA_SCALE_RUN", "LLAMA_SCALE_RUNS"}
        inherited = {name: value for name, value in os.environ.items() if name not in drop}
        return inherited | {"SLURM_CONF": str(self.folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def start(self) -> None:
        """Start everything."""
        folder, hosts = self.folder, self.hosts
        (folder / "state").mkdir(parents=True)
        folder.chmod(0o755)
        nodes = "\n".join(
            f"NodeName={node.name} NodeAddr={node.address} NodeHostname={node.name}" for node in hosts.nodes
        )
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                slot=hosts.slot,
                head=hosts.head.name,
                address=hosts.head.address,
                port=6817,
                node_port=6818,
                folder=folder,
                nodes=nodes,
            )
        )
        # slurmd insists on a plugin for control groups; the one of version 1 loads without any mount.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (folder / "gres.conf").write_text("Name=accelerator Count=8\n")
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        names = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log"}
        names["seed-file"] = "munge.seed"
        self._daemon(
            hosts.head, "munged", "-F", "--force", *(f"--{key}={folder / name}" for key, name in names.items())
        )
        self.wait((folder / "munge.socket").exists, what="munged")
        self._daemon(hosts.head, "slurmctld", "-D")
        self.start_nodes()

    def start_nodes(self) -> None:
        """Start slurmd on the nodes where it does not run, and wait until all can be used."""
        for node in self.hosts.nodes:
            (self.folder / f"spool.{node.name}").mkdir(exist_ok=True)
            known = self.daemons.get((node.name, "slurmd"))
            if known is None or known.poll() is not None:
                self._daemon(node, "slurmd", "-D")

        def usable() -> bool:
            states = self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t", check=False).splitlines()
            return len(states) == len(self.hosts.nodes) and all(
                re.search(r" (idle|mix|alloc|comp)$", line) for line in states
            )

        self.wait(usable, what="the nodes (sinfo)")

    def _daemon(self, host: Host, program: str, *words: str) -> None:
        with (self.folder / f"{program}.{host.name}.out").open("ab") as log:
            self.daemons[host.name, program] = host.start(
                [program, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": _PATH, "SLURM_CONF": str(self.folder / "slurm.conf")},
            )

    def call(self, *words: str | Path, check: bool = True) -> str:
        """Run a command on the head machine and return what it printed."""
        done = self.hosts.head.run(words, env=self.environment)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def cli(self, *words: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run ``llama-scale`` on the head machine."""
        import sys

        command = [sys.executable, "-m", "llama_scale", *words]
        return self.hosts.head.run(command, env=self.environment, timeout_s=timeout_s)

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm shows of a job."""
        shown = self.call("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def clear(self) -> None:
        """Cancel all jobs, and wait until no process of them is left."""
        self.call("scancel", "-u", "root", "--full", check=False)
        self.call("scancel", "-u", "root", check=False)
        self.wait(lambda: not self.call("squeue", "-h", check=False).strip(), what="an empty queue", timeout_s=90)

    def start_now(self, number: str) -> None:
        """Let a requeued job start without waiting for its old credentials to run out."""
        self.call("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)

    def wait(self, condition: Callable[[], Any], *, what: str, timeout_s: float = 120) -> Any:
        """Return the first true value of a condition."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                log = (self.folder / "slurmctld.log").read_text()[-3000:]
                raise AssertionError(f"waited {timeout_s:g} s for {what}\n{log}")
            time.sleep(0.1)
        return value

    def close(self) -> None:
        """Stop the daemons."""
        self.clear()
        for process in self.daemons.values():
            process.terminate()
        for process in self.daemons.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
