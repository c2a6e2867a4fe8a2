"""What a kind of adapter needs to be written to and read from PEFT's folders; an ``AdapterDescriptor`` names one.

PEFT keeps ``adapter_config.json`` and ``adapter_model.safetensors`` with tensors called
``base_model.model.model.layers.L.self_attn.q_proj.SUFFIX``. No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftTensor:
    """One tensor that a linear layer's adapter has in both worlds.

    Args:
        peft: End of its name in PEFT's file, e.g. ``lora_A.weight``.
        name: Its name behind the target here: ``q_proj.lora_A`` is ``lora_A``.
        vector: It is a vector here, and a matrix of one row or column in PEFT's file.
        less_norm: Here it is less by the norms of the base matrix' rows.
        needed: Whether every such adapter has it, or only with some options.
    """

    peft: str
    name: str
    vector: bool = False
    less_norm: bool = False
    needed: bool = True


class PeftFormat(Protocol):
    """One type of PEFT's adapters."""

    peft_type: str
    """PEFT's name of it, e.g. ``LORA``."""

    tensors: tuple[PeftTensor, ...]

    def settings(self, options: Any, *, layers: tuple[int, ...] | None) -> dict[str, Any]:
        """Return the fields of adapter_config.json that say what the adapter is, ``target_modules`` among them.

        Args:
            options: The adapter's options.
            layers: Layers it touches; None: all.
        """
        ...

    def stored_shape(self, target: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that a tensor of a target has in PEFT's file."""
        ...

    def options(
        self,
        config: Mapping[str, Any],
        shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
        *,
        layers: tuple[int, ...],
    ) -> dict[str, Any]:
        """Return the spec's options, without ``layers``, of a folder of this type.

        Args:
            config: adapter_config.json.
            shapes: Target -> name here -> shape of the tensor in PEFT's file; equal in all layers.
            layers: Layers that it touches.

        Raises:
            ValueError: The folder uses something that this kind does not have; the message says what.
        """
        ...


def module_path(layer: int, target: str) -> str:
    """Return a linear layer's module in a Hugging Face LLaMA, e.g. ``model.layers.3.self_attn.q_proj``."""
    block = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"model.layers.{layer}.{block}.{target}"


COMMON_SETTINGS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "peft_type",
        "peft_version",
        "revision",
        "target_modules",
        "task_type",
    }
)
"""Settings of every type: what they choose is seen in the tensors, or they say nothing of what is computed."""


def refuse_others(config: Mapping[str, Any], known: Mapping[str, tuple[Any, ...] | None]) -> None:
    """Refuse settings that may change what an adapter computes in a way that is not known here.

    Args:
        config: adapter_config.json.
        known: Setting -> the values that it may have besides empty ones; None: any.

    Raises:
        ValueError: Names the setting and its value.
    """
    for name, value in config.items():
        allowed = known.get(name, ())
        if value and name not in COMMON_SETTINGS and allowed is not None and value not in allowed:
            rule = f" (only {' or '.join(map(repr, allowed))})" if allowed else ""
            raise ValueError(f"{name}={value!r} is not supported{rule}")
