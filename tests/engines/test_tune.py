"""``llama-scale tune`` with real launches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.live_runs import SPEC, run_cli, write_spec

_SPEC = SPEC.replace("parallel: {tensor: 2, pipeline: 2}", "# the layout\nparallel: {data: 2}").replace(
    "devices_per_node: 4", "devices_per_node: 2"
)
_OPTIONS = ("--keep", "recompute", "--keep", "batch", "--keep", "engine", "--top", "2", "--most", "2", "--steps", "2")


def test_tuned_layout_is_the_fastest_measured_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_SCALE_CACHE", str(tmp_path / "cache"))
    spec = write_spec(tmp_path, text=_SPEC)

    first = run_cli("tune", spec, *_OPTIONS, "--repeats", "1", "--json")

    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    times = [one["step_s"] for one in found["measured"]]
    assert found["launched"] == len(times) == 2
    assert times == sorted(times)
    assert found["best"]["parallel"] == found["measured"][0]["parallel"]
    assert first.stderr.count("ms a step") == 2
    assert list((tmp_path / "cache").rglob("metrics.jsonl")) == []  # run folders are gone

    again = run_cli("tune", spec, *_OPTIONS, "--repeats", "1", "--write")

    assert again.returncode == 0, again.stderr
    assert "0 launches now" in again.stdout
    text = spec.read_text()
    assert "# the layout\nparallel:\n" in text
    assert f"tensor: {found['best']['parallel']['tensor']}" in text
    assert run_cli("validate", spec).returncode == 0
