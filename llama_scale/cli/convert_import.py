"""What ``llama-scale convert import`` does besides importing: folders of DeepSpeed, and the result in words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from llama_scale.cli.convert_output import proven_words, show
from llama_scale.cli.output import say
from llama_scale.errors import ConvertError

if TYPE_CHECKING:
    from llama_scale.checkpoint.manifest import Manifest


def show_import(
    manifest: Manifest, target: Path, *, layout: tuple[int, int], as_json: bool, from_hf: bool = False
) -> None:
    """Print what was imported and what proved it."""
    from llama_scale.convert.folders import REPORT, read_json

    proven = (read_json(target / REPORT) or {}).get("verify") if from_hf else None
    result = {
        "checkpoint": str(target),
        "parameters": sum(math.prod(entry.shape) for entry in manifest.tensors["model"].values()),
        "bytes": manifest.total_bytes,
        "shards": len(manifest.shards),
        "tensor": layout[0],
        "pipeline": layout[1],
        "parameter_digest": manifest.parameter_digest,
        "verify": proven,
    }
    text = f"{target}: {result['parameters']:,} parameters in {len(manifest.shards)} shards, "
    text += f"tensor={layout[0]} x pipeline={layout[1]}"
    text += "; " + proven_words(proven, against="transformers'") if from_hf else ""
    show(result, as_json=as_json, text=text)
    if proven is not None and proven["note"]:
        say(f"note: {proven['note']}")


def refuse_deepspeed(source: Path) -> None:
    """Say what is missing where somebody gives a folder of DeepSpeed for one of Hugging Face."""
    from llama_scale.convert.folders import deepspeed_folder

    if source.is_dir() and not (source / "config.json").is_file() and deepspeed_folder(source) is not None:
        raise ConvertError(
            f"{source} is a checkpoint in DeepSpeed's own format, which does not say what model it holds; add "
            "--spec SPEC with the spec that it was trained with"
        )


def import_deepspeed(source: Path, target: Path, *, spec: Path) -> Manifest:
    """Make a checkpoint of a folder that DeepSpeed has saved."""
    from llama_scale.convert import deepspeed_folder
    from llama_scale.convert.origin import origin_of_spec
    from llama_scale.plan.run_plan import make_plan
    from llama_scale.spec.length import any_length
    from llama_scale.spec.load import load_spec

    loaded = load_spec(spec)
    plan = make_plan(any_length(loaded))
    return deepspeed_folder.import_deepspeed(
        source,
        target,
        shape=plan.shape,
        vocab_pad_multiple=plan.vocab_pad_multiple,
        origin=origin_of_spec(loaded),
    )
