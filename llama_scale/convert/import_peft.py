"""Import of PEFT's folders: their adapters become a checkpoint that a run starts from or an export is made of."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from llama_scale.checkpoint.manifest import BaseRecord, ExtensionRecord, Manifest
from llama_scale.checkpoint.pieces import Piece
from llama_scale.checkpoint.safetensors_file import SafetensorsFile
from llama_scale.checkpoint.writer import ShardWriter, build_manifest, commit
from llama_scale.convert.folders import check_target, checkpoint_faults, find_checkpoint, new_folder, read_json
from llama_scale.convert.mapping import hf_tensors
from llama_scale.convert.peft import CONFIG, TENSORS
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError, PluginError
from llama_scale.extensions import discover
from llama_scale.extensions.api import ADAPTERS
from llama_scale.extensions.linears import LINEARS
from llama_scale.extensions.peft import PeftFormat, PeftTensor, module_path
from llama_scale.layout.boxes import Box
from llama_scale.layout.parameters import Parameter, adapter_parameter
from llama_scale.plan.extensions import extra_parameters
from llama_scale.spec.base import NAME_PATTERN
from llama_scale.spec.plugins import import_object

_KEY = re.compile(r"base_model\.model\.(?:model\.)?layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.(.+)")


@checkpoint_faults()
def import_peft(folders: Mapping[str, Path], target: Path, *, base: Path) -> Manifest:
    """Write the adapters of PEFT folders as a checkpoint on a base (step 0, no optimizer state).

    Args:
        folders: Name that the adapter gets -> its folder.
        target: New checkpoint folder.
        base: Checkpoint of the base, e.g. from ``convert import``.

    Raises:
        ConvertError: A folder is damaged, of a type or with a setting that no kind of adapter here has, or of another
            base; or the base is no whole model.
    """
    check_target(target)
    weights = Weights(find_checkpoint(base))
    if weights.manifest.base is not None or weights.extra:
        raise ConvertError(f"--base {base} holds adapters or heads; give the checkpoint of the base alone")
    read = [PeftAdapter.read(name, folder, weights) for name, folder in folders.items()]
    record = ExtensionRecord.model_validate(
        {"seed": 0, "adapters": tuple({"name": a.name, "kind": a.kind, "options": a.options} for a in read)}
    )
    values = {name: tensor for adapter in read for name, tensor in adapter.parameters()}
    with new_folder(target) as tmp:
        manifest = _write(tmp, values, record=record, weights=weights)
        commit(tmp, target, manifest)
    return manifest


def _write(folder: Path, values: Mapping[str, torch.Tensor], *, record: ExtensionRecord, weights: Weights) -> Manifest:
    writer = ShardWriter(folder / "shard-00000.safetensors")
    for parameter in extra_parameters(record, weights.shape):
        if not parameter.trainable:
            continue
        box = Box.whole(parameter.shape)
        piece = Piece(group="model", name=parameter.name, box=box, flat_start=None, numel=box.numel)
        writer.add_lazy(
            piece, global_shape=parameter.shape, dtype=torch.float32, load=partial(_fitting, parameter, values)
        )
    manifest = weights.manifest
    return build_manifest(
        [writer.finish()],
        step=0,
        samples=0,
        engine="import",
        topology={},
        shape=manifest.shape,
        vocab_pad_multiple=manifest.vocab_pad_multiple,
        base=BaseRecord(
            kind="checkpoint",
            path=str(weights.folder.absolute()),
            parameter_digest=manifest.parameter_digest,
            dtype="bfloat16" if weights.dtype == torch.bfloat16 else "float32",
        ),
        extensions=record,
    )


def _fitting(parameter: Parameter, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the value of a parameter if it has its shape."""
    tensor = values.get(parameter.name)
    if tensor is None:
        raise ConvertError(f"the adapter lacks a tensor for {parameter.name}; the folder is incomplete")
    if tuple(tensor.shape) != parameter.shape:
        raise ConvertError(
            f"the adapter's tensor for {parameter.name} has the shape {list(tensor.shape)}, the base needs "
            f"{list(parameter.shape)}: the adapter is of another base"
        )
    return tensor


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """One folder, read and checked.

    Args:
        name: Name that the adapter gets.
        kind: Kind of adapter here.
        options: The spec's options.
        form: How PEFT keeps the kind.
        places: Key in the file -> (layer, target, which tensor of the target).
        file: The file.
        weights: The base.
    """

    name: str
    kind: str
    options: dict[str, Any]
    form: PeftFormat
    places: Mapping[str, tuple[int, str, PeftTensor]]
    file: SafetensorsFile
    weights: Weights

    @classmethod
    def read(cls, name: str, folder: Path, weights: Weights) -> PeftAdapter:
        """Read a folder.

        Raises:
            ConvertError: See ``import_peft``.
        """
        if not re.fullmatch(NAME_PATTERN, name):
            raise ConvertError(f"{name!r} is no name for an adapter; choose one with --peft NAME=FOLDER")
        config = read_json(folder / CONFIG)
        if config is None:
            raise ConvertError(f"{folder} has no {CONFIG}; give a folder that PEFT's save_pretrained wrote")
        kind, form = _kind_of(config, folder)
        file = _open(folder)
        places = {key: _place(key, form, folder) for key in file.arrays}
        shapes = _uniform_shapes(places, file, folder)
        layers = tuple(sorted({layer for layer, _, _ in places.values()}))
        _check_layers(places, weights, folder)
        try:
            chosen = form.options(config, shapes, layers=layers)
        except (ValueError, TypeError, KeyError) as error:
            raise ConvertError(f"{folder}: {error}, so it cannot be imported as kind {kind!r}") from error
        options = _checked(kind, {**chosen, "layers": _layers(layers, weights.shape.num_layers)}, folder)
        return cls(name=name, kind=kind, options=options, form=form, places=places, file=file, weights=weights)

    def parameters(self) -> list[tuple[str, torch.Tensor]]:
        """Return the parameters by logical name, fp32, in the shapes that they have here."""
        matrices = hf_tensors(self.weights.shape)
        found = []
        for key, (layer, target, tensor) in self.places.items():
            value = self.file.tensor(key).to(torch.float32, copy=True)
            value = value.flatten() if tensor.vector else value
            if tensor.less_norm:
                matrix = matrices[f"{module_path(layer, target)}.weight"]
                norms = self.weights.hf_tensor(matrix, dtype=torch.float32).norm(dim=1)
                value = value - norms if value.shape == norms.shape else value  # another base's is refused later
            found.append((adapter_parameter(layer, self.name, f"{target}.{tensor.name}"), value))
        return found


