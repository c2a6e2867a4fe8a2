"""What a run starts from: the record of it, and the checkpoint folder that its weights are read from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llama_scale.checkpoint.bases import find_imported, source_key
from llama_scale.checkpoint.manifest import MANIFEST, Manifest, StartRecord, load_manifest
from llama_scale.convert.folders import Progress
from llama_scale.convert.shards import Layout, even_stage_layers
from llama_scale.errors import ConvertError, LaunchError, SpecError
from llama_scale.spec.start_folder import check_start, is_hf_folder

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec


def describe_start(spec: RunSpec) -> StartRecord:
    """Return the record of what a spec says that its run starts from; nothing is imported yet.

    A run that goes on from adapters starts from their base.

    Raises:
        CheckpointError: ``model.init_from`` is a damaged checkpoint.
    """
    source = spec.model.init_from
    if source is None:
        return StartRecord(kind="seed", seed=spec.seed, init_std=spec.model.init_std)
    folder = Path(source).absolute()
    named = StartRecord(kind="folder", name=spec.model.base_name, path=str(folder))
    if is_hf_folder(folder):
        return named
    found = named.model_copy(update={"kind": "checkpoint", "weights": str(folder)})
    if not (folder / MANIFEST).is_file():  # a run that goes on from its own weights may have lost it
        return found
    manifest = load_manifest(folder)
    if manifest.base is not None:
        return _base_start(manifest).model_copy(update={"adapters": str(folder)})
    return found.model_copy(update={"digest": manifest.parameter_digest})


def _base_start(manifest: Manifest) -> StartRecord:
    """Return the record of the frozen base of a checkpoint of adapters; version 0.1 did not write it."""
    base = manifest.base
    assert base is not None, "only adapters have one"
    if base.kind == "seed":
        return StartRecord(kind="seed", seed=base.seed, init_std=base.init_std)
    if manifest.started_from is not None:
        return manifest.started_from.model_copy(update={"weights": base.path})
    return StartRecord(kind="checkpoint", path=base.path, digest=base.parameter_digest, weights=base.path)


def is_of(record: StartRecord, spec: RunSpec) -> bool:
    """Tell whether a run's record is of the folder that its spec names now: `resume --set` may have changed it."""
    source = spec.model.init_from
    return (record.adapters or record.path) == (None if source is None else str(Path(source).absolute()))


def find_weights(record: StartRecord, *, bases: Path) -> Path | None:
    """Return the checkpoint folder that holds the weights; None if they are drawn from a seed, or gone.

    Args:
        record: What a run starts from.
        bases: Its runs' folder of imported weights, see ``bases_in``; it may have been moved with the runs.
    """
    if record.weights is None:
        return None
    place = Path(record.weights)
    if record.kind == "checkpoint":
        return place if (place / MANIFEST).is_file() else None
    for folder in (bases, place.parent):
        found = find_imported(folder, place.name)
        if found is not None and found.digest == record.digest:
            return found.folder
    return None


def ensure_weights(
    record: StartRecord, spec: RunSpec, plan: RunPlan, *, bases: Path, progress: Progress | None = None
) -> StartRecord:
    """Return the record with the place of its weights; those of a Hugging Face folder are imported if need be.

    Args:
        record: What the run starts from, or started from.
        spec: Its resolved spec.
        plan: Its plan.
        bases: Folder of imported weights, see ``bases_in``.
        progress: Is told of the bytes imported and compared.

    Raises:
        LaunchError: The folder cannot be read or imported, is of another model, or has changed since.
    """
    if record.kind != "folder":
        return record
    found = find_weights(record, bases=bases)
    if found is not None:
        return record.model_copy(update={"weights": str(found)})
    assert record.path is not None
    source = Path(record.path)
    if record.digest is None:
        problems = check_start(spec.model, key="init_from")
        if problems:
            raise SpecError(problems)
    try:
        if record.digest is None and (known := find_imported(bases, source_key(source))) is not None:
            return record.model_copy(update={"digest": known.digest, "weights": str(known.folder)})
        from llama_scale.convert.base_import import import_again, import_base  # lazy: torch

        layout = _layout(plan)
        if record.digest is None:
            made = import_base(source, bases, layout=layout, progress=progress)
        else:
            made = import_again(record, bases, layout=layout, progress=progress)
    except (ConvertError, OSError) as error:
        raise LaunchError(f"cannot start from the weights of {record.name or record.path}: {error}") from error
    return record.model_copy(update={"digest": made.digest, "weights": str(made.folder)})


def _layout(plan: RunPlan) -> Layout:
    stages = plan.topology.pp_size
    return Layout(
        tp_size=plan.topology.tp_size,
        pp_size=stages,
        stage_layers=even_stage_layers(plan.shape.num_layers, pp_size=stages),
        vocab_pad_multiple=plan.vocab_pad_multiple,
    )
