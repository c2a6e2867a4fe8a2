"""What a run starts from, found by the commands that start it: weights are imported here, with a progress bar."""

from __future__ import annotations

from pathlib import Path

from llama_scale.checkpoint.bases import bases_in
from llama_scale.checkpoint.manifest import StartRecord
from llama_scale.cli.output import say
from llama_scale.convert.folders import Progress
from llama_scale.convert.start import describe_start, ensure_weights, find_weights, is_of
from llama_scale.plan.run_plan import RunPlan
from llama_scale.runs.folder import RunFolder
from llama_scale.spec.run import RunSpec


def imports_in_job(spec: RunSpec) -> bool:
    """Tell whether the job imports the weights itself, because its files are not this machine's."""
    return spec.launcher.kind == "kubernetes" or getattr(spec.launcher, "container", None) is not None


def start_of(spec: RunSpec, plan: RunPlan, *, runs_dir: Path, run: RunFolder | None = None) -> StartRecord | None:
    """Return what a run starts from, its weights imported into ``.bases`` of the runs' folder; None: the job finds out.

    Args:
        spec: A resolved spec.
        plan: Its plan.
        runs_dir: Folder of run folders.
        run: The run that goes on; what it started from is taken again, also where its source is gone.

    Raises:
        LaunchError: The weights cannot be had.
    """
    source = spec.model.init_from
    if imports_in_job(spec):
        if source is not None:
            say(f"weights: {spec.model.base_name or source}; the job imports them if they are not a checkpoint")
        return None
    known = None if run is None else run.load_start()
    record = known if known is not None and is_of(known, spec) else describe_start(spec)
    bases = bases_in(runs_dir)
    if record.kind != "folder" or find_weights(record, bases=bases) is not None:
        return ensure_weights(record, spec, plan, bases=bases)
    from llama_scale.cli.convert_output import progress_bar  # lazy: only where there are weights to be imported

    with progress_bar() as bar:
        told = _Told(
            bar, f"importing the weights of {record.name or record.path} into {bases}, where later runs find them"
        )
        return ensure_weights(record, spec, plan, bases=bases, progress=told)


class _Told:
    """Move a progress bar, and say first what is done: where stderr is no terminal the bar is not seen."""

    def __init__(self, bar: Progress, sentence: str) -> None:
        self._bar, self._sentence = bar, sentence

    def start(self, label: str, total: int) -> None:
        """Begin a phase."""
        if self._sentence:
            say(self._sentence)
            self._sentence = ""
        self._bar.start(label, total)

    def advance(self, amount: int) -> None:
        """Move the bar."""
        self._bar.advance(amount)
