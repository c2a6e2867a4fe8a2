"""Checkpoints of a run in training: when they are made, and how a run goes on from one, on any layout.

    checkpointer = Checkpointer(run / "checkpoints", spec=spec, plan=plan)
    position = checkpointer.resume(engine) or Position(step=0, samples=0)
    ...
    checkpointer.save(engine, position)                 # every_steps: in the background if so configured
    checkpointer.save(engine, position, final=True)     # last step, or stop: returns when it is on the disk
    checkpointer.close()

All methods are collective: every rank calls them in the same order.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_scale.checkpoint.manifest import Manifest, checkpoint_name, newest_complete
from llama_scale.checkpoint.retention import clean_unfinished, temporary_folder
from llama_scale.errors import CheckpointError
from llama_scale.train.engine import Engine, LocalPiece
from llama_scale.train.frozen_base import base_record, extension_record
from llama_scale.train.random_state import rng_pieces
from llama_scale.train.restoring import restore
from llama_scale.train.saving import BackgroundSave, HostBuffers, Ranks, SaveRequest, write_checkpoint
from llama_scale.train.starting import find_start

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where training stands.

    Args:
        step: Steps done (skipped updates count).
        samples: Samples consumed.
        schedule: State of the learning rate schedule, if it has any beyond the step.
        metrics: Kept in the manifest; ``validation_loss`` decides what ``keep_best`` keeps.
    """

    step: int
    samples: int
    schedule: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)


