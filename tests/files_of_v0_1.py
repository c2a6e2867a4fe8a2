"""Copies of the files that version 0.1 wrote (``tests/fixtures/v0.1``), with paths as if they had been made there."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

FIXTURES = Path(__file__).parent / "fixtures" / "v0.1"
PLACE = "/llama-scale-0.1"
RUNS = ("megatron", "deepspeed", "ddp", "mixture", "sft", "head")
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))


def copy_files(target: Path, *names: str) -> Path:
    """Copy folders of the fixtures and the inputs into a folder, which is returned.

    Args:
        target: The folder.
        names: Folders such as ``runs/ddp``; inputs are always copied.
    """
    for name in ("inputs", *names):
        shutil.copytree(FIXTURES / name, target / name)
    for path in target.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml", ".sh"):
            text = path.read_text(encoding="utf-8")
            if PLACE in text:
                path.write_text(text.replace(PLACE, str(target)), encoding="utf-8")
    for run in target.glob("runs/*"):
        (run / "logs").mkdir(exist_ok=True)
        _name_examples(run)
    return target


def _name_examples(run: Path) -> None:
    """Give prepared examples the names that 0.1 would have given them: by a digest that paths are a part of."""
    spec = yaml.safe_load((run / "spec.yaml").read_text(encoding="utf-8"))
    for task in spec["tasks"]:
        content = {
            "kind": task["kind"],
            "options": task["options"],
            "data": spec["data"],
            "tokenizer": spec["tokenizer"],
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        (old,) = (run / "examples").glob(f"{task['name']}-*")
        old.rename(old.with_name(f"{task['name']}-{digest}"))
