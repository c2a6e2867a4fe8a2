from __future__ import annotations

import re
from pathlib import Path

import pytest

from llama_scale.resources import data_dir

_PAGE = Path(data_dir("configs")).parent / "docs" / "commands.md"
_SECTIONS = dict(
    re.findall(r"^## (.+?)\n\n```text\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
)


@pytest.mark.parametrize("command", list(_SECTIONS))
def test_help_has_an_example_of_its_own_command(command: str) -> None:
    found = re.search(r"Example: `llama-scale ([^`]+)`", _SECTIONS[command])

    assert found is not None
    assert found[1].startswith(command)
    assert set(re.findall(r"--[a-z-]+", found[1])) <= set(
        re.findall(r"--[a-z-]+", _SECTIONS[command].split("Options:")[1])
    )
