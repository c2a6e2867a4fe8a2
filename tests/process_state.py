"""A pytest plugin: a test must leave the process as it found it, and finds it the same in every terminal and shell."""

from __future__ import annotations

import atexit
import difflib
import locale
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

_FROM_OUTSIDE = (
    # How wide and colourful a terminal is.
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PY_COLORS"),
    *("TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    # Settings of this project's and of other programs that the tested commands obey.
    *("LLAMA_SCALE_RUNS", "LLAMA_SCALE_DEBUG", "LLAMA_SCALE_RUN", "LLAMA_SCALE_ATTEMPT"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "PYTHONDONTWRITEBYTECODE",  # tests start many processes; each would compile its imports again
)
_SCHEDULERS = ("SLURM_", "SBATCH_", "OMPI_", "PMI_", "PMIX_")
"""Beginnings of the names that a job of a cluster's scheduler sets."""

_OWN = {"environment PYTEST_CURRENT_TEST"}
_LIBRARIES = ("TORCH", "PYTORCH", "TRITON", "DS_", "KMP_", "MKL_", "CUDA_")
"""Beginnings of names that libraries (or train/deepspeed_import.py for them) set when they are first imported. They may
appear, and must not change afterwards."""

_LIMITS = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def forget_surroundings() -> None:
    """Replace what would make tests depend on the shell, terminal or job that they run in.

    Modelling code of exported folders, which transformers copies before it runs it, goes to a folder of this process
    instead of the user's cache.
    """
    for name in list(os.environ):
        if name in _FROM_OUTSIDE or name.startswith(_SCHEDULERS):
            del os.environ[name]
    modules = tempfile.mkdtemp(prefix="llama-scale-test-modules-")
    atexit.register(shutil.rmtree, modules, ignore_errors=True)
    os.environ |= {"TERM": "dumb", "HF_MODULES_CACHE": modules}
    os.umask(0o022)
    sys.dont_write_bytecode = False


def process_state() -> dict[str, str]:
    """Describe what is one for the whole process, by name."""
    found = {f"limit {name}": str(resource.getrlimit(number)) for name, number in _LIMITS.items()}
    found |= {f"handler of signal {n}": repr(signal.getsignal(n)) for n in _SIGNALS}
    found |= {f"environment {name}": value for name, value in os.environ.items()}
    logger = logging.getLogger("llama_scale")
    found |= {
        "current folder": os.getcwd(),  # noqa: PTH109 - a text is compared
        "umask": _status("Umask"),
        "user and group": f"{os.getresuid()} {os.getresgid()}",
        "timer": str(signal.getitimer(signal.ITIMER_REAL)),
        "locale": locale.setlocale(locale.LC_ALL),
        "sys.path": "\n".join(path for path in sys.path if path != os.environ.get("HF_MODULES_CACHE")),
        "recursion limit": str(sys.getrecursionlimit()),
        "start method of multiprocessing": multiprocessing.get_start_method(allow_none=True) or "fork",
        "hooks": f"{sys.excepthook} {threading.excepthook} {sys.unraisablehook}",
        "logging": f"{logger.level} {logger.handlers} {logger.propagate} {logging.root.manager.disable}",
    }
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        found["torch"] = (
            f"threads {torch.get_num_threads()}, dtype {torch.get_default_dtype()}, "
            f"device {torch.get_default_device()}, deterministic {torch.are_deterministic_algorithms_enabled()}, "
            f"gradients {torch.is_grad_enabled()}"
        )
    return found


def _status(key: str) -> str:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(f"{key}:")), "")


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Yield what is different, one line each."""
    imported = ("torch", *(f"environment {beginning}" for beginning in _LIBRARIES))
    for name in sorted({*before, *after} - _OWN):
        old, new = before.get(name, "(none)"), after.get(name, "(none)")
        if old != new and not (name not in before and name.startswith(imported)):
            lines = [line for line in difflib.ndiff(old.split("\n"), new.split("\n")) if line[0] in "+-"]
            yield f"{name}: {'; '.join(lines)}" if "\n" in old + new else f"{name}: {old} -> {new}"


class ProcessGuard:
    """Compare the process before a test's fixtures are made with the process after they are gone."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        """Note the state, and give torch's generator a start that does not depend on the tests before."""
        torch: Any = sys.modules.get("torch")
        if torch is not None and hasattr(torch, "manual_seed"):
            torch.manual_seed(0)
        self._before = process_state()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        """Fail a test after which the state is another."""
        result = yield
        found = list(changes(self._before, process_state()))
        if found:
            pytest.fail(f"the test has left its process changed: {'; '.join(found)}", pytrace=False)
        return result
