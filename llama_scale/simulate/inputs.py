"""What a simulation reads: small files made of the spec's own where they are on this machine, else made up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_scale.errors import LaunchError
from llama_scale.libraries import missing_message
from llama_scale.runs.preflight import vocabulary_size
from llama_scale.runs.task_files import task_faults
from llama_scale.simulate import examples, tokenizer, tokens
from llama_scale.simulate.shrink import Inputs
from llama_scale.spec.model import InlineModel
from llama_scale.spec.run import RunSpec

_LIBRARIES = ("torch", "megatron", "safetensors", "numpy", "transformers")


def need_libraries() -> None:
    """Refuse what the light install cannot do, without importing anything.

    Raises:
        LaunchError: Names the libraries that are missing.
    """
    fault = missing_message("a simulation needs", *_LIBRARIES)
    if fault:
        raise LaunchError(fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokenizer:
    section: dict[str, Any] | None
    size: int
    why: str
    made: bool = False


def survey(spec: RunSpec, folder: Path) -> Inputs:
    """Check the spec's own files as far as they are here, and write what the tasks of the simulation read.

    Token files are written later, by ``write_tokens``: their ids depend on the shrunk vocabulary.

    Args:
        spec: The resolved spec.
        folder: The simulation's folder ``inputs``.

    Raises:
        LaunchError: A file is damaged or does not fit the model; all faults are named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    try:
        chosen = _tokenizer(spec, folder / "tokenizer")
    except LaunchError as error:
        faults.append(str(error))
    if spec.data.kind == "tasks":
        faults += [fault for fault in task_faults(spec) if not fault.endswith(("does not exist", "do not exist"))]
    else:
        faults += [fault for part in spec.data.blend if (fault := _token_fault(part.path, spec))]
    if faults:
        raise LaunchError("\n  ".join(faults))
    if spec.data.kind == "tasks":
        return Inputs(
            tokenizer=chosen.section,
            tokenizer_size=chosen.size,
            tokenizer_why=chosen.why,
            tokenizer_made=chosen.made,
            tasks=[
                examples.prepare(
                    task, folder / f"task-{number}", seq_length=spec.data.seq_length, tokenizer=not chosen.made
                )
                for number, task in enumerate(spec.tasks)
            ],
        )
    return Inputs(
        tokenizer=chosen.section,
        tokenizer_size=chosen.size,
        tokenizer_why=chosen.why,
        blend=[str(folder / f"tokens-{number}") for number in range(len(spec.data.blend))],
        blend_why=[
            "its first documents" if tokens.is_here(part.path) else "not here: random tokens"
            for part in spec.data.blend
        ],
    )


def _tokenizer(spec: RunSpec, folder: Path) -> _Tokenizer:
    """Return the simulation's tokenizer; tasks need one.

    Raises:
        LaunchError: The spec's is here and damaged, or has more tokens than the model knows.
    """
    assert isinstance(spec.model, InlineModel)
    if spec.tokenizer is None:
        return _Tokenizer(section=None, size=0, why="")
    if not Path(spec.tokenizer.path).exists():
        if spec.data.kind == "indexed":
            return _Tokenizer(section=None, size=0, why="not here")
        tokenizer.write_tokenizer(folder)
        return _Tokenizer(
            section={"kind": "hf", "path": str(folder)}, size=tokenizer.SIZE, why="not here: bytes", made=True
        )
    size = vocabulary_size(spec.tokenizer)
    if size > spec.model.vocab_size:
        raise LaunchError(
            f"tokenizer {spec.tokenizer.path} has {size} tokens, and the model knows model.vocab_size="
            f"{spec.model.vocab_size}: tokens above that have no embedding"
        )
    return _Tokenizer(section=spec.tokenizer.model_dump(mode="json"), size=size, why="")


def _token_fault(prefix: str, spec: RunSpec) -> str | None:
    assert isinstance(spec.model, InlineModel)
    if not tokens.is_here(prefix):
        return None
    try:
        tokens.check_ids(prefix, vocab_size=spec.model.vocab_size)
    except LaunchError as error:
        return str(error)
    return None


def write_tokens(spec: RunSpec, small: RunSpec) -> None:
    """Write the token files that the simulation's spec names.

    Args:
        spec: The spec.
        small: The simulation's spec.

    Raises:
        LaunchError: A file cannot be written.
    """
    if spec.data.kind != "indexed" or small.data.kind != "indexed":
        return
    assert isinstance(small.model, InlineModel)
    for number, (part, made) in enumerate(zip(spec.data.blend, small.data.blend, strict=True)):
        tokens.write_sample(
            part.path if tokens.is_here(part.path) else None,
            Path(made.path),
            vocab_size=small.model.vocab_size,
            seed=spec.seed + number,
        )
