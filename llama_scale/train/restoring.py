"""Loading a checkpoint of any layout into an engine, and the proof that what arrived is what was saved."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llama_scale.checkpoint.digest import piece_digest
from llama_scale.checkpoint.manifest import BaseRecord, Manifest, verify_files
from llama_scale.checkpoint.pieces import Piece
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.errors import CheckpointError
from llama_scale.layout.boxes import Box
from llama_scale.spec.model import ModelShape
from llama_scale.train.engine import Engine, LocalPiece
from llama_scale.train.frozen_base import check_extensions
from llama_scale.train.random_state import restore_rng
from llama_scale.train.saving import Ranks

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec

logger = logging.getLogger(__name__)

_NOT_IN_TENSORS = {"max_position_embeddings", "rope_theta", "rope_scaling", "rms_norm_eps"}


class PrecisionReader:
    """Serve a checkpoint of either precision to an engine of either.

    * fp32 checkpoint, bf16 engine: the masters are the fp32 weights; the weights are those rounded.
    * bf16 checkpoint, fp32 engine: the weights are the fp32 masters, so that nothing is lost.

    Args:
        reader: The checkpoint.
        halves: Names of the weights that the engine has in bf16, with fp32 masters of those that train.
    """

    def __init__(self, reader: CheckpointReader, *, halves: Collection[str]) -> None:
        self._reader = reader
        self._halves = halves
        self._masters = frozenset(reader.tensors("master"))

    def source(self, group: str, name: str) -> str:
        """Return the stored group that serves a tensor of ``group``."""
        if group == "master" and name not in self._masters:
            return "model"
        if group == "model" and name in self._masters and name not in self._halves:
            return "master"
        return group

    def tensors(self, group: str) -> Sequence[str]:
        """Name the tensors of a group."""
        if group == "master":
            return [name for name in self._reader.tensors("model") if name in self._halves]
        return self._reader.tensors(group)

    def read(self, group: str, name: str, box: Box | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return one box of a tensor; see ``CheckpointReader.read``."""
        return self._reader.read(self.source(group, name), name, box, out)

    def read_range(self, group: str, name: str, box: Box, *, start: int, numel: int) -> torch.Tensor:
        """Return a flat range of a box; see ``CheckpointReader.read_range``."""
        return self._reader.read_range(self.source(group, name), name, box, start=start, numel=numel)


def restore(
    folder: Path,
    engine: Engine,
    *,
    spec: RunSpec,
    plan: RunPlan,
    ranks: Ranks,
    optimizer: bool,
    base: BaseRecord | None = None,
) -> Manifest:
    """Verify a checkpoint (the ranks share the hashing), load it and check that the loaded state is the saved one.

    Args:
        folder: A complete checkpoint of any layout.
        engine: Filled in place.
        spec: The run that goes on.
        plan: Its plan.
        ranks: The ranks that load together.
        optimizer: Load optimizer state and random states, not only weights.
        base: What the engine has as its frozen base, where training goes on from a checkpoint of what trains on it.

    Raises:
        CheckpointError: The same on every rank: a file is damaged, the model is another one, optimizer state is
            missing, or what was loaded differs from what was saved.
    """
    reader: CheckpointReader | None = None
    error: str | None = None
    try:
        reader = CheckpointReader(folder)
        check_fit(reader.manifest, plan.shape, folder=folder, optimizer=optimizer)
        check_extensions(reader.manifest, spec, plan, folder=folder, base=base, optimizer=optimizer)
        verify_files(folder, shards=reader.manifest.shards[ranks.rank :: ranks.size])
    except CheckpointError as problem:
        error = str(problem)
    error = ranks.first_error(error)
    if error is not None or reader is None:
        raise CheckpointError(error or "no checkpoint was read")
    manifest = reader.manifest
    halves = _halves(spec, plan)
    served = PrecisionReader(reader, halves=halves)
    engine.load(served, optimizer=optimizer, step=manifest.optimizer_step if optimizer else 0)
    check_loaded(engine, reader, served, ranks=ranks, optimizer=optimizer, halves=halves)
    if optimizer and manifest.topology.model_dump() == _topology(plan):
        restore_rng(reader, rank=ranks.rank)
    reader.release()
    return manifest


