"""The table of what does not go together: engine x layout x device x precision, one row each.

A row is data: when it applies, what to say, what to do. ``tests/unit/spec/test_compatibility.py`` has a case for each
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.rule import Rule, problem

if TYPE_CHECKING:
    from llama_scale.spec.engine import DeepSpeedEngine, MegatronEngine, Offload
    from llama_scale.spec.run import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One refusal.

    Args:
        code: Stable name.
        needs: Sections that ``when`` and the texts read.
        path: Field to point at.
        when: Tells whether the row applies to a spec.
        message: What does not go together and why; ``{s...}`` is filled in from the spec.
        hint: What to do.
    """

    code: str
    needs: tuple[str, ...]
    path: str
    when: Callable[[RunSpec], bool]
    message: str
    hint: str


def _deepspeed(spec: RunSpec) -> DeepSpeedEngine | None:
    return spec.engine if spec.engine.kind == "deepspeed" else None


def _zero(spec: RunSpec) -> int:
    engine = _deepspeed(spec)
    return engine.zero if engine else -1


def _offloads(spec: RunSpec) -> list[Offload]:
    engine = _deepspeed(spec)
    both = (engine.offload_optimizer, engine.offload_parameters) if engine else ()
    return [offload for offload in both if offload is not None]


def _offload(spec: RunSpec, what: str) -> Offload | None:
    engine = _deepspeed(spec)
    return getattr(engine, f"offload_{what}") if engine else None


def _megatron(spec: RunSpec) -> MegatronEngine | None:
    return spec.engine if spec.engine.kind == "megatron" else None


def _nvme_path_missing(spec: RunSpec, what: str) -> bool:
    offload = _offload(spec, what)
    return offload is not None and offload.device == "nvme" and offload.nvme_path is None


def _nvme_path_unused(spec: RunSpec, what: str) -> bool:
    offload = _offload(spec, what)
    return offload is not None and offload.device == "cpu" and offload.nvme_path is not None


MEGATRON = (
    Row(
        code="megatron-param-gather",
        needs=("engine",),
        path="engine.overlap_param_gather",
        when=lambda s: (e := _megatron(s)) is not None and e.overlap_param_gather and not e.distributed_optimizer,
        message="overlap_param_gather: true needs distributed_optimizer: true: without it no parameters are gathered",
        hint="set distributed_optimizer to true, or overlap_param_gather to false",
    ),
    Row(
        code="megatron-param-gather-grad-reduce",
        needs=("engine",),
        path="engine.overlap_param_gather",
        when=lambda s: (e := _megatron(s)) is not None and e.overlap_param_gather and not e.overlap_grad_reduce,
        message="overlap_param_gather: true needs overlap_grad_reduce: true: both work bucket by bucket",
        hint="set overlap_grad_reduce to true, or overlap_param_gather to false",
    ),
    Row(
        code="gradients-precision",
        needs=("precision",),
        path="precision.gradients",
        when=lambda s: s.precision.compute == "fp32" and s.precision.gradients == "bf16",
        message="gradients: bf16 with compute: fp32 would round gradients that were computed in fp32",
        hint="set gradients to fp32, or compute to bf16",
    ),
)

DDP = (
    Row(
        code="ddp-data-only",
        needs=("engine", "parallel"),
        path="engine.kind",
        when=lambda s: s.engine.kind == "ddp" and s.parallel.tensor * s.parallel.pipeline > 1,
        message="kind: ddp is data parallel only, and tensor x pipeline = {s.parallel.tensor} x {s.parallel.pipeline}",
        hint="set tensor and pipeline to 1, or use kind: megatron",
    ),
)

