"""README and docs keep to the truth: links resolve, commands and options exist, every command is described."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from llama_scale.cli.app import COMMANDS
from llama_scale.cli.root import app
from tests.pages import PAGES, ROOT, blocks

HAND_WRITTEN = [page for page in PAGES if page.name != "commands.md"]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```$|^ {4}[^\n]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:`|^    |^\$ |^#.*?  )(llama-scale [a-z][^`\n]*)", re.MULTILINE)


def slug(heading: str) -> str:
    """Return GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"], ids=str)
def test_links_resolve(page: Path) -> None:
    for link in _LINK.findall(_CODE.sub("code", page.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {link}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = set(_LINK.findall(index))

    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


def test_help_in_the_docs_is_the_commands_own() -> None:
    render: Any = runpy.run_path(str(ROOT / "docs" / "generate_commands.py"))["render"]

    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == render(), "run `make docs`"


def test_every_command_is_in_the_readme() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Commands")[1]

    for name in COMMANDS:
        assert re.search(rf"`{name}[ `]", table), name


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that the words name, and the words after its name."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("llama-scale", [], resilient_parsing=True)
    while hasattr(command, "list_commands") and words and not words[0].startswith("-"):
        found = command.get_command(context, words[0])
        assert found is not None, f"there is no command {words[0]!r}"
        command, words = found, words[1:]
    return command, words


def command_lines(page: Path) -> list[str]:
    """Return the commands in a page's blocks, in its indented lines and in backticks."""
    found = [line for block in blocks(page) for line in block.text.splitlines() if line.startswith("llama-scale ")]
    return found + _COMMAND.findall(page.read_text(encoding="utf-8"))


COMMAND_LINES = [
    (page.name, line)
    for page in [*HAND_WRITTEN, *sorted((ROOT / "configs").rglob("*.yaml"))]
    for line in command_lines(page)
]


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_commands_and_options_in_the_pages_exist(page: str, line: str) -> None:
    line = re.split(r" [|>] | +-> ", line, maxsplit=1)[0]
    command, words = find_command(shlex.split(line, comments=True)[1:])

    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if re.match(r"--?[a-zA-Z]", word):
            assert word.split("=")[0] in known | {"--help", "-h", "--debug"}, f"{page}: {line}"


def test_pages_with_commands_are_found() -> None:
    assert len(COMMAND_LINES) > 25


FOLDERS = {"c": "tests/cluster", "e": "tests/engines", "u": "tests/unit/launchers"}


def test_tests_named_in_the_table_of_launchers_exist() -> None:
    page = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
    named = re.findall(r"\b([ceu])/(test_\w+\.py)::(test_\w+)", page)
    assert len(named) > 30
    for folder, file, test in named:
        assert f"def {test}(" in (ROOT / FOLDERS[folder] / file).read_text(encoding="utf-8"), f"{file}::{test}"
