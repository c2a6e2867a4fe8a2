"""Count a run's training rows, which ``train.epochs`` is a multiple of. No torch in this process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llama_scale.errors import DataError, LaunchError, LlamaScaleError
from llama_scale.libraries import missing_message
from llama_scale.spec.length import steps_of_epochs, with_steps
from llama_scale.spec.load import dump_spec
from llama_scale.spec.run import RunSpec

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Training rows that come from one place.

    Args:
        name: ``task chat``, or the prefix of a token file.
        rows: Rows, after packing.
        weight: Weight in the blend.
    """

    name: str
    rows: int
    weight: float


def counted(
    spec: RunSpec, *, examples: Path, tell: Tell, known: Path | None = None, step: int = 0, samples: int = 0
) -> RunSpec:
    """Return a spec with steps in place of epochs; one without epochs as it is.

    Args:
        spec: Resolved spec.
        examples: Folder that gets the features of tasks.
        tell: Is told what the length follows from.
        known: Folder of features that are made already.
        step: Steps done already,
        samples: and the rows that they have read.

    Raises:
        LaunchError: The rows cannot be counted here.
        SpecError: A rule of the schedule does not allow so few steps.
    """
    epochs = spec.train.epochs
    if epochs is None:
        return spec
    try:
        sources = _count_tasks(spec, examples, known) if spec.data.kind == "tasks" else _count_blend(spec)
    except LlamaScaleError as error:
        raise LaunchError(
            f"train.epochs={epochs:g} needs the number of training rows, and they cannot be counted here: {error}. "
            "Where the data or its readers are on other machines only, give the length yourself: --set train.steps=N"
        ) from error
    rows, batch = sum(source.rows for source in sources), spec.batch.global_
    assert batch is not None, "the spec is resolved"
    steps = steps_of_epochs(epochs, rows=rows, global_batch=batch, step=step, samples=samples)
    tell(_equation(epochs, rows=rows, batch=batch, steps=steps, step=step, samples=samples))
    for source in sources if len(sources) > 1 else ():
        passes = epochs * rows * source.weight / sum(one.weight for one in sources) / source.rows
        tell(f"  {source.name}: {source.rows:,} rows; by its weight {source.weight:g}, each is read {passes:.2g} times")
    return with_steps(spec, steps)


def _equation(epochs: float, *, rows: int, batch: int, steps: int, step: int, samples: int) -> str:
    """Word what the number of steps follows from."""
    read = f"{epochs:g} epoch{'' if epochs == 1 else 's'} x {rows:,} rows"
    made = f"{steps:,} step{'' if steps == 1 else 's'}"
    if not step:
        return f"{read} / {batch:,} a step = {made}, rounded up"
    return (
        f"({read} - {samples:,} that are read) / {batch:,} a step + {step:,} steps that are done = {made}, rounded up"
    )


@contextmanager
def examples_folder(spec: RunSpec, *, root: Path | None = None) -> Iterator[Path]:
    """Yield a place for the features that counting makes; whatever is still there in the end is removed.

    Args:
        spec: Where its length is known, nothing is made.
        root: Folder of run folders: what lies on the same disk can be moved into a new one. None: any place.

    Raises:
        LaunchError: The folder of run folders cannot be written.
    """
    if spec.train.epochs is None:
        yield Path("/nonexistent")
        return
    new = root is not None and not root.exists()
    try:
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".examples-", dir=root)
    except OSError as error:
        raise LaunchError(f"cannot write the rows to count into {root}: {error.strerror}; choose --runs-dir") from error
    try:
        with folder as made:
            yield Path(made) / "examples"
    finally:
        if new and root is not None:
            with suppress(OSError):  # a run is in it
                root.rmdir()


def _count_blend(spec: RunSpec) -> list[Source]:
    fault = missing_message("counting the rows needs", "numpy")
    if fault:
        raise DataError(fault)
    from llama_scale.data.reader import TokenFile  # lazy: numpy
    from llama_scale.data.windows import count_windows, split_bounds

    assert spec.data.kind == "indexed"
    sources = []
    for part in spec.data.blend:
        try:
            file = TokenFile(part.path)
        except OSError as error:
            raise DataError(f"token file {error.filename or part.path} cannot be read: {error.strerror}") from error
        bounds = split_bounds(spec.data.split.sizes, "train", documents=len(file), prefix=part.path)
        rows = count_windows(file, bounds, seq_length=spec.data.seq_length, split="train")
        sources.append(Source(name=part.path, rows=rows, weight=part.weight))
    return sources


def _count_tasks(spec: RunSpec, examples: Path, known: Path | None) -> list[Source]:
    """Ask a process of its own, for plugins bring torch."""
    fault = missing_message("counting the rows of tasks needs", "torch", "numpy")
    if fault:
        raise DataError(fault)
    with tempfile.TemporaryDirectory(prefix="llama-scale-") as folder:
        file = Path(folder) / "spec.yaml"
        file.write_text(dump_spec(spec), encoding="utf-8")
        command = [sys.executable, "-m", "llama_scale.train.count_rows", str(file), "--examples", str(examples)]
        command += [] if known is None else ["--known", str(known)]
        # What it logs, and the traceback of a broken plugin, are the user's to read.
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"error": f"the process that counts them ended with status {done.returncode}, see above"}
    if "error" in answer:
        raise DataError(answer["error"])
    weights = {task.name: task.weight for task in spec.tasks}
    return [Source(name=f"task {name}", rows=rows, weight=weights[name]) for name, rows in answer["rows"].items()]
