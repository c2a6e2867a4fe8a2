"""Run a part of a test in a forked child, for what changes a whole process: limits, user, signal handlers."""

from __future__ import annotations

import multiprocessing as mp
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_NOBODY = 65534


def in_child(
    function: Callable[[], Any], *, largest_file: int | None = None, unprivileged: bool = False, timeout_s: float = 60.0
) -> Any:
    """Call a function in a child process and return its result.

    pytest writes its log, its cache and the captured output from its own process: a limit there breaks pytest itself.

    Args:
        function: What to call; its result is pickled.
        largest_file: Bytes beyond which the kernel refuses to write to any file, as a full disk does.
        unprivileged: Give up root's right to read and write everything.
        timeout_s: After this time the child is killed.

    Raises:
        AssertionError: The function raised (the message holds its traceback), or the child ended without a result.
    """
    receiver, sender = mp.Pipe(duplex=False)
    child = mp.get_context("fork").Process(target=_main, args=(sender, function, largest_file, unprivileged))
    with warnings.catch_warnings():
        # Python 3.12 warns of forking while other threads run. The child uses nothing that they may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            raise AssertionError(f"the child did not end within {timeout_s} s")
        kind, value = receiver.recv()
    except EOFError:
        child.join()
        raise AssertionError(f"the child ended without a result, exit code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if kind == "error":
        raise AssertionError(f"in the child:\n{value}")
    return value


def _main(sender: Connection, function: Callable[[], Any], largest_file: int | None, unprivileged: bool) -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # the parent's pool of threads does not exist here
    if unprivileged and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    try:
        answer = ("result", function())
    except BaseException:  # also pytest's own, which are no Exception; the parent reports it
        answer = ("error", traceback.format_exc())
    sender.send(answer)
