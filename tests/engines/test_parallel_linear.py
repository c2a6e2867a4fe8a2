"""The smallest model of docs/parallelism.md gives one process's result in every way of dividing it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "docs/examples/parallel_linear.py"
PAGE = (ROOT / "docs/parallelism.md").read_text()
WAYS = re.findall(rf"^\$ torchrun --nproc-per-node 2 {re.escape(SCRIPT)} (\S+)$", PAGE, re.MULTILINE)


def test_page_shows_every_way() -> None:
    text = (ROOT / SCRIPT).read_text()
    assert sorted(WAYS) == sorted(re.findall(r'^    "([a-z-]+)": ', text, re.MULTILINE))
    assert len(WAYS) == 4


@pytest.mark.engines
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_equal_one(way: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT, way]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(rf"{way}: A and b after 5 steps differ from one process by (\S+) at most\n", done.stdout)
    assert found and float(found[1]) <= 1e-12, done.stdout
