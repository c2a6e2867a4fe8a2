"""Every spec under configs/ is found, validates, plans, and says in its first lines how it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_scale.plan.run_plan import make_plan
from llama_scale.resources import data_dir
from llama_scale.spec.length import any_length
from llama_scale.spec.load import load_spec
from llama_scale.spec.profiles import load_profile

CONFIGS = data_dir("configs")
SPECS = sorted(path for path in CONFIGS.rglob("*") if path.suffix in (".yaml", ".yml"))
LEAST = 14
"""Guards the glob: raise it with each spec that is added."""


def test_specs_are_found() -> None:
    assert len(SPECS) >= LEAST
    assert CONFIGS / "smoke" / "pretrain.yaml" in SPECS


@pytest.mark.parametrize("path", SPECS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_spec_validates_and_plans(path: Path) -> None:
    spec = load_spec(path)

    plan = make_plan(any_length(spec))

    assert plan.topology.world_size == spec.cluster.nodes * spec.cluster.devices_per_node


@pytest.mark.parametrize("path", SPECS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_head_comment_is_the_exact_command(path: Path) -> None:
    head = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line)

    assert any(f"llama-scale launch configs/{path.relative_to(CONFIGS)}" in line for line in head)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_variables_are_those_of_the_profile(path: Path) -> None:
    spec = load_spec(path)
    if spec.cluster.profile is not None:
        profile = load_profile(spec.cluster.profile)
        assert {name: spec.launcher.env.get(name, value) for name, value in profile.env.items()} == profile.env


def test_sample_text_has_its_licence_beside_it() -> None:
    assert "Mozilla Public License 2.0" in (CONFIGS / "smoke" / "LICENSE.sample.md").read_text(encoding="utf-8")
    assert (CONFIGS / "smoke" / "sample.jsonl.gz").stat().st_size < 500_000
    examples = CONFIGS / "finetune" / "sample"
    licences = (examples / "LICENSE.md").read_text(encoding="utf-8")
    for path in {*examples.iterdir()} - {examples / "LICENSE.md"}:
        assert path.name in licences
        assert path.stat().st_size < 100_000