class Checkpointer:
    """Save and restore a run's state in one folder.

    A periodic save that fails is logged as an error and training goes on with the last good checkpoint; the next
    one is tried as usual. A final save that fails raises. Making the object removes what killed saves left behind,
    so only one run may use a folder.

    Args:
        root: The run's folder of checkpoints; made at the first save.
        spec: The run's spec (section ``checkpoint``, seed, precision).
        plan: Its plan.
        run_dir: Its folder, which says what it starts from; None: its spec says so.
    """

    def __init__(self, root: Path, *, spec: RunSpec, plan: RunPlan, run_dir: Path | None = None) -> None:
        self.root = Path(root)
        self._spec = spec
        self._plan = plan
        self._ranks = Ranks()
        self._token = self._ranks.from_first(lambda: os.urandom(4).hex())
        self._buffers = HostBuffers()
        self._pending: BackgroundSave | None = None
        self.start = self._ranks.from_first(lambda: find_start(spec, run_dir))
        """What the run starts from."""
        self._base = self._ranks.from_first(lambda: base_record(spec, plan, start=self.start))
        self.started_from: Path | None = None
        """Checkpoint whose weights, or the last of those whose weights, were loaded before the first step."""
        self.saved_step: int | None = None
        """Step of the newest checkpoint known to be complete."""
        for folder in self._ranks.from_first(lambda: clean_unfinished(self.root)):
            logger.info("removed what an earlier attempt left: %s", folder.name)

    def save(self, engine: Engine, position: Position, *, final: bool = False) -> float:
        """Save everything the run needs to go on from here.

        Args:
            engine: Its pieces are copied (background) or written before this returns.
            position: Where training stands.
            final: Return only when the checkpoint is on the disk, and raise if it cannot be.

        Returns:
            Seconds for which training stood still.

        Raises:
            CheckpointError: With ``final``: the checkpoint could not be written (disk full, no permission, ...).
        """
        started = time.monotonic()
        self.wait()
        if self.saved_step == position.step:
            return time.monotonic() - started
        request = self._request(engine, position)
        pieces = self._pieces(engine)
        if self._spec.checkpoint.asynchronous and not final:
            self._pending = BackgroundSave(request, self._buffers.snapshot(pieces), self._ranks)
        else:
            problem = write_checkpoint(request, pieces, self._ranks)
            self._note(request, problem)
            if problem is not None and final:
                raise CheckpointError(problem)
        return time.monotonic() - started

    def wait(self) -> bool:
        """Wait for the save in the background, if any; False if it failed (its reason is logged)."""
        if self._pending is None:
            return True
        pending, self._pending = self._pending, None
        return self._note(pending.request, pending.wait())

    def resume(self, engine: Engine) -> Position | None:
        """Load the newest complete checkpoint, whatever layout wrote it: weights, optimizer and position.

        A frozen base, which no checkpoint of the run holds, is loaded first.

        Returns:
            Where training stood, or None if there is no complete checkpoint.

        Raises:
            CheckpointError: The checkpoint is damaged, of another model, or was saved without optimizer state.
        """
        folder = self._ranks.from_first(lambda: newest_complete(self.root))
        manifest = None
        if self._base is not None and self._base.path is not None:
            self.init_from(engine, Path(self._base.path))
        if folder is not None:
            manifest = self._restore(folder, engine, optimizer=True)
        if self._spec.checkpoint.asynchronous:
            self._buffers.reserve(self._pieces(engine))
        if manifest is None:
            return None
        self.saved_step = manifest.step
        return Position(
            step=manifest.step, samples=manifest.samples, schedule=manifest.schedule, metrics=manifest.metrics
        )

    def init_from(self, engine: Engine, folder: Path) -> None:
        """Load only the weights of a checkpoint (of a run or of ``convert import``): a warm start, or a frozen base.

        Raises:
            CheckpointError: It is damaged, incomplete or of another model.
        """
        self._restore(Path(folder), engine, optimizer=False)
        self.started_from = Path(folder)

    def warm_start(self, engine: Engine) -> bool:
        """Start from the weights that the spec names: a whole model, or adapters whose base ``resume`` has loaded.

        Returns:
            Whether there was anything to load.

        Raises:
            CheckpointError: See ``init_from``.
        """
        start = self.start
        folder = start.adapters
        if folder is None and self._plan.base_trainable and start.record.kind != "seed":
            folder = start.folder or Path(start.record.weights or start.record.path or "")
        if folder is None:
            return False  # a frozen base is there already
        self.init_from(engine, folder)
        return True

    def close(self) -> bool:
        """Wait for the save in the background and give the process group back; False if that save failed."""
        good = self.wait()
        self._ranks.close()
        return good

    def _restore(self, folder: Path, engine: Engine, *, optimizer: bool) -> Manifest:
        spec, plan = self._spec, self._plan
        return restore(folder, engine, spec=spec, plan=plan, ranks=self._ranks, optimizer=optimizer, base=self._base)

    def _note(self, request: SaveRequest, problem: str | None) -> bool:
        if problem is None:
            self.saved_step = request.facts["step"]
            return True
        if self._ranks.rank == 0:
            last = "none is complete yet" if self.saved_step is None else f"the last good one is step {self.saved_step}"
            logger.error("checkpoint of step %d was NOT saved (%s): %s", request.facts["step"], last, problem)
        return False

    def _pieces(self, engine: Engine) -> Iterator[LocalPiece]:
        sources = [engine.model_pieces(), rng_pieces(self._ranks.rank)]
        if self._spec.checkpoint.save_optimizer:
            sources.append(engine.optimizer_pieces())
        for source in sources:
            for piece in source:
                if piece.primary and piece.tensor.numel():
                    yield piece

    def _request(self, engine: Engine, position: Position) -> SaveRequest:
        final = self.root / checkpoint_name(position.step)
        plan = self._plan
        return SaveRequest(
            final=final,
            tmp=temporary_folder(final, token=self._token),
            keep_last=self._spec.checkpoint.keep_last,
            keep_best=self._spec.checkpoint.keep_best,
            facts={
                "step": position.step,
                "optimizer_step": engine.step,
                "samples": position.samples,
                "spec_digest": plan.spec_digest,
                "engine": plan.engine,
                "topology": {
                    "dp_size": plan.topology.dp_size,
                    "tp_size": plan.topology.tp_size,
                    "pp_size": plan.topology.pp_size,
                    "stages": tuple(tuple(chunk.layers for chunk in stage) for stage in plan.stages),
                },
                "shape": plan.shape,
                "vocab_pad_multiple": plan.vocab_pad_multiple,
                "base": self._base,
                "started_from": self.start.record,
                "extensions": extension_record(self._spec),
                "rng": {"seed": self._spec.seed},
                "schedule": dict(position.schedule),
                "metrics": dict(position.metrics),
            },
        )
