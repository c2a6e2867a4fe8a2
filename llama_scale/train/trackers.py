"""Send metrics to TensorBoard, Weights & Biases and MLflow; each is optional and lives on rank 0 only."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llama_scale.errors import LaunchError
from llama_scale.train.metrics import StepRecord

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec
    from llama_scale.spec.tracking import Mlflow, Tracking, Wandb


class Tracker(Protocol):
    """A place that metrics are sent to."""

    def log(self, record: StepRecord) -> None:
        """Send one step."""
        ...

    def close(self) -> None:
        """Flush and disconnect."""
        ...


class TensorBoardTracker:
    """Write TensorBoard events.

    The writer is made with the second record: importing it takes a second in which the other ranks would wait for
    this one before the first step.

    Args:
        folder: Where the event files go.
        resumed_step: Events of later steps that an earlier attempt wrote are hidden.
    """

    def __init__(self, folder: Path, *, resumed_step: int) -> None:
        self._folder = folder
        self._resumed_step = resumed_step
        self._writer: Any = None
        self._held: StepRecord | None = None

    def log(self, record: StepRecord) -> None:
        """Write one step."""
        if self._writer is None:
            if self._held is None:
                self._held = record
                return
            self._open()
        self._add(record)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is None and self._held is not None:
            self._open()
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # lazy: see the class

        self._writer = SummaryWriter(str(self._folder), purge_step=self._resumed_step + 1)
        assert self._held is not None
        self._add(self._held)

    def _add(self, record: StepRecord) -> None:
        for name, value in record.scalars().items():
            self._writer.add_scalar(name, value, record.step)


class WandbTracker:
    """Send metrics to Weights & Biases; the key comes from its own environment or login, never from the spec.

    Args:
        settings: The spec's section.
        name: Name of the run, and its stable id: an attempt that resumes goes on in the same W&B run.
        folder: Where W&B keeps its local files.
    """

    def __init__(self, settings: Wandb, *, name: str, folder: Path) -> None:
        wandb = importlib.import_module("wandb")
        try:
            self._run = wandb.init(
                project=settings.project, entity=settings.entity, name=name, id=name, resume="allow", dir=str(folder)
            )
        except Exception as error:  # wandb raises classes of its own that differ between versions
            raise LaunchError(
                f"Weights & Biases could not start: {error}; log in with `wandb login`, set WANDB_API_KEY in the "
                "environment, or WANDB_MODE=offline"
            ) from error

    def log(self, record: StepRecord) -> None:
        """Send one step."""
        self._run.log(record.scalars(), step=record.step)

    def close(self) -> None:
        """Upload what is left."""
        self._run.finish()


class MlflowTracker:
    """Send metrics to MLflow.

    Args:
        settings: The spec's section.
        name: Name of the run.
        folder: Run folder; ``mlflow-run-id`` in it lets an attempt that resumes go on in the same MLflow run.
    """

    def __init__(self, settings: Mlflow, *, name: str, folder: Path) -> None:
        self._mlflow = importlib.import_module("mlflow")
        try:
            if settings.uri is not None:
                self._mlflow.set_tracking_uri(settings.uri)
            self._mlflow.set_experiment(settings.experiment)
            known = folder / "mlflow-run-id"
            run = self._mlflow.start_run(run_id=known.read_text() if known.is_file() else None, run_name=name)
            known.write_text(run.info.run_id)
        except Exception as error:  # network and server errors of many classes
            raise LaunchError(
                f"MLflow could not start (tracking.mlflow, uri={settings.uri!r}): {error}; check the server and "
                "MLFLOW_TRACKING_URI"
            ) from error

    def log(self, record: StepRecord) -> None:
        """Send one step."""
        self._mlflow.log_metrics(record.scalars(), step=record.step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


_PACKAGES = {"tensorboard": "train", "wandb": "wandb", "mlflow": "mlflow"}
"""Package -> extra of llama-scale that brings it."""


def check_packages(tracking: Tracking) -> None:
    """Refuse a tracker whose package is not installed, before anything is trained. Nothing is imported.

    Raises:
        LaunchError: A package is missing; the message says how to install it or do without.
    """
    for package, extra in _PACKAGES.items():
        wanted = getattr(tracking, package)
        if wanted and importlib.util.find_spec(package) is None:
            off = "false" if package == "tensorboard" else "null"
            raise LaunchError(
                f"tracking.{package} is on, but the package {package} is not installed; "
                f"pip install 'llama-scale[{extra}]', or set tracking.{package}: {off}"
            )


def make_trackers(spec: RunSpec, *, run_dir: Path, resumed_step: int) -> list[Tracker]:
    """Make the trackers that the spec asks for.

    Raises:
        LaunchError: A package is missing or a service cannot be reached.
    """
    tracking = spec.tracking
    check_packages(tracking)
    trackers: list[Tracker] = []
    if tracking.tensorboard:
        trackers.append(TensorBoardTracker(run_dir / "tensorboard", resumed_step=resumed_step))
    if tracking.wandb is not None:
        trackers.append(WandbTracker(tracking.wandb, name=run_dir.name, folder=run_dir))
    if tracking.mlflow is not None:
        trackers.append(MlflowTracker(tracking.mlflow, name=run_dir.name, folder=run_dir))
    return trackers