def _kind_of(config: Mapping[str, Any], folder: Path) -> tuple[str, PeftFormat]:
    """Return the kind of adapter that a PEFT type is here."""
    known: dict[str, tuple[str, PeftFormat]] = {}
    for name in discover.names(ADAPTERS):
        try:
            descriptor = discover.adapter(name)
            if descriptor.peft is not None:
                form: PeftFormat = import_object(descriptor.peft)
                known.setdefault(form.peft_type, (name, form))
        except PluginError:
            continue  # a broken plugin is no reason to refuse the others' folders
    found = config.get("peft_type")
    if found not in known:
        raise ConvertError(f"{folder} is of PEFT's type {found!r}; {', '.join(sorted(known))} can be imported")
    return known[found]


def _open(folder: Path) -> SafetensorsFile:
    path = folder / TENSORS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ConvertError(
                f"{folder} has only the pickled adapter_model.bin, which runs code when it is loaded; save it as "
                f"{TENSORS} where you trust it"
            )
        raise ConvertError(f"{folder} has no {TENSORS}; the folder is incomplete")
    file = SafetensorsFile(path)
    if not file.arrays:
        raise ConvertError(f"{path} holds no tensors; the adapter was saved without its weights")
    return file


def _place(key: str, form: PeftFormat, folder: Path) -> tuple[int, str, PeftTensor]:
    """Return layer, target and kind of a tensor."""
    match = _KEY.fullmatch(key)
    tensor = (
        None if match is None else next((t for t in form.tensors if match[3] in (t.peft, f"{t.peft}.weight")), None)
    )
    if match is None or match[2] not in LINEARS or tensor is None:
        raise ConvertError(
            f"{folder} has the tensor {key!r}, which is not of a {form.peft_type} adapter on {', '.join(LINEARS)}; "
            "bias, modules_to_save, embeddings and output layer cannot be imported"
        )
    return int(match[1]), match[2], tensor


def _uniform_shapes(
    places: Mapping[str, tuple[int, str, PeftTensor]], file: SafetensorsFile, folder: Path
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return target -> tensor -> shape; all layers that are touched must have the same."""
    by_layer: dict[int, dict[str, dict[str, tuple[int, ...]]]] = defaultdict(lambda: defaultdict(dict))
    for key, (layer, target, tensor) in places.items():
        by_layer[layer][target][tensor.name] = file.arrays[key].shape
    first, shapes = next(iter(sorted(by_layer.items())))
    for layer, own in by_layer.items():
        if own != shapes:
            different = sorted(t for t in own.keys() | shapes.keys() if own.get(t) != shapes.get(t))
            raise ConvertError(
                f"{folder} has other tensors on {different[0]} in layer {layer} than in layer {first}; targets and "
                "ranks have to be the same in all layers that an adapter touches"
            )
    return {target: dict(tensors) for target, tensors in shapes.items()}


def _check_layers(places: Mapping[str, tuple[int, str, PeftTensor]], weights: Weights, folder: Path) -> None:
    """Refuse an adapter of a base with other layers; ``_write`` finds other sizes."""
    layers = weights.shape.num_layers
    for layer, _, _ in places.values():
        if layer >= layers:
            raise ConvertError(f"{folder} touches layer {layer}, the base has 0 to {layers - 1}: it is of another base")


def _layers(found: tuple[int, ...], num_layers: int) -> Any:
    if len(found) == num_layers:
        return "all"
    return {"last": len(found)} if found == tuple(range(num_layers - len(found), num_layers)) else found


def _checked(kind: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return options as a spec has them after loading."""
    try:
        data: dict[str, Any] = discover.adapter(kind).options.model_validate(options).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        raise ConvertError(
            f"{folder} cannot be imported as kind {kind!r}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None
    return data
