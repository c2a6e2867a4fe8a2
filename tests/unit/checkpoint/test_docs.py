"""The recipe of docs/checkpoints.md reads a checkpoint with nothing but the safetensors library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llama_scale.layout.boxes import Box
from tests.unit.checkpoint.cuts import cut_of, save

DOCS = Path(__file__).parents[3] / "docs" / "checkpoints.md"


def test_the_documented_recipe_reads_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(2, 6, 4)
    left, right = Box((0, 0, 0), (2, 3, 4)), Box((0, 3, 0), (2, 3, 4))
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    save(
        tmp_path,
        [
            [cut_of(weight, left, name=name)],
            [cut_of(weight, right, (0, 7), name=name), cut_of(weight, right, (7, 17), name=name)],
        ],
        step=100,
    )
    recipe = DOCS.read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(recipe, names)
    assert torch.equal(names["whole"], weight)
