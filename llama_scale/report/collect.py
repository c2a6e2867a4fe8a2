"""Gather what a report says of one run: its folder's files, read but never changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_scale.errors import LlamaScaleError, ReportError
from llama_scale.plan.estimate import Estimate, estimate
from llama_scale.plan.fit import capacity_bytes
from llama_scale.plan.hardware import Hardware
from llama_scale.plan.run_plan import RunPlan
from llama_scale.report.metrics import Curves, read_curves
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.records import MemoryPeak, RankFailure, Verdict, load_record
from llama_scale.runs.view import RunView, look
from llama_scale.spec.load import load_run_spec
from llama_scale.spec.run import RunSpec

_RANK_FILE = re.compile(r"memory-rank-(\d+)\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of a run's processes.

    Args:
        number: Its number.
        state: How it ended; ``running`` or ``no verdict`` where nobody has said.
        message: One sentence.
        failure: The failure that ended it.
    """

    number: int
    state: str
    message: str
    failure: RankFailure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """All that a report knows of one run.

    Args:
        name: Its name in the report; unique there.
        view: Its state.
        spec: Its spec; None if it cannot be read any more, ``problem`` says why.
        spec_text: The spec as it is in the folder.
        plan: Its plan.
        curves: What it recorded.
        attempts: Its starts.
        peaks: Largest measured bytes of a rank of each stage; empty if none were recorded.
        predicted: Predicted speed, where an accelerator is known.
        capacity: Bytes of a device, where the site is known.
        examples: What became of the tasks' examples: task and split, and their record.
        problem: What could not be read, for the reader.
    """

    name: str
    view: RunView
    spec: RunSpec | None
    spec_text: str
    plan: RunPlan
    curves: Curves
    attempts: tuple[Attempt, ...]
    peaks: dict[int, MemoryPeak]
    predicted: Estimate | None
    capacity: float | None
    examples: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    problem: str = ""


def collect(run: RunFolder, *, name: str, hardware_of: Callable[[RunSpec], Hardware | None]) -> RunFacts:
    """Read a run folder.

    Args:
        run: The folder.
        name: What the report calls it.
        hardware_of: Returns the accelerator to predict for; None: no prediction.

    Raises:
        ReportError: its plan cannot be read.
    """
    try:
        plan = RunPlan.from_json(run.plan.read_text(encoding="utf-8"))
        spec_text = run.spec.read_text(encoding="utf-8", errors="replace")
    except (OSError, UnicodeDecodeError, LlamaScaleError) as error:
        why = str(error).splitlines()[0].partition(";")[0]
        raise ReportError(f"{run.path} cannot be reported: {run.plan.name} is damaged ({why})") from None
    spec, problem = _spec(run)
    hardware = None if spec is None else hardware_of(spec)
    predicted = None if spec is None or hardware is None else estimate(spec, plan, hardware=hardware)
    view = look(run)
    return RunFacts(
        name=name,
        view=view,
        spec=spec,
        spec_text=spec_text,
        plan=plan,
        curves=read_curves(run.metrics),
        attempts=tuple(_attempt(run, number, live=view.state) for number in run.attempt_numbers()),
        peaks=_peaks(run, plan),
        predicted=predicted,
        capacity=None if spec is None else capacity_bytes(spec),
        examples=tuple(_examples(run)),
        problem=problem,
    )


def _examples(run: RunFolder) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield task and split of what was prepared, and its record as it stands; damaged ones are left out."""
    for file in sorted(run.examples.glob("*/*/record.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            yield f"{file.parent.parent.name.rpartition('-')[0]}, {file.parent.name}", record


def _spec(run: RunFolder) -> tuple[RunSpec | None, str]:
    try:
        return load_run_spec(str(run.spec)), ""
    except LlamaScaleError as error:
        return None, f"Its spec cannot be read any more: {str(error)[:300]}"


def _attempt(run: RunFolder, number: int, *, live: str) -> Attempt:
    verdict = load_record(run.verdict(number), Verdict)
    if verdict is not None:
        return Attempt(number=number, state=verdict.state, message=verdict.message, failure=verdict.first_failure)
    newest = number == max(run.attempt_numbers())
    state = "running" if newest and live in ("starting", "running", "stopping") else "no verdict"
    return Attempt(number=number, state=state, message="", failure=None)


def _peaks(run: RunFolder, plan: RunPlan) -> dict[int, MemoryPeak]:
    """Return each stage's fullest rank by what it measured in the newest attempt of this very plan that did."""
    for number in reversed(run.attempt_numbers()):
        found: dict[int, MemoryPeak] = {}
        for path in sorted(run.attempt(number).glob("memory-rank-*.json")):
            stage = _stage_of(path, plan)
            peak = load_record(path, MemoryPeak)
            if peak is None or stage is None or peak.spec_digest != plan.spec_digest:
                continue
            if stage not in found or found[stage].used < peak.used:
                found[stage] = peak
        if found:
            return found
    return {}


def _stage_of(path: Path, plan: RunPlan) -> int | None:
    match = _RANK_FILE.fullmatch(path.name)
    if match is None or int(match[1]) >= plan.topology.world_size:
        return None
    return plan.topology.coordinates(int(match[1])).pp_rank
