from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from llama_scale.train.signals import STOP_SIGNALS, Agreement, StopRequest
from tests.children import in_child


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_remembered_and_a_second_changes_nothing(number: signal.Signals) -> None:
    def reasons() -> list[str | None]:
        stop = StopRequest()
        stop.install()
        before = stop.reason
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        return [before, stop.reason]

    assert in_child(reasons) == [None, number.name]


def test_file_asks_for_a_stop(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path / "stop")
    assert stop.reason is None
    (tmp_path / "stop").touch()
    assert stop.reason == "the file stop"


def test_one_process_agrees_with_itself() -> None:
    assert Agreement().any(True) and not Agreement().any(False)
