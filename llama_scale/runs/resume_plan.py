"""Decide from a checkpoint's manifest and a (changed) spec whether a run can go on, and what that takes; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llama_scale.checkpoint.manifest import Manifest
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.run import RunSpec

Kind = Literal["start", "reuse", "reshard", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePlan:
    """Say what resuming would do.

    Args:
        kind: ``reuse``: each rank reads what it wrote; ``reshard``: the same state is divided anew; ``refuse``: the
            run cannot go on like this; ``start``: there is no complete checkpoint, it begins at step 0.
        checkpoint: Folder name of the checkpoint; None for ``start``.
        step: Steps behind it.
        steps: Steps the run is to have.
        reasons: Why it is this kind.
        changes: Other changes against the spec that trained so far: they take effect from the next step on.
    """

    kind: Kind
    checkpoint: str | None
    step: int
    steps: int
    reasons: tuple[str, ...]
    changes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what ``resume --plan --json`` prints."""
        return {
            "kind": self.kind,
            "checkpoint": self.checkpoint,
            "step": self.step,
            "steps": self.steps,
            "reasons": list(self.reasons),
            "changes": list(self.changes),
        }


_REFUSED: Mapping[str, str] = {
    "seed": "the order of samples and all random numbers follow from it; the run would see samples twice or never",
    "data": "the position in the data (samples consumed) has a meaning in the same data only",
    "adapters": "the checkpoint holds other adapters",
    "tasks": "the checkpoint holds other task heads",
    "mixture": "the checkpoint holds another mixture",
}
"""Sections of the spec that a run keeps for life, and why."""

_LAYOUT = (
    "parallel",
    "cluster",
    "batch.accumulation",
    "engine",
    "launcher",
    "model.vocab_pad_multiple",
    "model.init_from",
    "model.base_name",
    "model.name",
    "train.from",
)
"""Sections and fields that do not change what is trained; those that move tensors are judged by the manifest."""


def decide_resume(
    manifest: Manifest | None, *, checkpoint: str | None, old: RunSpec, new: RunSpec, plan: RunPlan
) -> ResumePlan:
    """Compare a checkpoint with the spec that is to go on from it.

    Args:
        manifest: Of the newest complete checkpoint; None if there is none.
        checkpoint: Its folder's name.
        old: Spec of the run so far.
        new: Spec from now on.
        plan: Plan of ``new``.
    """
    changes = list(_changes(old, new))
    notes = tuple(f"{path}: {_show(a)} -> {_show(b)}" for path, a, b in changes if not _within(path, _LAYOUT))
    if manifest is None:
        # Nothing was trained that could disagree: every change is free.
        reasons: tuple[str, ...] = ("there is no complete checkpoint",)
        return ResumePlan(kind="start", checkpoint=None, step=0, steps=plan.steps, reasons=reasons, changes=notes)
    refusals = tuple(_refusals(manifest, plan=plan, changes=changes))
    moves = tuple(_moves(manifest, plan=plan, new=new))
    kept = tuple(text for text in notes if not _within(text.partition(":")[0], (*_REFUSED, "model")))
    if refusals:
        kind: Kind = "refuse"
        reasons = refusals
    elif moves:
        kind, reasons = "reshard", moves
    else:
        kind, reasons = "reuse", ("same layout",)
    return ResumePlan(
        kind=kind, checkpoint=checkpoint, step=manifest.step, steps=plan.steps, reasons=reasons, changes=kept
    )


def _refusals(manifest: Manifest, *, plan: RunPlan, changes: list[tuple[str, Any, Any]]) -> Iterator[str]:
    saved, wanted = manifest.shape.model_dump(), plan.shape.model_dump()
    for key, value in wanted.items():
        if saved[key] != value:
            yield (
                f"model.{key}: the checkpoint has {_show(saved[key])}, the spec {_show(value)}: it is another model; "
                "start a new run for it"
            )
    for path, before, after in changes:
        section = next((name for name in _REFUSED if _within(path, (name,))), None)
        if section is not None:
            yield f"{path}: {_show(before)} -> {_show(after)}: {_REFUSED[section]}; start a new run for it"
    if not manifest.tensors.get("exp_avg"):
        yield (
            "the checkpoint holds no optimizer state (checkpoint.save_optimizer: false, or an import); start a new "
            "run with model.init_from set to it"
        )
    if manifest.step >= plan.steps:
        yield (
            f"all steps are done: the checkpoint is of step {manifest.step} and train.steps={plan.steps}; go on with "
            f"--set train.steps=N, N > {manifest.step}"
        )


def _moves(manifest: Manifest, *, plan: RunPlan, new: RunSpec) -> Iterator[str]:
    """Yield what makes ranks hold other parts of the state than the checkpoint's writers did."""
    before, after = manifest.topology, plan.topology
    for word, theirs, ours in (
        ("data", before.dp_size, after.dp_size),
        ("tensor", before.tp_size, after.tp_size),
        ("pipeline", before.pp_size, after.pp_size),
    ):
        if theirs != ours:
            yield f"{word} {theirs} -> {ours}"
    stages = tuple(tuple(chunk.layers for chunk in stage) for stage in plan.stages)
    if before.stages and before.stages != stages and before.pp_size == after.pp_size:
        yield f"layers of the stages {_show(before.stages)} -> {_show(stages)}"
    if manifest.engine != plan.engine:
        yield f"engine {manifest.engine} -> {plan.engine}"
    if manifest.vocab_pad_multiple != plan.vocab_pad_multiple:
        yield f"vocab_pad_multiple {manifest.vocab_pad_multiple} -> {plan.vocab_pad_multiple}"
    stored_bf16 = bool(manifest.tensors.get("master")) if manifest.base is None else manifest.base.dtype == "bfloat16"
    if stored_bf16 != (new.precision.compute == "bf16"):
        yield f"precision {'bf16' if stored_bf16 else 'fp32'} -> {new.precision.compute}"


def _changes(old: RunSpec, new: RunSpec) -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted path, before, after) of each difference, lists as a whole."""
    yield from _differences("", old.model_dump(by_alias=True), new.model_dump(by_alias=True))


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(f"{path}.{key}" if path else key, old.get(key), new.get(key))
    elif old != new:
        yield path, old, new


def _within(path: str, sections: tuple[str, ...]) -> bool:
    return any(path == section or path.startswith(section + ".") for section in sections)


def _show(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
