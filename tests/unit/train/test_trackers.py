from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llama_scale.errors import LaunchError
from llama_scale.spec.tracking import Mlflow, Tracking, Wandb
from llama_scale.train.trackers import TensorBoardTracker, check_packages
from tests.unit.train.test_metrics import record


@pytest.mark.parametrize(
    ("tracking", "package"),
    [
        (Tracking(wandb=Wandb(project="p")), "wandb"),
        (Tracking(mlflow=Mlflow(experiment="e")), "mlflow"),
    ],
)
def test_missing_package_is_refused_before_anything_is_trained(tracking: Tracking, package: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed here")
    with pytest.raises(LaunchError) as caught:
        check_packages(tracking)
    assert str(caught.value) == (
        f"tracking.{package} is on, but the package {package} is not installed; "
        f"pip install 'llama-scale[{package}]', or set tracking.{package}: null"
    )


def test_tensorboard_alone_needs_nothing_more() -> None:
    check_packages(Tracking())


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_step_and_a_resume_hides_what_it_repeats(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path, resumed_step=0)
    tracker.log(record(1, loss=4.0))
    assert not list(tmp_path.iterdir())  # the slow import waits for the second step
    for step in (2, 3):
        tracker.log(record(step, loss=3.0, validation_loss=3.5 if step == 2 else None))
    tracker.close()
    assert curves(tmp_path)["train/loss"] == [(1, 4.0), (2, 3.0), (3, 3.0)]
    assert curves(tmp_path)["validation/loss"] == [(2, 3.5)]
    assert "speed/mfu" not in curves(tmp_path)

    tracker = TensorBoardTracker(tmp_path, resumed_step=2)
    tracker.log(record(3, loss=2.0))
    tracker.close()
    assert curves(tmp_path)["train/loss"] == [(1, 4.0), (2, 3.0), (3, 2.0)]
