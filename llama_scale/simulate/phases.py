"""The phases of a simulation. Each starts the commands that a user would, and says in one sentence what it found."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from llama_scale.errors import ConvertError, LaunchError
from llama_scale.runs.find import list_runs
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.records import Verdict, load_record
from llama_scale.simulate import commands, curves, killing
from llama_scale.simulate.alone import alone
from llama_scale.simulate.faults import explain
from llama_scale.simulate.forms import Form, forms_of
from llama_scale.spec.load import dump_spec
from llama_scale.spec.run import RunSpec

_TRIES = 3
"""Runs that are started to be killed, should one end before."""
_TOKENS = "32"
"""Length of the prompt that exports are compared on."""


@dataclass(slots=True, kw_only=True)
class Twin:
    """A simulation that goes on: its folder, its spec and the runs made so far.

    Args:
        folder: The simulation's folder.
        spec: The shrunk spec.
    """

    folder: Path
    spec: RunSpec
    straight: RunFolder | None = field(default=None, init=False)
    killed: RunFolder | None = field(default=None, init=False)

    @property
    def runs(self) -> Path:
        """Folder of its runs."""
        return self.folder / "runs"

    @property
    def world_size(self) -> int:
        """Its processes."""
        return self.spec.parallel.world_size

    def log(self, phase: str) -> Path:
        """Return the file with what a phase's commands said."""
        return self.folder / "logs" / f"{phase}.log"

    def exported(self, form: Form) -> Path:
        """Return the folder of an export."""
        return self.folder / "exports" / form.folder

    def launch(self, name: str, *words: str, spec: str = "spec.yaml") -> tuple[commands.Done, RunFolder | None]:
        """Launch a spec of the folder as a run of this name; return how the command ended, and the run."""
        before = {run.path for run in list_runs(self.runs)}
        chosen: list[str | Path] = ["--name", name, "--runs-dir", self.runs, "--no-doctor", *words]
        done = commands.run(["launch", self.folder / spec, *chosen], log=self.log(name))
        new = [run for run in list_runs(self.runs) if run.path not in before]
        return done, new[-1] if new else None

    def close(self) -> None:
        """End what still runs."""
        for run in list_runs(self.runs):
            killing.end(run)


def train(twin: Twin) -> str:
    """Train without disturbance, to the end."""
    done, run = twin.launch("train")
    if done.status or run is None:
        raise LaunchError(explain(done, run))
    twin.straight = run
    if broken := [step for step, line in curves.steps_of(run).items() if line["loss"] is None]:
        raise LaunchError(f"the loss of step {broken[0]} is not finite; see {run.metrics}")
    manifest = curves.final(run)
    return f"{manifest.step} steps on {twin.world_size} process{'es' if twin.world_size > 1 else ''}"


def layout(twin: Twin) -> str:
    """Train on one process as well: losses and gradient norms have to agree."""
    assert twin.straight is not None
    small = alone(twin.spec)
    if twin.world_size == 1 or small is None:
        return "one process only: nothing to compare"
    (twin.folder / "alone.yaml").write_text(dump_spec(small), encoding="utf-8")
    done, run = twin.launch("alone", spec="alone.yaml")
    if done.status or run is None:
        raise LaunchError(f"on one process: {explain(done, run)}")
    precision = twin.spec.precision.compute
    for step, what in curves.differences(twin.straight, run, tolerances=curves.TOLERANCES[precision]):
        raise LaunchError(
            f"step {step}: {what} on {twin.world_size} processes and on one: something computes or reduces another "
            f"thing on this layout ({_degrees(twin.spec)}); compare {twin.straight.metrics} with {run.metrics}"
        )
    return f"losses as on one process within {curves.largest(twin.straight, run):.0e}"


