"""Several hosts on one Linux machine: namespaces with an address, a name, processes and an sshd of their own.

A host has its own network (a veth into one bridge), hostname, process ids, mounts, /run and /dev/shm. The file system
is shared, as a site's network file system is. Killing a host's first process is a power cut: nobody gets a FIN.
``host_faults.py`` breaks them. Root is needed. Each session takes a free slot of addresses and names, so that several
can run on one machine; what a killed session left in a slot is removed first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

STATE = Path("/var/tmp/llama-scale-cluster")
PACKAGES = {
    "ip": "iproute2",
    "/usr/sbin/sshd": "openssh-server",
    "ssh": "openssh-client",
    "unshare": "util-linux",
    "faketime": "faketime",
}
"""Program -> Debian package that has it."""
_SLOTS = 8
_INIT = Path(__file__).with_name("host_init.sh")


def install_packages(packages: dict[str, str]) -> None:
    """Install the Debian packages of programs that are not there.

    Args:
        packages: Program, or path of one -> package.
    """
    missing = sorted({package for program, package in packages.items() if shutil.which(program) is None})
    if not missing:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    subprocess.run(["apt-get", "update", "-qq"], check=True, capture_output=True, env=environment)
    subprocess.run(install, check=True, capture_output=True, env=environment)


def call(*words: str | Path, check: bool = True) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@dataclass(slots=True, kw_only=True)
class Host:
    """One host.

    Args:
        name: Its name, also of its network namespace.
        address: IPv4 address.
        link: The bridge's end of its cable.
        folder: Its state: sshd's configuration and log.
        pid: Its first process, as the machine sees it; None while it is off.
        process: The process above that one.
    """

    name: str
    address: str
    link: str
    folder: Path
    pid: int | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        """What sshd says."""
        return self.folder / "sshd.log"

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """Return the command that runs another one inside this host, without ssh."""
        assert self.pid is not None, f"{self.name} is off"
        return ["nsenter", "-t", str(self.pid), "-n", "-u", "-i", "-m", "-p", "--", *map(str, words)]

    def start(self, words: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
        """Start a command inside this host; the result is nsenter, whose child it is."""
        return subprocess.Popen(self.command(words), text=True, **options)

    def run(
        self, words: Sequence[str | Path], *, timeout_s: float = 120, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside this host to its end."""
        return subprocess.run(
            self.command(words), capture_output=True, text=True, timeout=timeout_s, check=False, **options
        )

    def processes(self) -> list[int]:
        """Return the ids (as the machine sees them) of all processes inside, zombies excepted."""
        if self.pid is None:
            return []
        try:
            space = Path(f"/proc/{self.pid}/ns/pid").readlink()
        except OSError:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "ns" / "pid").readlink() == space and is_alive(int(entry.name)):
                    found.append(int(entry.name))
            except OSError:
                continue
        return sorted(found)


