"""The commands of README and docs do what the pages say: their blocks run, in order, in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT, Block, blocks
from tests.tiny_chat_model import write_chat_model

LANGUAGES = ("bash", "console", "yaml", "python", "json", "text")
WITH_COMMANDS = [page for page in PAGES if any(block.language == "bash" for block in blocks(page))]
WITH_TRAINING = [page for page in WITH_COMMANDS if any(block.engines for block in blocks(page))]


def run(block: Block, folder: Path) -> None:
    """Run a block as one script; the first command that fails ends it."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }
    environment.pop("LLAMA_SCALE_RUNS", None)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, f"{block.page.name}:\n{block.text}\n{done.stdout[-4000:]}"


def run_page(page: Path, folder: Path, *, engines: bool) -> None:
    """Run a page's blocks, those for the engines only if asked to."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    if page.name == "finetune.md":
        write_chat_model(folder / "model")
    for block in blocks(page):
        if block.mark.startswith("write "):
            (folder / block.mark.removeprefix("write ")).write_text(block.text)
        elif block.language == "bash" and not block.skipped and (engines or not block.engines):
            run(block, folder)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_run(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, engines=False)


@pytest.mark.engines
@pytest.mark.parametrize("page", WITH_TRAINING, ids=lambda page: page.name)
def test_commands_that_train_run(page: Path, tmp_path: Path) -> None:
    run_page(page, tmp_path, engines=True)


def test_marks_are_known_and_skips_have_a_reason() -> None:
    for page in PAGES:
        for block in blocks(page):
            known = block.mark in ("", "engines") or block.mark.startswith("write ")
            assert known or len(block.mark.removeprefix("skip; ")) > 20, f"{page.name}: {block.mark!r}"
            assert block.language in ("bash", "console", "yaml", "python", "json", "text"), (
                f"{page.name}: {block.language}"
            )


def test_readme_is_covered() -> None:
    found = blocks(ROOT / "README.md")

    assert sum(block.language == "bash" for block in found) >= 4
    assert sum(block.skipped for block in found) == 2
    assert len(WITH_TRAINING) >= 1
