"""What came with a model: settings, stop tokens and tokenizer of the Hugging Face folder at the beginning of its line.

A line is what a model was made of: a checkpoint belongs to a run, the run started from another checkpoint, and so on
back to an import, which keeps the small files of its folder under ``hf/``. Every run adds its tokenizer's EOS and the
token that ended the turns it trained. A run keeps what came with its start in its own folder too, so that the answer
does not change when the start is moved or removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_scale.checkpoint.manifest import MANIFEST, Manifest, load_manifest
from llama_scale.convert.folders import (
    ORIGIN,
    copy_small_files,
    copy_templates,
    find_checkpoint,
    has_tokenizer,
    new_folder,
    read_json,
    run_of,
    write_json,
)
from llama_scale.convert.hf_config import CONFIG, GENERATION_CONFIG, named_stops
from llama_scale.convert.turn_end import turn_end
from llama_scale.data.sentencepiece_folder import read_sentencepiece
from llama_scale.data.tokenizer import load_tokenizer
from llama_scale.errors import CheckpointError, ConvertError, DataError, SpecError
from llama_scale.spec.adapters import Task
from llama_scale.spec.load import load_run_spec
from llama_scale.spec.run import RunSpec

_RECORD = "line.json"
"""What the other files of a kept origin do not say: the stop tokens that training added, and what is missing."""
_SENTENCEPIECE = "sentencepiece.model"
"""A SentencePiece model that a spec names; a folder's tokenizer.model has settings of transformers beside it."""
_BESIDE_SENTENCEPIECE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Settings in the folder of a SentencePiece model, which belong to it."""
_SILENT_TASKS = ("qa_extractive", "semantic_search")
"""Built-in kinds of tasks that write nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What came with a model.

    Args:
        config: config.json at the beginning of the line; None if there was none.
        generation_config: Its generation_config.json; None if there was none.
        tokenizer: SentencePiece model, or folder with a Hugging Face tokenizer; None if it is not known.
        stop_ids: Tokens that end a text: the origin's own, then those of tokenizers and of trained turns.
        missing: What the line started from where that cannot be read any more, with the reason.
    """

    config: dict[str, Any] | None = None
    generation_config: dict[str, Any] | None = None
    tokenizer: Path | None = None
    stop_ids: tuple[int, ...] = ()
    missing: str | None = None

    def and_stops(self, ids: Iterable[int | None]) -> Origin:
        """Return the same with more stop tokens behind those that are known."""
        known = dict.fromkeys(self.stop_ids) | dict.fromkeys(number for number in ids if number is not None)
        return replace(self, stop_ids=tuple(known))


def origin_of(checkpoint: Path, *, base: Path | None = None, tokenizer: Path | None = None) -> Origin:
    """Return what came with a checkpoint's model.

    Args:
        checkpoint: A complete checkpoint: an import, a run's, or one of adapters on a base.
        base: Where its frozen base is now; None: where it was.
        tokenizer: The tokenizer that the user names; None: the one kept at import, the one in the spec of the
            checkpoint's run, or the one of what the run started from.

    Raises:
        ConvertError: The tokenizer asked for or named in the run's spec does not exist, it or a config is damaged, or
            the run's spec cannot be read.
        CheckpointError: The checkpoint's manifest cannot be read.
    """
    if tokenizer is not None and not tokenizer.exists():
        raise ConvertError(f"--tokenizer {tokenizer} does not exist; give a SentencePiece .model or a tokenizer folder")
    return _of_checkpoint(checkpoint, base=base, asked=tokenizer)


def lost_with(missing: str) -> str:
    """Say what is not known because the start of a line cannot be read."""
    return f"stop tokens, sampling settings and tokenizer that came with {missing} are lost: it cannot be read any more"


def origin_of_start(checkpoint: Path) -> Origin:
    """Return what came with a checkpoint that another is made of: what cannot be read is left out, and is named."""
    return _of_start([checkpoint], behind=())


def origin_of_spec(spec: RunSpec) -> Origin:
    """Return what comes with the model of a spec, which was trained outside a run.

    Raises:
        ConvertError: The spec's tokenizer is damaged.
    """
    found = _of_start([] if spec.model.init_from is None else [Path(spec.model.init_from)], behind=())
    return _trained(_with_own_tokenizer(found, spec, is_start=True), spec.tasks)


def keep_with(folder: Path, *, made_of: Path) -> None:
    """Keep what came with a checkpoint in the folder of a run or checkpoint that is made of it, unless it is there.

    Raises:
        ConvertError: It cannot be written.
    """
    origin = origin_of_start(made_of)
    if origin != Origin() and not (folder / ORIGIN).exists():
        with new_folder(folder / ORIGIN) as kept:
            write_origin(origin, kept)


def write_origin(origin: Origin, folder: Path) -> None:
    """Write what came with a model into an existing folder, as an import keeps it."""
    tokenizer = origin.tokenizer
    if tokenizer is not None and tokenizer.is_dir():
        copy_small_files(tokenizer, folder, configs=False)
    elif tokenizer is not None:
        _keep_sentencepiece(tokenizer, folder)
    for name, config in ((CONFIG, origin.config), (GENERATION_CONFIG, origin.generation_config)):
        if config is not None:
            write_json(folder / name, config)
    write_json(folder / _RECORD, {"stop_ids": origin.stop_ids, "missing": origin.missing})


def _keep_sentencepiece(model: Path, folder: Path) -> None:
    """Write a SentencePiece model as the tokenizer that was trained with; one that cannot be converted, as it is."""
    try:
        read_sentencepiece(model).write(folder)
    except DataError:
        shutil.copyfile(model, folder / _SENTENCEPIECE)
        copy_templates(model.parent, folder)
        for name in _BESIDE_SENTENCEPIECE:
            if (model.parent / name).is_file():
                shutil.copyfile(model.parent / name, folder / name)


def _of_checkpoint(
    checkpoint: Path,
    *,
    base: Path | None = None,
    asked: Path | None = None,
    behind: tuple[Path, ...] = (),
    is_start: bool = False,
) -> Origin:
    """See ``origin_of``; ``behind``: the checkpoints that were made of this one, ``is_start``: whether another was."""
    manifest = load_manifest(checkpoint)
    found = _of_folder(checkpoint / ORIGIN, with_tokenizer=asked is None)
    if found is None:
        run = run_of(checkpoint)
        spec, fault = (None, None) if run is None else _spec_of(run, is_start=is_start)
        found = _of_start(_starts(run, spec, manifest, base=base), behind=(*behind, checkpoint.resolve()))
        found = replace(found, missing=found.missing or fault)
        if spec is not None and asked is None:
            found = _with_own_tokenizer(found, spec, is_start=is_start)
    if asked is not None:
        found = replace(found, tokenizer=asked)
    return _trained(found, () if manifest.extensions is None else manifest.extensions.tasks)


def _spec_of(run: Path, *, is_start: bool) -> tuple[RunSpec | None, str | None]:
    """Return a run's spec, or what is wrong with it where the run is only what another started from."""
    path = run / "spec.yaml"
    try:
        return load_run_spec(path), None
    except SpecError as error:
        if is_start:
            return None, f"{path} ({error})"
        raise ConvertError(f"what came with the model is not known, because {path} cannot be read: {error}") from error


