"""Read what DeepSpeed's own ``save_checkpoint`` writes for the models of this package, and make a checkpoint of it.

Three layouts, each with a reader class: replicated weights (ZeRO 0 to 2), divided weights (ZeRO 3), pipeline stages.
Runs of llama-scale save another format under every engine; this is for folders that scripts around DeepSpeed wrote.
Files are read with ``weights_only``: nothing in them is executed.
"""

from __future__ import annotations

import functools
import math
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from llama_scale.checkpoint.manifest import Manifest
from llama_scale.checkpoint.pieces import Piece
from llama_scale.checkpoint.writer import ShardWriter, build_manifest, check_free_space, commit
from llama_scale.convert.folders import ORIGIN, check_target, checkpoint_faults, new_folder
from llama_scale.convert.origin import Origin, write_origin
from llama_scale.convert.shards import Layout, check_layout, topology_record
from llama_scale.errors import ConvertError
from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import HEAD, Parameter, iter_parameters, local_box
from llama_scale.spec.model import ModelShape

Weights = dict[str, torch.Tensor]
"""Name in the table of logical parameters -> one tensor parallel rank's tensor, padding included."""

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


class Inert:
    """Stand in for the objects of DeepSpeed that lie in a file beside the tensors."""

    def __init__(self, *_: object) -> None:
        """Take whatever the original took, and keep nothing."""


