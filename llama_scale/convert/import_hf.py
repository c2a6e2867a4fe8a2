"""Import: a Hugging Face folder becomes a checkpoint of any layout, one tensor in memory at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from llama_scale.checkpoint.bases import source_digest
from llama_scale.checkpoint.manifest import Manifest
from llama_scale.checkpoint.pieces import Piece
from llama_scale.checkpoint.writer import ShardWriter, WrittenShard, build_manifest, publish, seal
from llama_scale.convert.folders import (
    REPORT,
    Progress,
    Proof,
    Silence,
    check_space,
    check_target,
    checkpoint_faults,
    keep_origin,
    new_folder,
    write_json,
)
from llama_scale.convert.hf_config import read_shape
from llama_scale.convert.hf_weights import HfWeights, tensor_sha256
from llama_scale.convert.inventory import check_inventory, choose_dtype
from llama_scale.convert.ledger import Ledger
from llama_scale.convert.mapping import hf_tensors, slices_of
from llama_scale.convert.shards import Layout, check_layout, padding_rows, shard_parts, topology_record
from llama_scale.convert.threads import finish_shards, shards_at_once
from llama_scale.errors import ConvertError
from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import Parameter, iter_parameters
from llama_scale.spec.model import ModelShape

_BASE_BYTES = 400 << 20  # Python, torch and their libraries


@checkpoint_faults()
def import_hf(
    source: Path,
    target: Path,
    *,
    layout: Layout,
    dtype: str | None = None,
    max_ram_bytes: int | None = None,
    proof: Proof | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the weights of a Hugging Face folder as a checkpoint (step 0, no optimizer state).

    Args:
        source: Folder with config.json and safetensors.
        target: New checkpoint folder; it appears when everything is written and checked.
        layout: How the tensors are cut into shards. Any layout reads any checkpoint; its own reads it fastest.
        dtype: ``fp32`` or ``bf16``; None keeps the files'.
        max_ram_bytes: Refuse before starting if more memory may be needed.
        proof: Is called before the folder appears, see ``import_proof``; what it returns goes into report.json.
        progress: Is told of the bytes written.

    Raises:
        ConvertError: The folder is no LLaMA that can be converted (see ``read_shape``, ``HfWeights``), a tensor
            is missing, unknown or of another shape, the layout does not divide the model, or writing or the proof
            failed.
    """
    check_target(target)
    shape = read_shape(source)
    weights = HfWeights(source)
    stages = check_layout(shape, layout)
    ignored = check_inventory(weights, shape)
    chosen = choose_dtype(weights, shape, dtype)
    ledger = Ledger(
        sources={name: tensor.shape for name, tensor in hf_tensors(shape).items()},
        targets={p.name: p.shape for p in iter_parameters(shape)},
    )
    for name, reason in ignored.items():
        ledger.ignore(name, reason)
    parts = list(shard_parts(shape, layout, stages))
    at_once = _check_ram(parts, dtype=chosen, limit=max_ram_bytes)
    total = sum(box.numel for rank in parts for _, box in rank) * chosen.itemsize
    reporter = progress or Silence()
    reporter.start("importing", total)
    with new_folder(target) as tmp:
        check_space(tmp, needed=total)
        with _Copier(weights, shape=shape, dtype=chosen, ledger=ledger, progress=reporter) as copier:
            written = _write_shards(parts, tmp, copier=copier, dtype=chosen, at_once=at_once)
        manifest = build_manifest(
            written,
            step=0,
            samples=0,
            engine="import",
            topology=topology_record(layout, stages),
            shape=shape,
            vocab_pad_multiple=layout.vocab_pad_multiple,
        )
        ledger.balance()
        for name, entry in manifest.tensors["model"].items():
            ledger.digest_target(name, f"piecewise:{entry.digest}")
        keep_origin(source, tmp)
        facts = {"kind": "import", "source": str(source), "source_digest": source_digest(source)}
        facts |= {"dtype": str(chosen).removeprefix("torch.")}
        degrees = {"tensor": layout.tp_size, "pipeline": layout.pp_size, "virtual": layout.vp_size}
        padding = {"layout": degrees, "padding_rows_in_memory": padding_rows(shape, layout)}
        seal(tmp, manifest)
        verified = {} if proof is None else {"verify": proof(tmp)}
        write_json(tmp / REPORT, facts | padding | ledger.report() | verified)
        publish(tmp, target)
    return manifest