@dataclass(slots=True, kw_only=True)
class Hosts:
    """The hosts of one session: a head machine, from which runs are started, and nodes.

    Args:
        slot: Number that makes addresses and names this session's own.
        nodes: The nodes.
        head: The head machine: a host like the others.
        lock: Open file that holds the slot.
    """

    slot: int
    head: Host
    nodes: list[Host]
    lock: IO[bytes] = field(repr=False)

    @property
    def all(self) -> list[Host]:
        """The head and the nodes."""
        return [self.head, *self.nodes]

    @property
    def folder(self) -> Path:
        """Folder of keys and of the hosts' state."""
        return STATE / str(self.slot)

    @property
    def small_disk(self) -> Path:
        """A file system of 32 MB that all hosts share; ``host_faults.resize`` changes its size."""
        return self.folder / "small"

    def named(self, name: str) -> Host:
        """Return a host by its name."""
        return next(host for host in self.all if host.name == name)

    def boot(self, host: Host) -> None:
        """Switch a host on; nothing if it is on."""
        if host.pid is not None:
            return
        (host.folder / "ready").unlink(missing_ok=True)
        _remove_network(host)
        call("ip", "netns", "add", host.name)
        call("ip", "link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        call("ip", "link", "set", host.link, "master", f"lsbr{self.slot}", "up")
        # The same after a reboot, as a real card's: others remember it.
        number = host.address.split(".")[2:]
        mac = "02:00:00:00:" + ":".join(f"{int(part):02x}" for part in number)
        call("ip", "-n", host.name, "link", "set", "eth0", "address", mac)
        call("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
        call("ip", "-n", host.name, "link", "set", "eth0", "up")
        spaces = ["unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with (host.folder / "init.log").open("ab") as log:
            host.process = subprocess.Popen(
                ["ip", "netns", "exec", host.name, *spaces, str(_INIT), host.name, str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            )
        (host.folder / "unshare.pid").write_text(str(host.process.pid))
        _wait((host.folder / "ready").exists, what=f"{host.name} ({host.folder}/init.log)")
        (child,) = call("pgrep", "-P", str(host.process.pid)).split()
        host.pid = int(child)
        (host.folder / "init.pid").write_text(child)

    def wait_for_ssh(self) -> None:
        """Wait until every host answers over ssh from the head."""
        for host in self.all:
            _wait(
                lambda host=host: (
                    self.head.run(["ssh", "-o", "ConnectTimeout=2", host.name, "hostname"]).stdout.strip() == host.name
                ),
                what=f"ssh {host.name} ({host.log})",
            )

    def close(self) -> None:
        """Remove everything."""
        _clean(self.slot)
        for host in self.all:
            if host.process is not None:
                host.process.wait()
        self.lock.close()


def bring_up(nodes: int) -> Hosts:
    """Bring up a head machine and nodes.

    Raises:
        RuntimeError: All slots are taken, or the machine does not let namespaces be made.
    """
    lock, slot = _take_slot()
    _clean(slot)
    folder = STATE / str(slot)
    (folder / "small").mkdir(parents=True)
    # Before the hosts are: they inherit the mount.
    call("mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder / "small")
    for key in ("id", "host"):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"llama-scale-{slot}", "-f", folder / key)
    shutil.copy(folder / "id.pub", folder / "authorized_keys")
    network = f"10.213.{90 + slot}"
    names = [f"ls{slot}head", *(f"ls{slot}n{number}" for number in range(1, nodes + 1))]
    made = []
    for number, name in enumerate(names):
        address = f"{network}.{number or 254}"
        made.append(Host(name=name, address=address, link=f"lsv{slot}-{number}", folder=folder / name))
        made[-1].folder.mkdir()
        write_sshd_config(made[-1], folder=folder)
    hosts = Hosts(slot=slot, head=made[0], nodes=made[1:], lock=lock)
    _write_names(slot, made, folder=folder)
    call("ip", "link", "add", f"lsbr{slot}", "type", "bridge")
    call("ip", "addr", "add", f"{network}.253/24", "dev", f"lsbr{slot}")
    call("ip", "link", "set", f"lsbr{slot}", "up")
    try:
        for host in made:
            hosts.boot(host)
        hosts.wait_for_ssh()
    except BaseException:
        hosts.close()
        raise
    return hosts


def write_sshd_config(host: Host, *, folder: Path, extra: str = "") -> None:
    """Write a host's sshd configuration; ``extra`` are more lines of it."""
    (host.folder / "sshd_config").write_text(
        f"ListenAddress {host.address}\nPort 22\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "StrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\nPidFile none\n"
        f"MaxStartups 100\nMaxSessions 100\nSubsystem sftp internal-sftp\n{extra}"
    )


def _take_slot() -> tuple[IO[bytes], int]:
    STATE.mkdir(exist_ok=True)
    for slot in range(_SLOTS):
        lock = (STATE / f"{slot}.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return lock, slot
    raise RuntimeError(f"all {_SLOTS} slots of {STATE} are in use by other sessions")


def _write_names(slot: int, hosts: Sequence[Host], *, folder: Path) -> None:
    """Make the hosts known: one marked block in /etc/hosts, and the ssh client's settings."""
    _edit_names(slot, "".join(f"{host.address} {host.name}\n" for host in hosts))
    key = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text("".join(f"{host.name},{host.address} {key}\n" for host in hosts))
    config = Path(f"/etc/ssh/ssh_config.d/llama-scale-{slot}.conf")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(
        f"Host ls{slot}*\n  User root\n  IdentityFile {folder}/id\n  UserKnownHostsFile {folder}/known_hosts\n"
        "  StrictHostKeyChecking yes\n  KexAlgorithms curve25519-sha256\n"
    )


def _edit_names(slot: int, lines: str) -> None:
    begin, end = f"# BEGIN llama-scale-{slot}\n", f"# END llama-scale-{slot}\n"
    with Path("/etc/hosts").open("r+") as file:  # in place: in a container it is a mount that nothing can replace
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read()
        head, mark, rest = text.partition(begin)
        text = head + rest.partition(end)[2] if mark else text
        file.seek(0)
        file.write(text + (begin + lines + end if lines else ""))
        file.truncate()


def _clean(slot: int) -> None:
    """Remove what a session made in a slot, also one that was killed."""
    folder = STATE / str(slot)
    for state in sorted(path.parent for path in folder.glob("*/sshd_config")):
        for name in ("init.pid", "unshare.pid"):
            file = state / name
            if file.exists():
                _kill_recorded(int(file.read_text()), marker=str(folder))
        call("ip", "netns", "del", state.name, check=False)
    for link in call("ip", "-o", "link", "show", "type", "veth", check=False).splitlines():
        name = link.split(":")[1].split("@")[0].strip()
        if name.startswith(f"lsv{slot}-"):
            call("ip", "link", "del", name, check=False)
    call("ip", "link", "del", f"lsbr{slot}", check=False)
    if folder.exists():
        call("umount", "-l", folder / "small", check=False)
        shutil.rmtree(folder, ignore_errors=True)
    Path(f"/etc/ssh/ssh_config.d/llama-scale-{slot}.conf").unlink(missing_ok=True)
    _edit_names(slot, "")


def _kill_recorded(pid: int, *, marker: str) -> None:
    """Kill a recorded process if its id still is that of the host's first process (or the one above it)."""
    try:
        if marker not in Path(f"/proc/{pid}/cmdline").read_text():
            return
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return
    _wait(lambda: not is_alive(pid), what=f"the end of process {pid}")


def _remove_network(host: Host) -> None:
    call("ip", "link", "del", host.link, check=False)
    call("ip", "netns", "del", host.name, check=False)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def _wait(condition: Any, *, what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.05)
