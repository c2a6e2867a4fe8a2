"""``llama-scale launch --simulate``: the run's CPU twin, phase by phase."""

from __future__ import annotations

from pathlib import Path

from llama_scale.cli.output import emit, say
from llama_scale.simulate.simulation import Simulation, new_folder
from llama_scale.spec.run import RunSpec


def simulate(spec: RunSpec, *, runs_dir: Path, out: Path | None) -> int:
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
    Simulation(spec, folder=folder, tell=say).run()
    return 0
