"""Python code that somebody plants in a model's folder: what writes a marker file where it is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS = "modeling_llama_scale"
Plant = Callable[[Path, str], None]


def append(name: str) -> Plant:
    return lambda folder, code: (folder / name).write_text((folder / name).read_text() + code) and None


def add(name: str) -> Plant:
    def plant(folder: Path, code: str) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)

    return plant


def point(file: str, auto_map: Any) -> Plant:
    """Let an auto_map name the class of a file of its own."""

    def plant(folder: Path, code: str) -> None:
        (folder / "evil.py").write_text(code)
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))

    return plant


def link(folder: Path, code: str) -> None:
    outside = folder.parent / f"{folder.name}-outside.py"
    outside.write_text((folder / f"{OURS}.py").read_text() + code)
    (folder / f"{OURS}.py").unlink()
    (folder / f"{OURS}.py").symlink_to(outside)


MODEL_MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
MIXTURE_PLANTS: dict[str, Plant] = {
    "the modelling file": append(f"{OURS}.py"),
    "a file it imports": append("mixing.py"),
    "an adapter's file": append("adapter_lora.py"),
    "the gate's file": append("gate_linear.py"),
    "a link": link,
    "another class": point("config.json", MODEL_MAP),
    "the tokenizer": point("tokenizer_config.json", {"AutoTokenizer": ["evil.Tok", "evil.Tok"]}),
    "generation": add("custom_generate/generate.py"),
}
PLAIN_PLANTS: dict[str, Plant] = {
    "another class": point("config.json", MODEL_MAP),
    "another repository": point("config.json", {"AutoModelForCausalLM": "someone/else--evil.Model"}),
    "the tokenizer": point("tokenizer_config.json", {"AutoTokenizer": ["evil.Tok", "evil.Tok"]}),
    "generation": add("custom_generate/generate.py"),
}


def planted(source: Path, target: Path, plant: Plant) -> Path:
    """Copy a folder, plant code in the copy, and return the marker that the code would write."""
    shutil.copytree(source, target)
    marker = target.with_name(f"{target.name}.ran")
    plant(target, f"\nopen({str(marker)!r}, 'w').close()\n")
    return marker
