"""All weights of a checkpoint's model, wherever they are: its own, those of its frozen base, or drawn from the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from llama_scale.checkpoint.bases import BASES, bases_in
from llama_scale.checkpoint.initial import fill, standard_deviation
from llama_scale.checkpoint.manifest import Manifest
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.convert.folders import find_checkpoint, run_of
from llama_scale.convert.ledger import Ledger
from llama_scale.convert.mapping import HfTensor
from llama_scale.convert.shards import Layout, even_stage_layers
from llama_scale.convert.start import find_weights
from llama_scale.errors import ConvertError, SpecError
from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import Parameter, iter_parameters
from llama_scale.plan.extensions import extra_parameters
from llama_scale.spec.model import ModelShape
from llama_scale.spec.start_folder import is_hf_folder


class Weights:
    """Read any tensor of a checkpoint's model.

    Attributes:
        folder: The checkpoint.
        manifest: Its manifest.
        shape: The model's numbers.
        extra: What adapters, heads and the mixture add to the base's table, by name.
        base: The weights of the frozen base, if they are in another checkpoint.

    Args:
        folder: A complete checkpoint.
        base: Where its frozen base is now; default: where it was.
        verify: See ``CheckpointReader``.

    Raises:
        CheckpointError: The checkpoint or its base is damaged.
        ConvertError: The base is gone or another one, or the checkpoint holds other tensors than its model has.
        PluginError: What an adapter, head or gate needs is not installed.
    """

    def __init__(self, folder: Path, *, base: Path | None = None, verify: Literal["sizes", "hashes"] = "sizes") -> None:
        self.folder = Path(folder)
        self._reader = CheckpointReader(self.folder, verify=verify)
        self.manifest = self._reader.manifest
        self.shape: ModelShape = self.manifest.shape
        self.extra = {p.name: p for p in self._extra()}
        self._table = {p.name: p for p in iter_parameters(self.shape)} | self.extra
        self.base: Weights | None = None
        record = self.manifest.base
        if record is None and base is not None:
            raise ConvertError(f"--base {base} is given, but {folder} holds its base itself; leave it out")
        if record is not None and record.kind == "checkpoint":
            self.base = _open_base(self.folder, self.manifest, moved=base, verify=verify)
        self._check_names()

    @property
    def base_facts(self) -> dict[str, Any] | None:
        """What exports say of what training started from: what the spec calls it and its digest; no path of here."""
        start, base = self.manifest.started_from, self.manifest.base
        if base is not None and base.kind == "seed":
            return {"name": None, "seed": base.seed, "init_std": base.init_std}
        if start is not None and start.kind != "seed":
            return {"name": start.name, "digest": start.digest}
        return None if base is None else {"name": None, "digest": base.parameter_digest}

    @property
    def base_name(self) -> str | None:
        """What the spec calls the folder that training started from."""
        return None if self.base_facts is None else self.base_facts["name"]

    def _extra(self) -> tuple[Parameter, ...]:
        record = self.manifest.extensions
        try:
            return () if record is None else extra_parameters(record, self.shape)
        except SpecError as error:
            raise ConvertError(f"checkpoint {self.folder}: {error}") from error

    def _check_names(self) -> None:
        """Refuse a checkpoint that holds other tensors than its shape and its extensions say."""
        held = set(self._reader.tensors("model"))
        frozen = {p.name for p in self._table.values() if (p.owner == "base" and self._is_frozen) or not p.trainable}
        wanted = set(self._table) - frozen
        for names, word in ((wanted - held, "lacks"), (held - wanted - frozen, "holds besides the model's")):
            if names:
                raise ConvertError(f"checkpoint {self.folder} {word} model/{min(names)} ({len(names)} such tensors)")

    @property
    def _is_frozen(self) -> bool:
        return self.manifest.base is not None

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the base's weights as training used them.

        Raises:
            ConvertError: The checkpoint holds the base in several types.
        """
        record = self.manifest.base
        if record is not None:
            return _torch(record.dtype)
        found = {e.dtype for name, e in self.manifest.tensors.get("model", {}).items() if name not in self.extra}
        if len(found) != 1:
            what = f"weights of the types {', '.join(sorted(found))}" if found else "no weights"
            raise ConvertError(f"the checkpoint of step {self.manifest.step} holds {what}; choose --dtype fp32 or bf16")
        return _torch(found.pop())

    def group(self, name: str, dtype: torch.dtype) -> str:
        """Return the group that this element type is read from: fp32 masters where there are some to be had."""
        masters = self.manifest.tensors.get("master", {})
        return "master" if dtype == torch.float32 and name in masters else "model"

    def read(self, name: str, box: Box | None = None, *, out: torch.Tensor) -> torch.Tensor:
        """Fill ``out`` with a box of a tensor (default: all of it), in ``out``'s element type, and return it.

        A base that was frozen in bf16 is rounded to it on the way, since that is the model that was trained.
        """
        parameter = self._table[name]
        box = Box.whole(parameter.shape) if box is None else box
        record = self.manifest.base
        if name in self._reader.tensors("model"):
            return self._reader.read(self.group(name, out.dtype), name, box, out=out)
        used = torch.float32 if record is None or parameter.owner != "base" else _torch(record.dtype)
        exact = out if used in (out.dtype, torch.float32) else torch.empty(box.shape, dtype=used)
        if parameter.owner == "base" and self.base is not None:
            self.base.read(name, box, out=exact)
        else:
            seed, std = self._start(parameter)
            fill(exact, parameter, box, seed=seed, std=std)
        return exact if exact is out else out.copy_(exact)

    def _start(self, parameter: Parameter) -> tuple[int, float]:
        """Return seed and standard deviation of a parameter that is as it was drawn."""
        record, extensions = self.manifest.base, self.manifest.extensions
        if parameter.owner == "base":
            assert record is not None and record.seed is not None and record.init_std is not None
            seed, init_std = record.seed, record.init_std
        else:
            assert extensions is not None
            seed, init_std = extensions.seed, 0.0
        return seed, standard_deviation(parameter, std=init_std, num_layers=self.shape.num_layers)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor in fp32."""
        return self.read(name, out=torch.empty(self._table[name].shape))

    def hf_tensor(self, tensor: HfTensor, *, dtype: torch.dtype, ledger: Ledger | None = None) -> torch.Tensor:
        """Return a Hugging Face tensor of the base, each copy entered in the ledger."""
        out = torch.empty(tensor.shape, dtype=dtype)
        for part in tensor.slices:
            box = part.native_box
            place = out[part.hf_box.slices_within(Box.whole(tensor.shape))].view(box.shape)
            self.read(part.native_name, box, out=place)
            if ledger is not None:
                ledger.copy(source=part.native_name, source_box=box, target=tensor.name, target_box=part.hf_box)
        return out

    def digest(self, name: str, dtype: torch.dtype) -> str:
        """Return the digest of a stored tensor for the ledger, or what it was drawn from."""
        if name in self._reader.tensors("model"):
            return f"piecewise:{self._reader.entry(self.group(name, dtype), name).digest}"
        if self._table[name].owner == "base" and self.base is not None:
            return self.base.digest(name, dtype)
        return f"seed:{self._start(self._table[name])[0]}"

    def release(self) -> None:
        """Let the kernel drop the pages read so far."""
        self._reader.release()
        if self.base is not None:
            self.base.release()


def _torch(dtype: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype)
    return found


def _open_base(folder: Path, manifest: Manifest, *, moved: Path | None, verify: Literal["sizes", "hashes"]) -> Weights:
    """Open the frozen base of a checkpoint."""
    record = manifest.base
    assert record is not None
    place = _place_of_base(folder, manifest) if moved is None else moved
    if is_hf_folder(place):
        place = _imported(place, folder, manifest)
    base = Weights(find_checkpoint(place), verify=verify)
    if record.parameter_digest not in (None, base.manifest.parameter_digest):
        raise ConvertError(
            f"{moved or place} is not the base of checkpoint {folder}: its weights have the digest "
            f"{base.manifest.parameter_digest[:12]}, training had {str(record.parameter_digest)[:12]}; give that one "
            "with --base FOLDER"
        )
    return base


def _place_of_base(folder: Path, manifest: Manifest) -> Path:
    """Return the folder that has a base's weights now: where training read them, or where they came from."""
    assert manifest.base is not None
    place, start = Path(manifest.base.path or ""), manifest.started_from
    if start is not None and (found := find_weights(start, bases=_bases_of(folder, manifest))) is not None:
        return found
    if place.is_dir() and (start is None or start.kind != "folder"):
        return place
    gone = f"the base of checkpoint {folder} was {place}, which is not there, or damaged"
    if start is None or start.kind != "folder":
        raise ConvertError(f"{gone}; say where it is now with --base FOLDER")
    source = Path(start.path or "")
    if not is_hf_folder(source):
        raise ConvertError(f"{gone}, and neither is {source}, from which it came; give that folder with --base FOLDER")
    return source


def _bases_of(folder: Path, manifest: Manifest) -> Path:
    """Return the folder of imported weights that a checkpoint's run uses."""
    run = run_of(folder)
    if run is not None:
        return bases_in(run.parent)
    place = Path(manifest.base.path or "") if manifest.base is not None else Path()
    return place.parent if place.parent.name == BASES else bases_in(folder.parent)


def _imported(source: Path, folder: Path, manifest: Manifest) -> Path:
    """Return the imported weights of a Hugging Face folder that is, or was, the base of a checkpoint.

    Raises:
        ConvertError: The folder that the checkpoint's run started from has changed, or cannot be imported.
    """
    from llama_scale.convert.base_import import import_again, import_base  # lazy: its proof reads checkpoints here

    stages = manifest.topology.pp_size
    counts = even_stage_layers(manifest.shape.num_layers, pp_size=stages)
    layout = Layout(tp_size=manifest.topology.tp_size, pp_size=stages, stage_layers=counts)
    bases, start = _bases_of(folder, manifest), manifest.started_from
    if start is not None and start.digest is not None and source == Path(start.path or ""):
        return import_again(start, bases, layout=layout).folder
    return import_base(source, bases, layout=layout).folder