def kill(twin: Twin) -> str:
    """Kill a rank of a second run of the same spec: it must be named, and nobody left."""
    rank = twin.world_size - 1
    for number in range(_TRIES):
        done, run = twin.launch("killed" if number == 0 else f"killed-{number}", "--detach")
        if run is None or done.status:
            raise LaunchError(explain(done, run))
        try:
            step = killing.kill_rank(run, rank)
        except killing.TooFastError:
            continue
        except LaunchError:
            raise LaunchError(explain(done, run)) from None
        break
    else:
        raise LaunchError(
            f"{_TRIES} runs ended before one of their ranks could be killed; try again on a quiet machine"
        )
    twin.killed = run
    view = killing.wait_for_end(run)
    verdict = load_record(run.verdict(view.status.attempt if view.status else 0), Verdict)
    first = verdict.first_failure if verdict else None
    if view.state != "failed" or first is None or first.rank != rank or "SIGKILL" not in first.error:
        raise LaunchError(f"rank {rank} was killed, and the verdict is: {view.state}: {view.message}; see {run.logs}")
    saved = curves.final(run).step
    return f"SIGKILL to rank {rank} behind step {step}: named first; newest checkpoint of step {saved}"


def resume(twin: Twin) -> str:
    """Resume the killed run: it must end as the undisturbed one did."""
    assert twin.straight is not None and twin.killed is not None
    saved = curves.final(twin.killed).step
    done = commands.run(["resume", twin.killed.path], log=twin.log("resume"))
    if done.status:
        raise LaunchError(explain(done, twin.killed))
    exact = twin.spec.precision.compute == "fp32"
    tolerances = {} if exact else curves.TOLERANCES["bf16"]
    for step, what in curves.differences(twin.straight, twin.killed, tolerances=tolerances):
        why = (
            "two runs of one spec differ before anything happened to them: something is drawn without the seed"
            if step <= saved
            else f"the state of step {saved} was not all saved, or not all loaded"
        )
        raise LaunchError(f"step {step}: {what} without and with the kill: {why}; see {twin.killed.path}")
    other = curves.other_tensors(curves.final(twin.straight), curves.final(twin.killed))
    if other and exact:
        raise LaunchError(
            f"{len(other)} tensors differ from the undisturbed run's: {', '.join(other[:3])}: their state was not all "
            f"saved, or not all loaded; see {twin.killed.path}"
        )
    return f"from step {saved}; losses {'and weights ' if not other else ''}equal those of the undisturbed run"


def reshard(twin: Twin) -> str:
    """Cut the checkpoint for one process: every element must stay."""
    assert twin.straight is not None
    if twin.spec.parallel.tensor * twin.spec.parallel.pipeline == 1:
        return "one shard of each tensor already"
    target = twin.folder / "resharded"
    out = _convert(twin, "reshard", "--from", twin.straight.path, "--to", target, "--json", log="reshard")
    found = json.loads(out)["parameter_digest"]
    if found != curves.final(twin.straight).parameter_digest:
        raise ConvertError(f"the parameters of {target} are not those of {twin.straight.path}")
    shutil.rmtree(target)
    return "to one process: every parameter the same"


def convert(twin: Twin) -> str:
    """Export in each form that the run can have; all but the first are proven in passing."""
    assert twin.straight is not None
    forms = forms_of(twin.spec)
    for number, form in enumerate(forms):
        proof = ["--no-verify"] if number == 0 else []
        words: list[str | Path] = ["--from", twin.straight.path, "--to", twin.exported(form), *form.words, *proof]
        _convert(twin, "export", *words, log="convert", form=form)
    return ", ".join(form.label for form in forms)


def verify(twin: Twin) -> str:
    """Compare the export that holds everything with the sharded model on its own layout."""
    assert twin.straight is not None
    form = forms_of(twin.spec)[0]
    words: list[str | Path] = ["--from", twin.straight.path, "--hf", twin.exported(form), "--tokens", _TOKENS, "--json"]
    out = _convert(twin, "verify", *words, log="verify", form=form)
    worst = max(row["relative"] for row in json.loads(out)["comparisons"])
    return f"logits of {form.name} equal the sharded model's within {worst:.0e}"


def _convert(twin: Twin, *words: str | Path, log: str, form: Form | None = None) -> str:
    """Run ``convert WORDS``, of a form if any, and return its stdout.

    Raises:
        ConvertError: It failed.
    """
    done = commands.run(["convert", *words], log=twin.log(log))
    if done.status:
        raise ConvertError(("" if form is None else f"--as {form.label}: ") + explain(done, None))
    return done.out


def _degrees(spec: RunSpec) -> str:
    parallel = spec.parallel
    return f"data {parallel.data} x tensor {parallel.tensor} x pipeline {parallel.pipeline}"
