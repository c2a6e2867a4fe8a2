from __future__ import annotations

from pathlib import Path

import pytest
import typer

from llama_scale.errors import SpecError
from tests.live_runs import write_spec
from tests.unit.cli.calling import call


def test_section_that_is_no_part_of_a_layout_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="'model' is none of parallel, engine, recompute, batch"):
        call("tune", write_spec(tmp_path), "--keep", "model")


def test_values_of_the_command_line_are_not_written_into_the_spec(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="--write goes into SPEC"):
        call("tune", write_spec(tmp_path), "--write", "--set", "seed=1")


def test_no_more_than_most_layouts_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="3 is fewer than --top 9, which are launched at least"):
        call("tune", write_spec(tmp_path), "--top", "9", "--most", "3")


def test_only_this_machine_is_tuned(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"trials start on this machine; set launcher\.kind=local"):
        call("tune", write_spec(tmp_path), "--set", "launcher={kind: deepspeed}")
