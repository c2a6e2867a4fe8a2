"""Launch one layout for a few steps and read how long they took."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from llama_scale.errors import LlamaScaleError, SpecError
from llama_scale.launchers.base import load_launcher
from llama_scale.plan.run_plan import make_plan
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.lock import RunLock, is_running
from llama_scale.runs.progress import StepLine
from llama_scale.runs.records import ENDED
from llama_scale.runs.start import start_supervisor
from llama_scale.runs.view import GONE, look
from llama_scale.spec.load import check_text
from llama_scale.spec.run import RunSpec
from llama_scale.tune.records import Trial

WARMUP_STEPS = 2
"""Steps that pay for allocation, connections and lazily made buffers."""
_POLL_S = 0.1


def trial_spec(spec: RunSpec, sections: Mapping[str, Any], *, steps: int) -> RunSpec:
    """Return the spec with another layout that trains a few steps and keeps nothing.

    Raises:
        SpecError: the layout is refused.
    """
    plain = spec.model_dump(mode="json", by_alias=True)
    plain["train"] |= {"steps": steps + WARMUP_STEPS, "tokens": None, "epochs": None}
    plain |= {"name": "tune", "validation": None, "tracking": {"tensorboard": False}, "restart": {"max": 0}}
    plain["checkpoint"] = {"every_steps": None, "save_optimizer": False}
    plain |= {name: dict(fields) for name, fields in sections.items()}
    loaded = check_text(yaml.safe_dump(plain, sort_keys=False), name="tune", folder="/")
    if loaded.spec is None:
        raise SpecError(loaded.problems)
    return loaded.spec


def run_trial(
    spec: RunSpec, sections: Mapping[str, Any], *, steps: int, folder: Path, tick: Callable[[], None]
) -> Trial:
    """Launch a layout; its run folder is removed when it ended well.

    Args:
        spec: The spec whose layout is replaced.
        sections: The layout.
        steps: Steps to measure after the first ones.
        folder: Where run folders go.
        tick: Called while the run is waited for.
    """
    try:
        changed = trial_spec(spec, sections, steps=steps)
        plan = make_plan(changed)
        bundle = load_launcher(changed.launcher.kind).render(changed, plan, python=sys.executable)
        run = RunFolder.create(folder, name="tune", files=bundle.files)
        start_supervisor(run, lock=RunLock.acquire(run))
    except LlamaScaleError as error:
        return Trial(sections=dict(sections), problem=str(error)[:500])
    try:
        _wait(run, tick)
    except BaseException:
        run.stop.touch()  # the supervisor ends the ranks; this process need not wait for it
        raise
    view = look(run)
    seconds = measured_steps(run.metrics)
    if view.state != "succeeded" or len(seconds) < steps:
        return Trial(sections=dict(sections), problem=f"{view.state}: {view.message[:400]} ({run.path})")
    shutil.rmtree(run.path, ignore_errors=True)
    return Trial(sections=dict(sections), seconds=(typical_seconds(seconds),))


def _wait(run: RunFolder, tick: Callable[[], None]) -> None:
    while True:
        state = look(run).state
        if (state in ENDED and not is_running(run)) or state == GONE:
            return
        tick()
        time.sleep(_POLL_S)


def measured_steps(metrics: Path) -> list[float]:
    """Return the seconds of each recorded step after the first ones."""
    try:
        lines = metrics.read_bytes().splitlines()
    except OSError:
        return []
    found = [line for text in lines if (line := StepLine.parse(text)) is not None]
    return [line.step_time_s for line in found if line.step > WARMUP_STEPS and line.step_time_s is not None]


def typical_seconds(seconds: list[float]) -> float:
    """Return the median of the faster half: what else a machine does makes steps longer, never shorter."""
    ordered = sorted(seconds)
    return median(ordered[: -(-len(ordered) // 2)])
