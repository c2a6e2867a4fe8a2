"""What a checkpoint is compared with: each form of an exported folder, as the model that its library makes of it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from llama_scale.convert.adapters import StoredAdapter, find_adapter, stored_adapters
from llama_scale.convert.assemble import MIXTURE, adapter_file, mixture_file
from llama_scale.convert.folders import REPORT, Progress, read_json
from llama_scale.convert.foreign_code import CONSENT, foreign_code
from llama_scale.convert.hf_config import CONFIG, make_hf_config, read_shape
from llama_scale.convert.import_peft import PeftAdapter
from llama_scale.convert.matrices import Matrices, check_same_numbers, same_bits
from llama_scale.convert.merge import Merger
from llama_scale.convert.modelling import MODEL_TYPE
from llama_scale.convert.peft import CONFIG as PEFT_CONFIG
from llama_scale.convert.peft import TENSORS as PEFT_TENSORS
from llama_scale.convert.peft import peft_tensors, require_peft
from llama_scale.convert.reference import load_llama, load_model, native_model
from llama_scale.convert.request import ADAPTER, BASE, MIXED
from llama_scale.convert.weights import Weights
from llama_scale.errors import ConvertError


class Compared(Protocol):
    """One form of folder.

    Attributes:
        choices: What the sharded model is compared as, see ``convert.request``.
        dtype: Element type that the sharded model's base is rounded to.
        note: What to tell about the comparison.
        tensors: Number of tensors compared.
        total_bytes: Of the files compared.
    """

    choices: tuple[str, ...]
    dtype: torch.dtype
    note: str
    tensors: int
    total_bytes: int

    def differing(self, progress: Progress) -> Iterator[str]:
        """Yield the names of tensors that are not, bit by bit, what an export of the checkpoint holds."""

    def model(self) -> Any:
        """Return the library's model, whose base has the element type ``dtype``.

        Raises:
            ConvertError: The library cannot load the folder.
        """

    def choose(self, model: Any, choice: str) -> None:
        """Make the model be one of ``choices``."""


def compared(weights: Weights, folder: Path, *, adapter: str | None = None, trust_code: bool = False) -> Compared:
    """Tell which form a folder has.

    Args:
        weights: The checkpoint.
        folder: The folder to compare it with.
        adapter: Which adapter a plain or PEFT folder is of; None: report.json or the only one says.
        trust_code: Run Python code of the folder that no export writes.

    Raises:
        ConvertError: The folder is damaged, of another model, brings code that may not run, or needs a library that is
            missing.
    """
    if (folder / PEFT_CONFIG).is_file():
        return PeftFolder(weights, folder, adapter=adapter)
    config = read_json(folder / CONFIG) or {}
    if config.get("model_type") != MODEL_TYPE:
        return PlainFolder(weights, folder, adapter=adapter, trust_code=trust_code)
    if adapter is not None:
        raise ConvertError(f"{folder} is a mixture, of which every adapter is compared; leave out --adapter {adapter}")
    return MixtureFolder(weights, folder, config=config, trust_code=trust_code)


class PlainFolder:
    """A LLaMA: a checkpoint without adapters, or with one of them merged into the base. See ``Compared``."""

    def __init__(self, weights: Weights, folder: Path, *, adapter: str | None, trust_code: bool) -> None:
        check_same_numbers(weights, read_shape(folder), folder=folder)
        self._weights, self._folder, self._trust_code = weights, folder, trust_code
        self._merger: Merger | None = None
        if adapter is not None or stored_adapters(weights):
            name = adapter or (read_json(folder / REPORT) or {}).get("adapter")
            self._merger = Merger(find_adapter(weights, name))
        self._matrices = Matrices(weights, folder, merger=self._merger)
        self.choices: tuple[str, ...] = (BASE,) if self._merger is None else (ADAPTER + self._merger.adapter.name,)
        self.dtype, self.note = self._matrices.dtype, self._matrices.note
        if self._merger is not None and self.dtype == torch.bfloat16:
            self.dtype = torch.float32
            self.note = "logits compared before the matrices are rounded to bf16"
        if not trust_code and foreign_code(folder) is not None:
            code = "the folder's own code was not run: compared as transformers' LLaMA"
            self.note = f"{self.note}; {code}" if self.note else code
        self.tensors, self.total_bytes = self._matrices.tensors, self._matrices.total_bytes

    def differing(self, progress: Progress) -> Iterator[str]:
        """See ``Compared``."""
        yield from self._matrices.differing(progress)

    def model(self) -> Any:
        """See ``Compared``."""
        if self._merger is not None and self._matrices.dtype == torch.bfloat16:
            return native_model(self._weights, merger=self._merger)
        if self._trust_code:
            return load_model(self._folder, dtype=self.dtype, trust_code=True)
        return load_llama(self._folder, dtype=self.dtype)

    def choose(self, model: Any, choice: str) -> None:
        """See ``Compared``."""


class MixtureFolder:
    """Base, adapters and mixture in one folder. See ``Compared``."""

    def __init__(self, weights: Weights, folder: Path, *, config: Mapping[str, Any], trust_code: bool) -> None:
        foreign = foreign_code(folder)
        if foreign is not None and not trust_code:
            raise ConvertError(f"{folder} brings code of its own: {foreign}; {CONSENT}")
        self._trust_code = trust_code
        wanted = make_hf_config(weights.shape, dtype="float32")
        numbers = [k for k in wanted if k not in ("architectures", "model_type", "dtype", "torch_dtype")]
        other = [k for k in numbers if not k.endswith("_token_id") and config.get(k) != wanted[k]]
        if other:
            raise ConvertError(
                f"{folder} is another model than the checkpoint: {other[0]} is {config.get(other[0])} there and "
                f"{wanted[other[0]]} here"
            )
        self._weights, self._folder = weights, folder
        self._matrices = Matrices(weights, folder, merger=None)
        self.dtype, self.note = self._matrices.dtype, self._matrices.note
        self._adapters = stored_adapters(weights)
        entries = config["llama_scale"]["adapters"]
        if not all(isinstance(entry.get(key), str) for entry in entries for key in ("name", "file")):
            raise ConvertError(f"{folder / CONFIG} has an adapter without its name or its file; it is no export")
        theirs, ours = [entry["name"] for entry in entries], [adapter.name for adapter in self._adapters]
        if theirs != ours:
            raise ConvertError(f"{folder} has the adapters {theirs}, the checkpoint {ours}")
        self._files = {
            folder / e["file"]: adapter_file(a, dtype=self.dtype) for e, a in zip(entries, self._adapters, strict=True)
        }
        mixed = mixture_file(weights)
        if mixed:
            self._files[folder / MIXTURE] = mixed
        self.choices = (*(ADAPTER + name for name in ours), *((MIXED,) if mixed else ()))
        self.tensors = self._matrices.tensors + sum(map(len, self._files.values()))
        self.total_bytes = self._matrices.total_bytes

    def differing(self, progress: Progress) -> Iterator[str]:
        """See ``Compared``."""
        yield from self._matrices.differing(progress)
        for path, tensors in self._files.items():
            yield from _differing(path, tensors)

    def model(self) -> Any:
        """See ``Compared``."""
        return load_model(self._folder, dtype=self.dtype, trust_code=self._trust_code)

    def choose(self, model: Any, choice: str) -> None:
        """See ``Compared``."""
        if choice == MIXED:
            model.set_mixture()
        else:
            model.set_adapter(choice.removeprefix(ADAPTER))


class PeftFolder:
    """One adapter in PEFT's folder, which PEFT puts on the base. See ``Compared``."""

    dtype = torch.float32
    note = ""

    def __init__(self, weights: Weights, folder: Path, *, adapter: str | None) -> None:
        if importlib.util.find_spec("peft") is None:
            raise ConvertError(f"verifying {folder} needs peft, not installed here: pip install 'llama-scale[peft]'")
        name = adapter or (read_json(folder / REPORT) or {}).get("adapter")
        self._adapter: StoredAdapter = find_adapter(weights, name)
        # PEFT imports modules and opens files that some settings name; only settings that import_peft knows reach it.
        PeftAdapter.read(self._adapter.name, folder, weights)
        self._folder = folder
        self._file = dict(peft_tensors(self._adapter, require_peft(self._adapter)))
        self.choices: tuple[str, ...] = (ADAPTER + self._adapter.name,)
        self.tensors = len(self._file)
        self.total_bytes = sum(tensor.nbytes for tensor in self._file.values())

    def differing(self, progress: Progress) -> Iterator[str]:
        """See ``Compared``."""
        yield from _differing(self._folder / PEFT_TENSORS, self._file)
        progress.advance(self.total_bytes)

    def model(self) -> Any:
        """See ``Compared``."""
        from peft import PeftModel

        try:
            with warnings.catch_warnings():
                # PEFT asks transformers by the older name.
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
                return PeftModel.from_pretrained(native_model(self._adapter.weights), self._folder)
        except Exception as error:  # whatever a damaged folder makes the library raise
            raise ConvertError(f"peft cannot load {self._folder}: {error}") from error

    def choose(self, model: Any, choice: str) -> None:
        """See ``Compared``."""


def _differing(path: Path, ours: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Yield the names of tensors that a file holds otherwise, or only one side holds."""
    try:
        theirs = load_file(path)
    except Exception as error:  # a missing or damaged file, whatever the library makes of it
        raise ConvertError(f"{path} cannot be read: {error}") from error
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs or not same_bits(ours[name], theirs[name]):
            yield f"{path.parent.name}/{name}"
