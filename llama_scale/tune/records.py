"""Measurements that are kept: one file a machine and workload, written after each trial."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from llama_scale.errors import LaunchError
from llama_scale.runs.atomic import write_atomically
from llama_scale.runs.records import Record

_VARIABLE = "LLAMA_SCALE_CACHE"


class Trial(Record):
    """What was measured of one layout."""

    sections: dict[str, Any] = Field(description="Its sections as they are written in a spec.")
    seconds: tuple[float, ...] = Field((), description="Step time of each launch; empty if none came to its end.")
    problem: str = Field("", description="Why the last launch did not end well.")

    @property
    def step_s(self) -> float | None:
        """Step time: the best launch, because others are what else the machine did; None if there is none."""
        return min(self.seconds, default=None)

    @property
    def key(self) -> str:
        """What tells layouts apart."""
        return layout_key(self.sections)


class TrialFile(Record):
    """The file of a machine and workload."""

    format: int = Field(1, ge=1, le=1)
    trials: tuple[Trial, ...] = ()


def layout_key(sections: Mapping[str, Any]) -> str:
    """Return a layout as canonical text."""
    return json.dumps(sections, sort_keys=True)


def cache_folder() -> Path:
    """Return where measurements are kept: LLAMA_SCALE_CACHE, or the user's cache folder."""
    own = os.environ.get(_VARIABLE)
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llama-scale"


class Trials:
    """The measured layouts of one workload on this machine.

    Args:
        path: The file; a damaged one counts as none.
        fresh: Forget what it holds.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self._path = path
        self._trials: dict[str, Trial] = {}
        if not fresh:
            try:
                found = TrialFile.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                return
            self._trials = {trial.key: trial for trial in found.trials}

    def get(self, key: str) -> Trial | None:
        """Return what is known of a layout."""
        return self._trials.get(key)

    def add(self, trial: Trial) -> Trial:
        """Join a launch's result with the earlier ones of its layout, and write the file.

        Raises:
            LaunchError: it cannot be written.
        """
        earlier = self._trials.get(trial.key)
        seconds = (*(earlier.seconds if earlier else ()), *trial.seconds)
        joined = Trial(sections=trial.sections, seconds=seconds, problem=trial.problem)
        self._trials[trial.key] = joined
        text = TrialFile(trials=tuple(self._trials.values())).model_dump_json(indent=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, text + "\n")
        except OSError as error:
            raise LaunchError(
                f"cannot keep measurements in {self._path}: {error.strerror}; name another folder with {_VARIABLE}"
            ) from None
        return joined
