"""Runs on a frozen base: what their checkpoints say of the base and of what trains on it, and when they fit a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_scale.checkpoint.manifest import BaseRecord, ExtensionRecord, Manifest, load_manifest
from llama_scale.errors import CheckpointError

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.starting import Start


_NEW = "not in the checkpoint"


def base_record(spec: RunSpec, plan: RunPlan, *, start: Start) -> BaseRecord | None:
    """Describe the base that a run's checkpoints do not hold; None if they do.

    Args:
        spec: The run.
        plan: Its plan.
        start: What it starts from.

    Raises:
        CheckpointError: The base's weights are gone, are of no whole model, or are drawn from another seed.
    """
    if plan.base_trainable:
        return None
    dtype = "bfloat16" if spec.precision.compute == "bf16" else "float32"
    record = start.record
    if record.kind == "seed":
        if (record.seed, record.init_std) != (spec.seed, spec.model.init_std):
            raise CheckpointError(
                f"the adapters of model.init_from {spec.model.init_from} were trained on weights {record.words()} with "
                f"init_std {record.init_std}, this spec has seed {spec.seed} and init_std {spec.model.init_std}; set "
                "seed and model.init_std to theirs"
            )
        return BaseRecord(kind="seed", seed=spec.seed, init_std=spec.model.init_std, dtype=dtype)
    manifest = load_manifest(start.folder or Path(record.weights or record.path or ""))
    return BaseRecord(
        kind="checkpoint",
        path=str((start.folder or Path()).absolute()),
        parameter_digest=manifest.parameter_digest,
        dtype=dtype,
    )


def extension_record(spec: RunSpec) -> ExtensionRecord | None:
    """Describe what a run's checkpoints hold beside the base; None if nothing."""
    if not (spec.adapters or spec.tasks or spec.mixture):
        return None
    return ExtensionRecord(seed=spec.seed, adapters=spec.adapters, tasks=spec.tasks, mixture=spec.mixture)


def check_extensions(
    manifest: Manifest, spec: RunSpec, plan: RunPlan, *, folder: Path, base: BaseRecord | None, optimizer: bool
) -> None:
    """Refuse a checkpoint whose base, or what was trained on it, is not this run's.

    Args:
        manifest: The checkpoint.
        spec: The run.
        plan: Its plan.
        folder: Named in messages.
        base: What the run has as its frozen base; None: it trains the base.
        optimizer: Training goes on from it; a warm start takes a whole base, or adapters on this run's base.

    Raises:
        CheckpointError: They differ; each difference is named.
    """
    theirs = manifest.base
    if not optimizer:
        if theirs is not None and base is not None:
            _check_base(theirs, base, folder=folder)
            wrong = [text for text in _differences(manifest.extensions, spec) if not text.endswith(_NEW)]
            if wrong:
                raise CheckpointError(
                    f"model.init_from {folder} holds adapters that this spec does not have so "
                    f"({'; '.join(wrong[:4])}); describe them in the spec as they are there"
                )
        elif theirs is not None:
            raise CheckpointError(
                f"{folder} holds only what was trained on a frozen base ({_whence(theirs)}), no base: set "
                "model.init_from to that base, or to a merged model"
            )
        return
    if (theirs is None) != (base is None):
        what = "the whole model" if theirs is None else "adapters on a frozen base"
        raise CheckpointError(
            f"checkpoint {folder} is of a run that trained {what}, and this spec does not; start a new run for it"
        )
    if theirs is not None and base is not None:
        _check_base(theirs, base, folder=folder)
    wrong = [*_differences(manifest.extensions, spec), *_tensor_differences(manifest, plan)]
    if wrong:
        raise CheckpointError(
            f"checkpoint {folder} was made with other adapters, tasks or mixture ({'; '.join(wrong[:4])}); restore "
            "them, or start a new run"
        )


def _check_base(theirs: BaseRecord, ours: BaseRecord, *, folder: Path) -> None:
    same = theirs.parameter_digest == ours.parameter_digest
    if theirs.kind == "seed":
        same = same and (theirs.seed, theirs.init_std) == (ours.seed, ours.init_std)
    if theirs.kind != ours.kind or not same:
        raise CheckpointError(
            f"checkpoint {folder} was trained on another base: on {_whence(theirs)}, and this run has {_whence(ours)}; "
            "set model.init_from (or seed and model.init_std) to the base that it was trained on"
        )


def _whence(base: BaseRecord) -> str:
    if base.kind == "seed":
        return f"weights drawn from seed {base.seed} with init_std {base.init_std}"
    return f"{base.path}, parameter digest {str(base.parameter_digest)[:12]}"


def _differences(saved: ExtensionRecord | None, spec: RunSpec) -> Iterator[str]:
    """Yield in which adapters the model differs; what tasks read is not the model's."""
    before = {} if saved is None else {adapter.name: adapter for adapter in saved.adapters}
    after = {adapter.name: adapter for adapter in spec.adapters}
    for name in dict.fromkeys([*before, *after]):
        if name not in after or name not in before:
            yield f"adapter {name!r} is {'only in the checkpoint' if name in before else _NEW}"
        elif before[name].kind != after[name].kind:
            yield f"adapter {name!r}: kind {before[name].kind} saved, {after[name].kind} wanted"
        else:
            yield from _option_differences(name, before[name].options, after[name].options)


def _option_differences(name: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*saved, *wanted]):
        if saved.get(key) != wanted.get(key):
            yield f"adapter {name!r}: {key} {saved.get(key)} saved, {wanted.get(key)} wanted"


def _tensor_differences(manifest: Manifest, plan: RunPlan) -> Iterator[str]:
    saved = {name: tuple(entry.shape) for name, entry in manifest.tensors.get("model", {}).items()}
    wanted = {p.name: p.shape for p in plan.all_parameters() if plan.trains(p)}
    for name, shape in wanted.items():
        if name not in saved:
            yield f"{name} is not in the checkpoint"
        elif saved[name] != shape:
            yield f"{name} has the shape {list(saved[name])} in the checkpoint, {list(shape)} here"
    for name in saved:
        if name not in wanted:
            yield f"{name} is only in the checkpoint"