DEEPSPEED = (
    Row(
        code="deepspeed-pipeline-zero",
        needs=("engine", "parallel"),
        path="engine.zero",
        when=lambda s: _zero(s) >= 2 and s.parallel.pipeline > 1,
        message="zero={s.engine.zero} does not go with pipeline={s.parallel.pipeline}: DeepSpeed's pipeline engine "
        "keeps gradients of all micro-batches, so ZeRO 2 and 3 cannot divide them",
        hint="set zero to 1, or pipeline to 1 (tensor parallelism goes with every ZeRO stage)",
    ),
    Row(
        code="deepspeed-bf16-zero-0",
        needs=("engine", "parallel", "precision"),
        path="engine.zero",
        when=lambda s: _zero(s) == 0 and s.parallel.pipeline == 1 and s.precision.compute == "bf16",
        message="zero=0 with compute: bf16 takes DeepSpeed's unfused optimizer, whose losses drift from fp32's",
        hint="set zero to 1 (the same memory at data=1), or compute to fp32",
    ),
    Row(
        code="deepspeed-interleaving",
        needs=("engine", "parallel"),
        path="parallel.virtual_stages",
        when=lambda s: _deepspeed(s) is not None and s.parallel.virtual_stages > 1,
        message="virtual_stages={s.parallel.virtual_stages}: DeepSpeed's pipeline engine has no interleaved schedule",
        hint="set virtual_stages to 1, or use kind: megatron",
    ),
    Row(
        code="deepspeed-sequence",
        needs=("engine", "parallel"),
        path="parallel.sequence",
        when=lambda s: _deepspeed(s) is not None and s.parallel.sequence,
        message="sequence: true: under DeepSpeed nothing sums the norms' gradients over the tensor parallel group",
        hint="set sequence to false, or use kind: megatron",
    ),
    Row(
        code="deepspeed-overlap-pipeline",
        needs=("engine", "parallel"),
        path="engine.overlap_comm",
        when=lambda s: (e := _deepspeed(s)) is not None and e.overlap_comm and s.parallel.pipeline > 1,
        message="overlap_comm: true does not go with pipeline={s.parallel.pipeline}: DeepSpeed's pipeline engine "
        "reduces gradients once, after the last micro-batch",
        hint="set overlap_comm to false, or pipeline to 1",
    ),
    Row(
        code="deepspeed-overlap-zero",
        needs=("engine", "parallel"),
        path="engine.overlap_comm",
        when=lambda s: (e := _deepspeed(s)) is not None and e.overlap_comm and e.zero == 0 and s.parallel.pipeline == 1,
        message="overlap_comm: true needs zero >= 1, and zero=0: without ZeRO, DeepSpeed reduces after the "
        "backward pass",
        hint="set zero to 1, 2 or 3, or overlap_comm to false",
    ),
    Row(
        code="deepspeed-offload-optimizer-zero",
        needs=("engine",),
        path="engine.offload_optimizer",
        when=lambda s: _offload(s, "optimizer") is not None and _zero(s) < 1,
        message="offload_optimizer needs zero >= 1, and zero={s.engine.zero}",
        hint="set zero to 1, 2 or 3, or remove offload_optimizer",
    ),
    Row(
        code="deepspeed-offload-parameters-zero",
        needs=("engine",),
        path="engine.offload_parameters",
        when=lambda s: _offload(s, "parameters") is not None and _zero(s) != 3,
        message="offload_parameters needs zero=3, and zero={s.engine.zero}",
        hint="set zero to 3, or remove offload_parameters",
    ),
    Row(
        code="deepspeed-offload-pipeline",
        needs=("engine", "parallel"),
        path="engine.offload_optimizer",
        when=lambda s: bool(_offloads(s)) and s.parallel.pipeline > 1,
        message="offloading does not go with pipeline={s.parallel.pipeline} under DeepSpeed",
        hint="set pipeline to 1, or remove the offload",
    ),
    Row(
        code="deepspeed-nvme-cpu",
        needs=("engine", "cluster"),
        path="engine",
        when=lambda s: s.cluster.device == "cpu" and any(o.device == "nvme" for o in _offloads(s)),
        message="offload to nvme needs device: cuda: DeepSpeed's asynchronous file access has no CPU build",
        hint="set the offload's device to cpu, or remove it",
    ),
    *(
        Row(
            code=f"deepspeed-nvme-path-{what}",
            needs=("engine",),
            path=f"engine.offload_{what}",
            when=lambda s, what=what: _nvme_path_missing(s, what),  # type: ignore[misc]
            message="device: nvme needs nvme_path, the folder for the files",
            hint="add nvme_path",
        )
        for what in ("optimizer", "parameters")
    ),
    *(
        Row(
            code=f"deepspeed-nvme-path-unused-{what}",
            needs=("engine",),
            path=f"engine.offload_{what}.nvme_path",
            when=lambda s, what=what: _nvme_path_unused(s, what),  # type: ignore[misc]
            message="nvme_path is given, but device is cpu",
            hint="set device to nvme, or remove nvme_path",
        )
        for what in ("optimizer", "parameters")
    ),
)

TABLE = (*MEGATRON, *DDP, *DEEPSPEED)
"""Every row."""


def _as_rule(row: Row) -> Rule:
    def check(spec: RunSpec) -> Iterator[Problem]:
        if row.when(spec):
            yield problem(row.path, row.message.format(s=spec), hint=row.hint, code=row.code)

    return Rule(row.needs, check)


RULES = tuple(_as_rule(row) for row in TABLE)
"""The table as rules."""
