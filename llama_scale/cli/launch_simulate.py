"""``llama-scale launch --simulate``: the run's CPU twin, phase by phase."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from llama_scale.cli.output import emit, say
from llama_scale.simulate.simulation import Simulation, new_folder
from llama_scale.spec.run import RunSpec


def simulate(spec: RunSpec, *, runs_dir: Path, out: Path | None) -> None:
    """Simulate a run; stdout gets the simulation's folder, stderr all else.

    Args:
        spec: A resolved spec.
        runs_dir: Folder of run folders, in which the simulation's is made.
        out: Another folder for it.

    Raises:
        LaunchError: A phase found a fault.
        ConvertError: A phase that converts did.
    """
    folder = new_folder(runs_dir, name=spec.name, out=out)
    say(f"simulating {spec.name} on this machine's CPUs: {folder}")
    emit(str(folder))
    with _ended_by_sigterm():
        Simulation(spec, folder=folder, tell=say).run()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM (a CI job's time limit) end a simulation as Ctrl-C does: with all that it started."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
