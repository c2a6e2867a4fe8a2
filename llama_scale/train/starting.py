"""What the ranks of a run start from, found before they are started.

    python -m llama_scale.train.starting RUN_DIR        # imports the weights of the spec's folder and says so

`launch` imports them where it can; where it cannot (a bundle run by hand, a container, Kubernetes), the agent of each
host calls this first, as a process of its own: importing starts threads, and the agent forks its ranks. One of the
hosts imports, the others wait for its lock.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama_scale.checkpoint.bases import bases_in
from llama_scale.checkpoint.manifest import StartRecord, newest_complete
from llama_scale.convert.start import describe_start, ensure_weights, find_weights
from llama_scale.errors import LaunchError, LlamaScaleError
from llama_scale.runs.folder import RunFolder
from llama_scale.train.ports import rank_variables

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec


_GROUP = frozenset(rank_variables(0, world=1, port=0))
_ELASTIC = ("TORCHELASTIC_", "GROUP_", "ROLE_")
"""Variables of a rank: names, and how those of torchrun begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a run starts from.

    Args:
        record: The record of it.
        folder: Checkpoint folder of the whole model's weights; None where they are drawn from the seed, or gone.
        adapters: Checkpoint folder whose adapters the run goes on from, if any.
    """

    record: StartRecord
    folder: Path | None
    adapters: Path | None


def find_start(spec: RunSpec, run_dir: Path | None) -> Start:
    """Return what a run starts from: its folder's ``base.json``, or what its spec names where there is none.

    Raises:
        CheckpointError: ``model.init_from`` is a damaged checkpoint.
    """
    run = None if run_dir is None else RunFolder(run_dir.absolute())
    record = (None if run is None else run.load_start()) or describe_start(spec)
    folder = find_weights(record, bases=bases_in(Path() if run is None else run.path.parent))
    return Start(record=record, folder=folder, adapters=None if record.adapters is None else Path(record.adapters))


def prepare_start(run_dir: Path, spec: RunSpec, plan: RunPlan) -> None:
    """Make sure that what a run starts from is there for its ranks; call it on each host before they are started.

    Raises:
        LaunchError: It is not, and cannot be imported.
    """
    run = RunFolder(run_dir.absolute())
    if plan.base_trainable and newest_complete(run.checkpoints) is not None:
        return  # the run goes on from its own weights
    known = run.load_start()
    record = known or describe_start(spec)
    if record.kind != "folder" or find_weights(record, bases=bases_in(run.path.parent)) is not None:
        if known is None:
            run.save_start(record)
        return
    command = [sys.executable, "-P", "-m", "llama_scale.train.starting", str(run.path)]
    # The proof forms a process group of its own, which must not meet the run's.
    alone = {name: value for name, value in os.environ.items() if name not in _GROUP and not name.startswith(_ELASTIC)}
    with subprocess.Popen(command, env=alone, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, said = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise LaunchError(said.strip() or f"importing the weights ended with status {process.returncode}")
    sys.stderr.write(said)


def main() -> int:
    """Import the weights that a run starts from, unless they are there."""
    from llama_scale.train.worker import load_job  # late: the worker imports this module

    run = RunFolder(Path(sys.argv[1]).absolute())
    try:
        job = load_job(run.path, attempt=0, profile=None)
        record = run.load_start() or describe_start(job.spec)
        record = ensure_weights(record, job.spec, job.plan, bases=bases_in(run.path.parent))
        run.save_start(record)
    except LlamaScaleError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stderr.write(f"llama-scale: imported the weights of {record.words()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
