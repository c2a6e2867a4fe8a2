from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_scale.train.signals import STOP_SIGNALS, Agreement, StopRequest


@pytest.fixture(autouse=True)
def _restored_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_remembered_and_a_second_changes_nothing(number: signal.Signals) -> None:
    stop = StopRequest()
    stop.install()
    assert stop.reason is None
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason == number.name


def test_file_asks_for_a_stop(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path / "stop")
    assert stop.reason is None
    (tmp_path / "stop").touch()
    assert stop.reason == "the file stop"


def test_one_process_agrees_with_itself() -> None:
    assert Agreement().any(True) and not Agreement().any(False)
