"""transformers' model of a Hugging Face folder, with a matrix in memory only while it is used.

transformers reads config.json, builds the model and computes; the weights come out of the files by the names that the
model's parameters have. Nothing here knows how a LLaMA is made, and no config of this package takes part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from llama_scale.convert.hf_weights import HfWeights
from llama_scale.errors import ConvertError
from llama_scale.spec.model import ModelShape


class SourceModel:
    """Compute a folder's logits in fp32, whatever the size of the model and the format of its files.

    Args:
        folder: The folder.
        rounded: Element type that each weight is rounded to before it is widened to fp32: the checkpoint's.

    Raises:
        ConvertError: transformers cannot build a model of the folder's config.json, or the files lack one of its
            parameters.
    """

    def __init__(self, folder: Path, *, rounded: torch.dtype) -> None:
        files = HfWeights(folder)
        self._model = _build(folder)
        # A parameter that two modules share has one name: the first.
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        missing = sorted(set(names.values()) - set(files.names))
        if missing:
            raise ConvertError(f"transformers' model of {folder} has the parameter {missing[0]!r}, the files do not")
        for module in self._model.modules():
            own = {key: names[id(parameter)] for key, parameter in module.named_parameters(recurse=False)}
            if own:
                _stream(module, {key: (files.path(name), name) for key, name in own.items()}, rounded=rounded)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits ``[batch, seq, vocab]`` of token ids ``[batch, seq]``."""
        with torch.no_grad():
            logits: torch.Tensor = self._model(input_ids=tokens, use_cache=False, return_dict=True).logits
        return logits

    def differences(self, shape: ModelShape, frequencies: torch.Tensor) -> tuple[str, ...]:
        """Return what the model has otherwise than ours that the logits of a short text may not show, a phrase each.

        Args:
            shape: Our numbers.
            frequencies: RoPE's angle per position of each pair in the sharded model.
        """
        config, rotary = self._model.config, self._model.model.rotary_emb
        epsilons = {module.variance_epsilon for module in self._model.modules() if hasattr(module, "variance_epsilon")}
        found = []
        for key, theirs, ours in (
            ("rms_norm_eps", sorted(epsilons), [shape.rms_norm_eps]),
            ("max_position_embeddings", config.max_position_embeddings, shape.max_position_embeddings),
            ("the factor of RoPE's cosines", rotary.attention_scaling, 1.0),
        ):
            if theirs != ours:
                found.append(f"{key} is {theirs} in transformers' model and {ours} in the sharded one")
        if not _close(rotary.inv_freq, frequencies):
            found.append("RoPE's frequencies are others in transformers' model than in the sharded one")
        return tuple(found)


def _close(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.shape == two.shape and bool(torch.allclose(one.float(), two.float(), rtol=1e-5, atol=0))


def _build(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with _parameters_without_memory():
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation="eager")
    except Exception as error:  # whatever a folder that it does not know makes the library raise
        raise ConvertError(
            f"transformers cannot build the model of {folder}: {' '.join(str(error).split())}"
        ) from error
    return model.eval()


@contextlib.contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Let modules be built with parameters that have a shape only; buffers keep the values that they are made with."""

    def on_meta(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        return None if parameter.is_meta else nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    hook = nn.modules.module.register_module_parameter_registration_hook(on_meta)
    try:
        yield
    finally:
        hook.remove()


def _stream(module: nn.Module, own: Mapping[str, tuple[Path, str]], *, rounded: torch.dtype) -> None:
    """Let a module read its parameters when it is called, and drop them afterwards.

    Args:
        module: A module with parameters of its own.
        own: Name of each in the module -> its file and its name there.
        rounded: See ``SourceModel``.
    """
    absent = dict(module._parameters)
    # Of an embedding, the rows that were looked up are widened: a small part of the matrix.
    looks_up = isinstance(module, nn.Embedding)

    def load(*_: Any) -> None:
        for key, (path, name) in own.items():
            with safe_open(path, framework="pt") as file:
                tensor = file.get_tensor(name)
            if not looks_up:
                tensor = tensor.to(rounded).float()
            module._parameters[key] = nn.Parameter(tensor, requires_grad=False)

    def drop(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor | None:
        module._parameters.update(absent)
        return output.to(rounded).float() if looks_up else None

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)
