"""IA3 in PEFT's folders: factors are matrices of one column, or of one row where they scale a layer's input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_scale.extensions.linears import LINEARS, ROW
from llama_scale.extensions.peft import PeftTensor, module_path, refuse_others

_KNOWN: dict[str, tuple[Any, ...] | None] = {"feedforward_modules": None, "init_ia3_weights": None}


class Ia3Format:
    """See ``extensions.peft.PeftFormat``."""

    peft_type = "IA3"
    tensors = (PeftTensor(peft="ia3_l", name="scale", vector=True),)

    def settings(self, options: Any, *, layers: tuple[int, ...] | None) -> dict[str, Any]:
        """See ``PeftFormat.settings``; PEFT's IA3 knows no choice of layers, so theirs are named one by one."""

        def modules(targets: list[str]) -> list[str]:
            return targets if layers is None else [module_path(layer, target) for layer in layers for target in targets]

        targets = sorted(options.targets)
        return {
            "target_modules": modules(targets),
            "feedforward_modules": modules([target for target in targets if target in ROW]),
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
            "modules_to_save": None,
        }

    def stored_shape(self, target: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """See ``PeftFormat.stored_shape``."""
        del name
        return (1, *shape) if target in ROW else (*shape, 1)

    def options(
        self,
        config: Mapping[str, Any],
        shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
        *,
        layers: tuple[int, ...],
    ) -> dict[str, Any]:
        """See ``PeftFormat.options``."""
        del layers
        refuse_others(config, _KNOWN)
        for target, tensors in shapes.items():
            rows, columns = tensors["scale"]
            scales_input = rows == 1 and columns > 1
            if target not in ("k_proj", "v_proj", "down_proj") or scales_input != (target in ROW):
                what = "input" if scales_input else "output"
                raise ValueError(
                    f"it scales the {what} of {target}; IA3 here scales the outputs of k_proj and v_proj and the input "
                    "of down_proj"
                )
        return {"targets": tuple(target for target in LINEARS if target in shapes)}


FORMAT = Ia3Format()