def _halves(spec: RunSpec, plan: RunPlan) -> frozenset[str]:
    """Return the names of the weights that the engine has in bf16."""
    if spec.precision.compute != "bf16":
        return frozenset()
    # Where DeepSpeed trains a whole model in bf16, it casts the task heads too.
    everything = plan.engine == "deepspeed" and plan.base_trainable
    return frozenset(p.name for p in plan.all_parameters() if everything or p.owner == "base")


def _topology(plan: RunPlan) -> dict[str, object]:
    return {
        "dp_size": plan.topology.dp_size,
        "tp_size": plan.topology.tp_size,
        "pp_size": plan.topology.pp_size,
        "stages": tuple(tuple(chunk.layers for chunk in stage) for stage in plan.stages),
    }


def check_fit(manifest: Manifest, shape: ModelShape, *, folder: Path, optimizer: bool) -> None:
    """Refuse a checkpoint that cannot be loaded into a model of this shape.

    Args:
        manifest: The checkpoint.
        shape: The model's numbers.
        folder: Named in messages.
        optimizer: Training goes on from it, so every number must agree; a warm start may change those that are in
            no tensor's shape (RoPE, norm epsilon, context length).

    Raises:
        CheckpointError: Numbers differ (each is named), or optimizer state is missing.
    """
    saved, wanted = manifest.shape.model_dump(), shape.model_dump()
    ignored = set() if optimizer else _NOT_IN_TENSORS
    wrong = [f"{key}: {saved[key]} saved, {wanted[key]} wanted" for key in wanted if saved[key] != wanted[key]]
    wrong = [text for text in wrong if text.partition(":")[0] not in ignored]
    if wrong:
        raise CheckpointError(f"checkpoint {folder} is of another model ({'; '.join(wrong)}); restore these numbers")
    if optimizer and not manifest.tensors.get("exp_avg"):
        raise CheckpointError(
            f"checkpoint {folder} holds no optimizer state (checkpoint.save_optimizer: false, or an import), so no run "
            "can go on from it; start a new run with model.init_from set to it"
        )


def check_loaded(
    engine: Engine,
    reader: CheckpointReader,
    served: PrecisionReader,
    *,
    ranks: Ranks,
    optimizer: bool,
    halves: Collection[str],
) -> None:
    """Compare digests of what the engine now holds with those of what was saved; independent of layout.

    Args:
        engine: After loading.
        reader: The checkpoint.
        served: The view of it that was loaded.
        ranks: All ranks; their shares are added up.
        optimizer: Compare masters and moments too.
        halves: Weights that the engine has in bf16; a tensor stored in another format than the engine's was converted
            and is not compared.

    Raises:
        CheckpointError: A tensor differs or did not arrive.
    """
    shares: dict[tuple[str, str], int] = {}
    for pieces in (engine.model_pieces(frozen=not optimizer), *((engine.optimizer_pieces(),) if optimizer else ())):
        for piece in pieces:
            if piece.primary and piece.tensor.numel():
                ident = (piece.group, piece.name)
                shares[ident] = shares.get(ident, 0) + piece_digest(piece.tensor, _described(piece))
    groups = ("model", "master", "exp_avg", "exp_avg_sq") if optimizer else ("model",)
    rows = [(group, name) for group in groups for name in served.tensors(group)]
    signed = [_signed(shares.get(row, 0)) for row in rows]
    sums = ranks.sum_int64(torch.tensor(signed, dtype=torch.int64)).tolist()
    for (group, name), total in zip(rows, sums, strict=True):
        entry = reader.entry(served.source(group, name), name)
        if entry.dtype != ("bfloat16" if group == "model" and name in halves else "float32"):
            continue  # converted on the way in: its bits differ by design
        if f"{total % (1 << 64):016x}" != entry.digest:
            raise CheckpointError(
                f"{group}/{name} differs after loading {reader.folder}: digest {total % (1 << 64):016x}, saved "
                f"{entry.digest}; this is a fault of llama-scale or of the machine's memory: do not go on from here"
            )


def _described(piece: LocalPiece) -> Piece:
    return Piece(
        group=piece.group, name=piece.name, box=piece.box, flat_start=piece.flat_start, numel=piece.tensor.numel()
    )


def _signed(value: int) -> int:
    """Return the two's complement int64 of a number mod 2^64."""
    return ((value + (1 << 63)) % (1 << 64)) - (1 << 63)
