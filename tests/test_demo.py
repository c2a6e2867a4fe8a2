"""What `make demo` runs, on the shipped sample: trained, killed, resumed, exported, proven, better than chance."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT


@pytest.mark.engines
def test_demo_goes_all_the_way(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    environment = os.environ | {
        "DEMO_CORPUS": "sample",
        "DEMO_SET": "train.steps=30 checkpoint.every_steps=10 validation.every_steps=30 schedule.warmup_steps=5",
        "VENV": str(Path(sys.executable).parent.parent),
        "NO_COLOR": "1",
    }

    done = subprocess.run(
        [tmp_path / "configs" / "smoke" / "demo.sh"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )

    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"killed by SIGKILL|SIGKILL", done.stdout)
    assert (tmp_path / ".demo" / "model" / "report.json").is_file()
    found = re.search(r"final loss .* ([\d.]+) nats a token\nunigram entropy .* ([\d.]+) nats", done.stdout)
    assert found is not None
    assert float(found[1]) < float(found[2])