def _write_shards(
    parts: list[list[tuple[Parameter, Box]]], folder: Path, *, copier: _Copier, dtype: torch.dtype, at_once: int
) -> list[WrittenShard]:
    writers = []
    for rank, rows in enumerate(parts):
        writer = ShardWriter(folder / f"shard-{rank:05d}.safetensors")
        for parameter, box in rows:
            piece = Piece(group="model", name=parameter.name, box=box, flat_start=None, numel=box.numel)
            writer.add_lazy(piece, global_shape=parameter.shape, dtype=dtype, load=copier.loader(parameter, box))
        writers.append(writer)
    return finish_shards(writers, at_once=at_once)


def _check_ram(parts: list[list[tuple[Parameter, Box]]], *, dtype: torch.dtype, limit: int | None) -> int:
    """Return how many shards to write beside each other."""
    largest, parameter = max(((box.numel, p) for rank in parts for p, box in rank), key=lambda row: row[0])
    # A piece, the pages of its source while it is copied, and one more copy where the element type changes.
    piece_bytes = 3 * largest * max(dtype.itemsize, 4)
    at_once = shards_at_once(piece_bytes)
    if limit is not None and _BASE_BYTES + at_once * piece_bytes > limit:
        at_once = 1
    needed = _BASE_BYTES + at_once * piece_bytes
    if limit is not None and needed > limit:
        raise ConvertError(
            f"up to {needed / 1e9:.2f} GB of memory may be needed for {parameter.name}, --max-ram allows "
            f"{limit / 1e9:.2f}; allow more, or use a larger --tensor, which cuts it into smaller pieces"
        )
    return at_once


class _Copier:
    """Cut pieces out of the source and enter each copy in the ledger; several threads may load at once.

    Each source is hashed once, by a thread of its own; leaving the block enters the digests.
    """

    def __init__(
        self, weights: HfWeights, *, shape: ModelShape, dtype: torch.dtype, ledger: Ledger, progress: Progress
    ) -> None:
        self._weights = weights
        self._shape = shape
        self._dtype = dtype
        self._ledger = ledger
        self._progress = progress
        self._lock = threading.Lock()
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="sources")
        self._digests: dict[str, Future[str]] = {}
        self._mapped: set[str] = set()

    def __enter__(self) -> _Copier:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._hasher.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for name, digest in self._digests.items():
                self._ledger.digest_source(name, f"sha256:{digest.result()}")

    def loader(self, parameter: Parameter, box: Box) -> Callable[[], torch.Tensor]:
        """Return the function that makes one piece when its turn to be written comes."""
        return lambda: self._load(parameter, box)

    def _load(self, parameter: Parameter, box: Box) -> torch.Tensor:
        self._release()
        out: torch.Tensor | None = None
        for whole in slices_of(parameter, self._shape):
            part = whole.within(box)
            if part is None:
                continue
            source = self._source(part.hf_name)[part.hf_box.slices_within(Box.whole(self._weights.shape(part.hf_name)))]
            with self._lock:
                self._ledger.copy(
                    source=part.hf_name, source_box=part.hf_box, target=parameter.name, target_box=part.native_box
                )
            if part.native_box == box and source.dtype == self._dtype and source.is_contiguous():
                out = source.view(box.shape)  # the file's own pages: no copy
                break
            if out is None:
                out = torch.empty(box.shape, dtype=self._dtype)
            out[part.native_box.slices_within(box)] = source
        assert out is not None
        self._progress.advance(out.numel() * out.element_size())
        return out

    def _source(self, name: str) -> torch.Tensor:
        tensor = self._weights.map(name)
        with self._lock:
            self._mapped.add(name)
            if name not in self._digests:
                self._digests[name] = self._hasher.submit(tensor_sha256, tensor)
        return tensor

    def _release(self) -> None:
        """Drop the pages of the pieces before; one that another thread still reads comes back by itself."""
        with self._lock:
            done, self._mapped = self._mapped, set()
        for name in done:
            self._weights.release(name)
