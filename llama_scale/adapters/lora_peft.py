"""LoRA in PEFT's folders: rsLoRA, ranks of single targets, DoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llama_scale.extensions.linears import LINEARS
from llama_scale.extensions.peft import PeftTensor, module_path, refuse_others

_KNOWN: dict[str, tuple[Any, ...] | None] = {
    "r": None,
    "lora_alpha": None,
    "rank_pattern": None,
    "alpha_pattern": None,
    "use_rslora": None,
    "use_dora": None,
    "bias": ("none",),
    # What follows acts in PEFT's training, or on the start of it, alone. Other starts change the base's weights.
    "lora_dropout": None,
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
    "eva_config": None,
    "loftq_config": None,
    "megatron_core": None,
    "qalora_group_size": None,
    "runtime_config": None,
}


class LoraFormat:
    """See ``extensions.peft.PeftFormat``."""

    peft_type = "LORA"
    tensors = (
        PeftTensor(peft="lora_A.weight", name="lora_A"),
        PeftTensor(peft="lora_B.weight", name="lora_B"),
        PeftTensor(peft="lora_magnitude_vector", name="magnitude_change", less_norm=True, needed=False),
    )

    def settings(self, options: Any, *, layers: tuple[int, ...] | None) -> dict[str, Any]:
        """See ``PeftFormat.settings``."""
        return {
            "r": options.rank,
            "lora_alpha": options.alpha,
            "target_modules": sorted(options.chosen),
            "rank_pattern": {target: rank for target, rank in options.ranks.items() if rank != options.rank},
            "alpha_pattern": {target: alpha for target, alpha in options.alphas.items() if alpha != options.alpha},
            "use_rslora": options.rs_lora,
            "use_dora": options.dora,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "layers_to_transform": None if layers is None else list(layers),
            "layers_pattern": None if layers is None else "layers",
            "modules_to_save": None,
        }

    def stored_shape(self, target: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """See ``PeftFormat.stored_shape``."""
        del target, name
        return shape

    def options(
        self,
        config: Mapping[str, Any],
        shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
        *,
        layers: tuple[int, ...],
    ) -> dict[str, Any]:
        """See ``PeftFormat.options``; dropout is left out, since it acts in PEFT's training alone."""
        refuse_others(config, _KNOWN)
        ranks = {target: tensors["lora_A"][0] for target, tensors in shapes.items()}
        dora = bool(config.get("use_dora"))
        without = [target for target, tensors in shapes.items() if ("magnitude_change" in tensors) != dora]
        if without:
            raise ValueError(f"use_dora={dora}, and {without[0]} has {'no' if dora else 'a'} lora_magnitude_vector")
        rank, alpha = config.get("r", 8), float(config.get("lora_alpha", 8))
        alphas = {target: _alpha(config, target, layers, default=alpha) for target in shapes}
        return {
            "rank": rank,
            "alpha": alpha,
            "alphas": {target: own for target, own in alphas.items() if own != alpha},
            "targets": tuple(target for target in LINEARS if target in shapes),
            "ranks": {target: own for target, own in ranks.items() if own != rank},
            "rs_lora": bool(config.get("use_rslora")),
            "dora": dora,
        }


def _alpha(config: Mapping[str, Any], target: str, layers: tuple[int, ...], *, default: float) -> float:
    """Return a target's alpha; patterns are matched as PEFT does (peft/utils/other.py, ``get_pattern_key``)."""
    pattern = config.get("alpha_pattern") or {}
    found = set()
    for layer in layers:
        module = module_path(layer, target)
        key = next((k for k in pattern if k == module or re.match(rf"(.*\.)?({k})$", module)), None)
        found.add(default if key is None else float(pattern[key]))
    if len(found) > 1:
        raise ValueError(f"alpha_pattern gives {target} other alphas in other layers")
    return found.pop()


FORMAT = LoraFormat()