_OBJECTS = (
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


class Reader(Protocol):
    """One way in which DeepSpeed lays weights out."""

    def __init__(self, folder: Path) -> None: ...

    @property
    def tp_size(self) -> int:
        """Tensor parallel ranks that wrote."""
        ...

    def weights(self, tp_rank: int) -> Weights:
        """Return all weights of one tensor parallel rank."""
        ...


class ReplicatedReader:
    """ZeRO 0 to 2: ``mp_rank_TT_model_states.pt`` holds all weights of a tensor parallel rank."""

    pattern = re.compile(r"mp_rank_(\d+)_model_states\.pt")

    def __init__(self, folder: Path) -> None:
        self._files = _numbered(folder, self.pattern)
        self.tp_size = len(self._files)

    def weights(self, tp_rank: int) -> Weights:
        """See ``Reader.weights``."""
        return _tensors(_load(self._files[(tp_rank,)])["module"])


class DividedReader:
    """ZeRO 3: flat fp32 ranges in ``zero_pp_rank_D_mp_rank_TT_optim_states.pt``, shapes in ``..._model_states.pt``."""

    pattern = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
    _states = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")

    def __init__(self, folder: Path) -> None:
        self._models = _numbered(folder, self.pattern)
        self._optimizers = _numbered(folder, self._states)
        if self._models.keys() != self._optimizers.keys():
            raise ConvertError(f"{folder} is incomplete: not every rank has its model_states and its optim_states file")
        self.tp_size = len({tp for _, tp in self._models})
        self._dp_size = len({dp for dp, _ in self._models})

    def weights(self, tp_rank: int) -> Weights:
        """See ``Reader.weights``."""
        model = _load(self._models[0, tp_rank])
        ranks = [_load(self._optimizers[dp, tp_rank])["optimizer_state_dict"] for dp in range(self._dp_size)]
        flats = [torch.cat([group.reshape(-1) for group in state["fp32_flat_groups"]]) for state in ranks]
        found: Weights = {}
        offset = 0
        for name, shape in ((name, shape) for group in model["param_shapes"] for name, shape in group.items()):
            numel = math.prod(shape)
            each = -(-numel // self._dp_size)
            parts = [flat[offset : offset + each] for flat in flats]
            found[name] = torch.cat(parts)[:numel].view(tuple(shape))
            offset += each
        return found


class PipelineReader:
    """Pipeline: ``layer_SS-model_TT-model_states.pt`` holds stage SS, for this package gives one "layer" a stage."""

    pattern = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")

    def __init__(self, folder: Path) -> None:
        self._files = _numbered(folder, self.pattern)
        self.tp_size = len({tp for _, tp in self._files})
        self._stages = sorted({stage for stage, _ in self._files})

    def weights(self, tp_rank: int) -> Weights:
        """See ``Reader.weights``; layers are numbered through the stages."""
        found: Weights = {}
        first = 0
        for stage in self._stages:
            tensors = _tensors(_load(self._files[stage, tp_rank]))
            numbers = {int(match[1]) for name in tensors if (match := _LAYER.fullmatch(name))}
            for name, tensor in tensors.items():
                match = _LAYER.fullmatch(name)
                found[f"decoder.layers.{first + int(match[1])}.{match[2]}" if match else name] = tensor
            first += len(numbers)
        return found


READERS: tuple[type[PipelineReader | DividedReader | ReplicatedReader], ...] = (
    PipelineReader,
    DividedReader,
    ReplicatedReader,
)
"""In this order: a pipeline's folder has ``mp_rank`` files, too, without weights."""


def open_folder(path: Path) -> Reader:
    """Return the reader of a folder, or of the tag in it that ``latest`` names.

    Raises:
        ConvertError: It is none of DeepSpeed's, or files are missing.
    """
    latest = path / "latest"
    folder = path / latest.read_text(encoding="utf-8").strip() if latest.is_file() else path
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    for reader in READERS:
        if any(reader.pattern.fullmatch(name) for name in names):
            return reader(folder)
    raise ConvertError(f"{folder} is no checkpoint of DeepSpeed: it has no mp_rank_*, zero_pp_rank_* or layer_* files")


@checkpoint_faults()
def import_deepspeed(
    source: Path, target: Path, *, shape: ModelShape, vocab_pad_multiple: int, origin: Origin | None = None
) -> Manifest:
    """Write the weights of a DeepSpeed folder as a checkpoint (step 0, no optimizer state).

    Args:
        source: ``global_stepN`` or the folder above it.
        target: New checkpoint folder.
        shape: The model that was trained.
        vocab_pad_multiple: As in its spec: says where the rows of the ranks' vocabulary begin.
        origin: What came with the model; None: nothing is known.

    Raises:
        ConvertError: Files are missing or damaged, or the model is another one.
    """
    check_target(target)
    reader = open_folder(source)
    layout = Layout(vocab_pad_multiple=vocab_pad_multiple)
    ranks = [reader.weights(tp_rank) for tp_rank in range(reader.tp_size)]
    table = list(iter_parameters(shape))
    for weights in ranks:
        _check_names(weights, table, tied=shape.tie_word_embeddings, source=source)
    tensors = {p.name: _assemble(p, ranks, vocab_pad_multiple=vocab_pad_multiple, source=source) for p in table}
    with new_folder(target) as tmp:
        check_free_space(tmp, needed_bytes=[sum(t.numel() * t.element_size() for t in tensors.values())])
        writer = ShardWriter(tmp / "shard-00000.safetensors")
        for parameter in table:
            box = Box.whole(parameter.shape)
            piece = Piece(group="model", name=parameter.name, box=box, flat_start=None, numel=box.numel)
            load = functools.partial(tensors.__getitem__, parameter.name)
            dtype = tensors[parameter.name].dtype
            writer.add_lazy(piece, global_shape=parameter.shape, dtype=dtype, load=load)
        manifest = build_manifest(
            [writer.finish()],
            step=0,
            samples=0,
            engine="import",
            topology=topology_record(layout, check_layout(shape, layout)),
            shape=shape,
            vocab_pad_multiple=vocab_pad_multiple,
        )
        if origin is not None:
            (tmp / ORIGIN).mkdir()
            write_origin(origin, tmp / ORIGIN)
        commit(tmp, target, manifest)
    return manifest


def _assemble(parameter: Parameter, ranks: list[Weights], *, vocab_pad_multiple: int, source: Path) -> torch.Tensor:
    whole = torch.empty(parameter.shape, dtype=ranks[0][parameter.name].dtype)
    for tp_rank, weights in enumerate(ranks):
        box = local_box(parameter, tp_rank=tp_rank, tp_size=len(ranks), vocab_pad_multiple=vocab_pad_multiple)
        local = weights[parameter.name].reshape(-1)
        padded = parameter.place in ("embedding", "head")
        if local.numel() < box.numel or (local.numel() != box.numel and not padded):
            raise ConvertError(
                f"{source}: {parameter.name} has {local.numel()} elements on tensor parallel rank {tp_rank} of "
                f"{len(ranks)}, the model has {box.numel} there; give the spec that it was trained with"
            )
        whole[box.slices_within(Box.whole(parameter.shape))] = local[: box.numel].view(box.shape)
    return whole


def _check_names(weights: Weights, table: list[Parameter], *, tied: bool, source: Path) -> None:
    if tied:
        weights.pop(HEAD, None)  # the last stage's copy of EMBEDDING
    wanted = {p.name for p in table}
    missing, unknown = sorted(wanted - weights.keys()), sorted(weights.keys() - wanted)
    if missing or unknown:
        texts = [
            f"{what}: {', '.join(names[:3])}" for what, names in (("missing", missing), ("unknown", unknown)) if names
        ]
        raise ConvertError(f"{source} is of another model ({'; '.join(texts)}); give the spec that it was trained with")


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[Any, Path]:
    """Return (numbers in the name) -> file.

    Raises:
        ConvertError: There are gaps.
    """
    found = {tuple(map(int, m.groups())): p for p in folder.iterdir() if (m := pattern.fullmatch(p.name))}
    sizes = [max(column) + 1 for column in zip(*found, strict=True)]
    if len(found) != math.prod(sizes):
        raise ConvertError(
            f"{folder} is incomplete: {len(found)} of {math.prod(sizes)} files {pattern.pattern} are there; copy all"
        )
    return found


def _load(path: Path) -> dict[str, Any]:
    """Return a file's content without executing any of it."""
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in _OBJECTS]):
            content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ConvertError(f"{path} cannot be read: {reason}; copy it again from where it was saved") from error
    return content


def _tensors(state: dict[str, Any]) -> Weights:
    """Return a module's tensors by the table's names: without wrappers' prefixes and Megatron-Core's empty extras."""
    return dict(_named(state))


def _named(state: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            yield name.removeprefix("module.").removeprefix("chunk."), tensor
