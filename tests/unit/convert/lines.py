"""Lines of models: Hugging Face folders with settings of their own, and runs that started from one another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from llama_scale.checkpoint.manifest import load_manifest
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.shards import Layout
from llama_scale.spec.load import dump_spec
from llama_scale.spec.run import RunSpec
from tests.task_tokenizer import write_tokenizer
from tests.unit.convert.tiny import Tiny, write_weights

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|end|>", "<|other|>")
START, TURN_END, TEXT_END, OTHER = range(4)
"""Ids of the special tokens: the head of a turn, its end by the chat template, the tokenizer's EOS, and one more."""
VOCAB = 320
GENERATION = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 100, "transformers_version": "4.42.3"}
CHAT = {"name": "chat", "kind": "sft", "options": {"data": {"kind": "split_files", "train": "/nowhere.jsonl"}}}


def write_folder(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    eos: str | None = SPECIAL[TEXT_END],
    following: dict[int, int] | None = None,
) -> Path:
    """Write a Hugging Face folder whose stop tokens are in any of its files.

    Args:
        folder: New folder.
        config: Settings of config.json.
        generation: generation_config.json; None: no such file.
        eos: The tokenizer's EOS; None: it names none.
        following: The model writes these tokens behind those, and behind the others the one with the next id.
    """
    shape = {"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 128}
    made = Tiny(config=shape | {"eos_token_id": None} | (config or {}))
    made.write(folder)
    write_tokenizer(folder, vocab_size=VOCAB, special=SPECIAL, eos=eos or SPECIAL[TEXT_END])
    if eos is None:
        settings = read(folder, "tokenizer_config.json")
        del settings["eos_token"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    if following is not None:
        write_weights(folder, _rigged(load_file(folder / "model.safetensors"), following))
    return folder


def _rigged(tensors: dict[str, torch.Tensor], following: dict[int, int]) -> dict[str, torch.Tensor]:
    """Return weights whose layers add nothing, so that the last token alone decides which one follows."""
    after = {token: (token + 1) % VOCAB for token in range(VOCAB)}
    for token, wanted in following.items():
        (before,) = (t for t, n in after.items() if n == wanted)
        after[before], after[token] = after[token], wanted
    made = {
        name: torch.ones_like(t) if t.dim() == 1 else t * (not name.endswith(("o_proj.weight", "down_proj.weight")))
        for name, t in tensors.items()
    }
    embedding = torch.nn.functional.normalize(made["model.embed_tokens.weight"])
    head = torch.empty_like(embedding)
    head[list(after.values())] = embedding[list(after)]
    return made | {"model.embed_tokens.weight": embedding, "lm_head.weight": head}


def make_run(
    run: Path,
    checkpoint: Path,
    *,
    init_from: Path | None = None,
    tokenizer: Path | None = None,
    tasks: tuple[dict[str, Any], ...] = (),
) -> Path:
    """Make a run folder whose checkpoint has the weights of another, and return that checkpoint.

    Args:
        run: New folder.
        checkpoint: Whose weights.
        init_from: ``model.init_from``.
        tokenizer: Folder or SentencePiece model of the spec's section ``tokenizer``; tasks need one.
        tasks: Its tasks.
    """
    own = run / "checkpoints" / "step-00000001"
    shutil.copytree(checkpoint, own, ignore=shutil.ignore_patterns("hf", "report.json"))
    data = json.loads((own / "manifest.json").read_text())
    if tasks:
        data["extensions"] = {"seed": 0, **(data["extensions"] or {}), "tasks": tasks}
    (own / "manifest.json").write_text(json.dumps(data))
    shape = load_manifest(own).shape.model_dump()
    indexed = {"kind": "indexed", "blend": ({"path": "/nowhere"},), "seq_length": 16}
    spec = RunSpec.model_validate(
        {
            "version": 1,
            "name": run.name,
            "model": {"kind": "inline", **shape, "init_from": None if init_from is None else str(init_from)},
            "tokenizer": None if tokenizer is None else {"kind": _kind(tokenizer), "path": str(tokenizer)},
            "data": {"kind": "tasks", "seq_length": 96} if tasks else indexed,
            "tasks": tasks,
            "train": {"steps": 1},
            "batch": {"global": 1, "micro": 1, "accumulation": 1},
            "engine": {"kind": "ddp"},
            "cluster": {"device": "cpu", "devices_per_node": 1},
        }
    )
    (run / "spec.yaml").write_text(dump_spec(spec))
    (run / "plan.json").write_text("{}")
    return own


def _kind(tokenizer: Path) -> str:
    return "hf" if tokenizer.is_dir() else "sentencepiece"


def imported(folder: Path, **files: Any) -> Path:
    """Write a folder (see ``write_folder``) as ``source``, and its import as ``ck``, which is returned."""
    import_hf(write_folder(folder / "source", **files), folder / "ck", layout=Layout())
    return folder / "ck"


def exported(checkpoint: Path, target: Path) -> Path:
    """Export a checkpoint and return the folder."""
    export_hf(checkpoint, target)
    return target


def stops_of(folder: Path) -> list[int]:
    """Return the tokens at which transformers' generate ends a text with a folder's model."""
    found = GenerationConfig.from_pretrained(folder).eos_token_id
    return [] if found is None else found if isinstance(found, list) else [found]


def read(folder: Path, name: str) -> dict[str, Any]:
    """Return a JSON file."""
    return json.loads((folder / name).read_text())


def settings_of(folder: Path) -> dict[str, Any]:
    """Return what transformers reads in generation_config.json, stop tokens left out."""
    return GenerationConfig.from_pretrained(folder).to_dict() | {"eos_token_id": None}