def _with_own_tokenizer(found: Origin, spec: RunSpec, *, is_start: bool) -> Origin:
    """Return the same with the tokenizer that a spec names; what started from its run can do without it."""
    if spec.tokenizer is None:
        return found
    tokenizer = Path(spec.tokenizer.path)
    if tokenizer.exists():
        return replace(found, tokenizer=tokenizer)
    if is_start:
        return replace(found, missing=found.missing or str(tokenizer))
    near = "" if found.tokenizer is None else f" ({found.tokenizer} came with the weights)"
    raise ConvertError(
        f"the run's tokenizer {tokenizer} does not exist any more; restore it or give another with --tokenizer{near}"
    )


def _trained(found: Origin, tasks: Iterable[Task]) -> Origin:
    """Return the same with the tokens that end a document, and an answer if the tasks train some."""
    if found.tokenizer is None:
        return found
    return found.and_stops([_end_of_text(found.tokenizer), *_ends_of_turns(tasks, found.tokenizer)])


def _of_folder(folder: Path, *, with_tokenizer: bool = True) -> Origin | None:
    """Return what a Hugging Face folder, or one that ``write_origin`` wrote, holds besides weights; None: nothing."""
    config, generation, kept = (read_json(folder / name) for name in (CONFIG, GENERATION_CONFIG, _RECORD))
    tokenizer: Path | None = folder if has_tokenizer(folder) else folder / _SENTENCEPIECE
    if tokenizer is not None and not (with_tokenizer and tokenizer.exists()):
        tokenizer = None
    if config is None and generation is None and kept is None and tokenizer is None:
        return None
    missing = (kept or {}).get("missing")
    found = Origin(config=config, generation_config=generation, tokenizer=tokenizer, missing=missing)
    found = found.and_stops([*named_stops(config), *named_stops(generation)])
    if tokenizer is not None:
        found = found.and_stops([_end_of_text(tokenizer)])
    return found.and_stops((kept or {}).get("stop_ids", ()))


def _starts(run: Path | None, spec: RunSpec | None, manifest: Manifest, *, base: Path | None) -> Iterator[Path]:
    """Yield the places that know what came with the weights that a checkpoint's training began with, nearest first."""
    if run is not None and (run / ORIGIN).is_dir():
        yield run / ORIGIN
    if spec is not None and spec.model.init_from is not None:
        yield Path(spec.model.init_from)
    elif manifest.started_from is not None and manifest.started_from.path is not None:
        yield Path(manifest.started_from.path)  # of a checkpoint that was taken out of its run
    if base is not None:
        yield base
    elif manifest.base is not None and manifest.base.path is not None:
        yield Path(manifest.base.path)


def _of_start(places: Iterable[Path], *, behind: tuple[Path, ...]) -> Origin:
    """Return what came with the first place that can be read: a checkpoint, a run or a Hugging Face folder."""
    missing = None
    for place in places:
        try:
            return _of_place(place, behind=behind)
        except (CheckpointError, ConvertError) as error:
            missing = missing or (f"{place} ({error})" if place.exists() else str(place))
    return Origin(missing=missing)


def _of_place(place: Path, *, behind: tuple[Path, ...]) -> Origin:
    found = None if (place / MANIFEST).is_file() else _of_folder(place)
    if found is not None:
        return found
    checkpoint = find_checkpoint(place)
    if checkpoint.resolve() in behind:
        raise ConvertError("it was made of itself, by its run's spec")
    return _of_checkpoint(checkpoint, behind=behind, is_start=True)


def _end_of_text(tokenizer: Path) -> int | None:
    try:
        return load_tokenizer(tokenizer).eos_id
    except DataError as error:
        fault = str(error).removeprefix("--tokenizer ")
        raise ConvertError(f"the model's tokenizer cannot be used: {fault}; give another with --tokenizer") from error


def _ends_of_turns(tasks: Iterable[Task], tokenizer: Path) -> list[int | None]:
    """Return the token that ends an answer in the chat template's form, where a task trained such answers."""
    speaks = any(task.options.get("chat", task.kind not in _SILENT_TASKS) for task in tasks)
    return [turn_end(tokenizer)] if speaks else []
