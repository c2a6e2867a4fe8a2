"""docs/spec.md says what the models say; the example specs are found recursively and are good."""

from __future__ import annotations

from pathlib import Path

from llama_scale.cli.checking import find_files
from llama_scale.plan.run_plan import make_plan
from llama_scale.resources import data_dir
from llama_scale.spec.length import any_length
from llama_scale.spec.load import load_spec
from llama_scale.spec.reference import render_reference

ROOT = Path(__file__).parents[3]


def test_reference_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    assert page == render_reference(), "run: python -m llama_scale.spec.reference > docs/spec.md"


def test_every_example_validates_plans_and_names_its_command() -> None:
    files, problems = find_files([f"{data_dir('configs')}/**/*.yaml"])
    assert not problems
    assert {"pretrain", "finetune", "smoke"} <= {Path(file).parent.name for file in files}
    assert len(files) >= 6
    for file in files:
        make_plan(any_length(load_spec(file)))
        head = Path(file).read_text(encoding="utf-8").split("version:")[0]
        assert "llama-scale" in head, file
