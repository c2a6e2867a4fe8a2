from __future__ import annotations

import yaml

from llama_scale.spec.section_text import replace_sections

TEXT = """\
# What this is.
version: 1

# The layout.
parallel:
  data: 2   # replicas
  # a remark inside
  tensor: 1

batch: {global: 8,
  micro: 1}
# Of the engine.
engine: {kind: ddp}
"""


def test_other_lines_stay_as_they_are() -> None:
    changed = replace_sections(TEXT, {"parallel": {"data": 4, "stage_layers": [1, 2]}})

    assert changed == TEXT.replace(
        "  data: 2   # replicas\n  # a remark inside\n  tensor: 1\n", "  data: 4\n  stage_layers: [1, 2]\n"
    )


def test_sections_that_run_over_lines_or_are_missing_are_written() -> None:
    changed = replace_sections(TEXT.rstrip("\n"), {"batch": {"global": 4, "micro": 2}, "recompute": {"kind": "none"}})

    loaded = yaml.safe_load(changed)
    assert loaded["batch"] == {"global": 4, "micro": 2}
    assert loaded["recompute"] == {"kind": "none"}
    assert loaded["engine"] == {"kind": "ddp"}
    assert "# Of the engine.\nengine" in changed


def test_values_are_read_back_as_they_are() -> None:
    fields = {"text": "no", "number": 1e-4, "flag": True, "nothing": None, "deep": {"a": [1, "x: y"]}}

    assert yaml.safe_load(replace_sections(TEXT, {"engine": fields}))["engine"] == fields
