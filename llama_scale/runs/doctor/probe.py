"""What one host says about itself. Only the standard library: its text is sent to hosts that may have nothing else.

It prints one line of JSON, then answers each line of its input with the time of day. A fact that cannot be found out
is a text that says why, in place of the value.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "megatron-core", "deepspeed", "transformers", "numpy")
_NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu11")
_BLOCK = 4 << 20
_WHOLE = 64 << 20
"""Files up to this size are hashed whole, larger ones in 16 blocks over their length."""
_SIOCGIFADDR, _SIOCGIFMTU = 0x8915, 0x8921


def gather(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that a question (``records.Question``) asks for.

    host, python, packages (name: version), digest (of llama-scale), nccl, gpus ([name, driver, MiB]), cores, memory
    and shm and disk (free bytes), interface ([name, address, MTU]), first (address of the rendezvous' host), port (why
    it cannot be bound), shared (what was read and written), files (path: [bytes, SHA-256]).
    """
    runs_dir = question["runs_dir"]
    return {
        "host": socket.gethostname(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": {name: _version(name) for name in _PACKAGES},
        "digest": _digest(),
        "nccl": next((version for name in _NCCL if (version := _version(name))), None),
        "gpus": _gpus() if question["device"] == "cuda" else [],
        "cores": len(os.sched_getaffinity(0)),
        "memory": _memory(),
        "shm": _free(Path("/dev/shm")),
        "disk": _free(_existing(Path(runs_dir))) if runs_dir else None,
        "interface": _interface(question["toward"]) if question["toward"] else None,
        "first": _address(question["first"]) if question["first"] else None,
        "port": _bind(question["port"]) if question["port"] else None,
        "shared": _share(Path(runs_dir), question["token"]) if question["token"] else None,
        "files": {path: _file(Path(path)) for path in question["files"]},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _digest() -> str | None:
    try:
        if importlib.util.find_spec("llama_scale") is None:
            return None
        from llama_scale.resources import package_digest

        return package_digest()
    except Exception as error:  # whatever an installation that is broken or of another version may raise
        return f"broken ({type(error).__name__}: {error})"


def _gpus() -> list[list[str]] | str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=15, check=False)
    except FileNotFoundError:
        return "nvidia-smi is not installed"
    except subprocess.TimeoutExpired:
        return "nvidia-smi does not answer within 15 s"
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        return f"nvidia-smi: {said[-1] if said else f'status {done.returncode}'}"
    return [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _memory() -> int | None:
    """Return the bytes that may still be used: of the machine, or of this process's control group if that is less."""
    rooms: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        rooms += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            rooms.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass
    return min(rooms, default=None)


def _existing(path: Path) -> Path:
    return next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))


def _free(path: Path) -> int | str:
    try:
        usage = shutil.disk_usage(path)
        return usage.free if usage.total else f"{path} is on no disk"
    except OSError as error:
        return f"{path}: {error.strerror}"


def _address(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        return f"cannot be resolved: {error}"


def _interface(toward: str) -> list[Any] | str:
    """Return name, address and MTU of the interface through which packets to a host leave."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((socket.gethostbyname(toward), 1))  # sends nothing: the kernel chooses the way
        except OSError as error:
            return f"there is no way to {toward}: {error}"
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                address = socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])
                mtu = struct.unpack("i", fcntl.ioctl(probe, _SIOCGIFMTU, request)[16:20])[0]
            except OSError:  # one without an address
                continue
            if address == own:
                return [name, own, mtu]
    return ["?", own, 0]


def _bind(port: int) -> str | None:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.strerror
    return None


def _share(folder: Path, token: str) -> dict[str, str | None]:
    """Read what the head wrote, and write what the head is to read."""
    try:
        read: str | None = (folder / f".doctor-{token}").read_text(encoding="ascii")
    except OSError as error:
        return {"read": error.strerror, "written": None}
    path = folder / f".doctor-{token}-{socket.gethostname()}"
    try:
        path.write_text(token, encoding="ascii")
    except OSError as error:
        return {"read": read, "written": error.strerror}
    return {"read": read, "written": str(path)}


def _file(path: Path) -> list[Any] | str | None:
    """Return size and digest of a file; of a large one, blocks over its length are hashed."""
    try:
        size = path.stat().st_size
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for start in range(0, size, _BLOCK) if size <= _WHOLE else [(size - _BLOCK) * i // 15 for i in range(16)]:
                file.seek(start)
                digest.update(file.read(_BLOCK))
    except OSError as error:
        return error.strerror
    return [size, digest.hexdigest()]


def main() -> None:
    """Print the facts, then the time of day as often as asked."""
    question = json.loads(base64.urlsafe_b64decode(sys.argv[-1]))
    sys.stdout.write("\n" + json.dumps({"facts": gather(question)}) + "\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        sys.stdout.write(f"{time.time():.6f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
