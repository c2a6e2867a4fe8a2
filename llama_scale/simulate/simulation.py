"""Run all phases of a simulation and keep what came of them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_scale.errors import ConvertError, LaunchError, LlamaScaleError
from llama_scale.launchers.base import load_launcher
from llama_scale.plan.run_plan import make_plan
from llama_scale.runs.folder import stamped
from llama_scale.simulate import phases
from llama_scale.simulate.changes import Change, table
from llama_scale.simulate.inputs import need_libraries, survey, write_tokens
from llama_scale.simulate.shrink import shrink
from llama_scale.spec.length import any_length
from llama_scale.spec.load import dump_spec
from llama_scale.spec.run import RunSpec

Tell = Callable[[str], None]

_RUNNING: tuple[tuple[str, Callable[[phases.Twin], str], type[LlamaScaleError]], ...] = (
    ("train", phases.train, LaunchError),
    ("layout", phases.layout, LaunchError),
    ("kill", phases.kill, LaunchError),
    ("resume", phases.resume, LaunchError),
    ("reshard", phases.reshard, ConvertError),
    ("convert", phases.convert, ConvertError),
    ("verify", phases.verify, ConvertError),
)
"""Phase, what it does, and the error that its failure is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """How a phase ended.

    Args:
        name: Its name.
        passed: Whether it found no fault.
        seconds: Its duration.
        message: What it found, in one sentence.
    """

    name: str
    passed: bool
    seconds: float
    message: str


class Simulation:
    """The CPU twin of a run.

    Args:
        spec: A resolved spec.
        folder: New folder for everything.
        tell: Is told of progress.
    """

    def __init__(self, spec: RunSpec, *, folder: Path, tell: Tell) -> None:
        self.spec, self.folder, self.tell = spec, folder, tell
        self.phases: list[Phase] = []
        self.changes: tuple[Change, ...] = ()
        self.passed = False

    def run(self) -> None:
        """Run the phases until one fails.

        Raises:
            LaunchError: A phase found a fault (exit code 5).
            ConvertError: One that converts did (6).
        """
        started = time.monotonic()
        try:
            self._phase("inputs", self._prepare, LaunchError)
            twin = phases.Twin(folder=self.folder, spec=self.small)
            try:
                for name, action, kind in _RUNNING:
                    self._phase(name, lambda action=action: action(twin), kind)  # type: ignore[misc]
                self.passed = True
            finally:
                twin.close()
        finally:
            self._record()
        self.tell(f"passed in {time.monotonic() - started:.0f} s: {', '.join(p.name for p in self.phases)}")

    def _prepare(self) -> str:
        need_libraries()
        inputs = survey(self.spec, self.folder / "inputs")
        real = any_length(self.spec)
        load_launcher(real.launcher.kind).render(real, make_plan(real), python=sys.executable)
        self.small, self.changes = shrink(self.spec, inputs)
        write_tokens(self.spec, self.small)
        (self.folder / "spec.yaml").write_text(dump_spec(self.small), encoding="utf-8")
        self.tell(table(self.changes))
        parallel = self.small.parallel
        return (
            f"{len(self.changes)} fields changed; data {parallel.data} x tensor {parallel.tensor} x pipeline "
            f"{parallel.pipeline} = {parallel.world_size} processes"
        )

    def _phase(self, name: str, action: Callable[[], str], kind: type[LlamaScaleError]) -> None:
        begin = time.monotonic()
        try:
            message, passed = action(), True
        except (LlamaScaleError, OSError) as error:
            message, passed = str(error), False
        phase = Phase(name=name, passed=passed, seconds=round(time.monotonic() - begin, 1), message=message)
        self.phases.append(phase)
        if not passed:
            raise kind(f"simulation failed in phase {name} after {phase.seconds:g} s: {message}")
        self.tell(f"{name:8} ok {phase.seconds:6.1f} s  {message}")

    def _record(self) -> None:
        (self.folder / "report.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return what ``report.json`` holds."""
        return {
            "name": self.spec.name,
            "passed": self.passed,
            "phases": [asdict(phase) for phase in self.phases],
            "changes": [asdict(change) for change in self.changes],
        }


def new_folder(root: Path, *, name: str, out: Path | None) -> Path:
    """Make the folder of a simulation: ``out``, or ``simulate-<name>-<utc>-<4hex>`` in the folder of runs.

    Raises:
        LaunchError: It is there already, or cannot be made.
    """
    folder = (out or root / stamped(f"simulate-{name}")).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=out is not None)
        if any(folder.iterdir()):
            raise LaunchError(f"{folder} exists and is not empty; nothing in it is overwritten: name a new folder")
    except OSError as error:
        raise LaunchError(f"cannot make {folder}: {error.strerror}; choose another with --out or --runs-dir") from error
    return folder
