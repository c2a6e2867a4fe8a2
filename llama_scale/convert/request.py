"""What `convert verify` asks of the process that runs the sharded model (``llama_scale.train.forward``)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Ask for a forward pass.

    Args:
        checkpoint: Checkpoint folder.
        group: Group of tensors to take the weights from: ``model`` or ``master``.
        round_to: Round the weights to this torch dtype first (``bfloat16``), as an export did; None: take them as
            they are.
        tp_size: Tensor parallel ranks.
        pp_size: Pipeline stages.
        vp_size: Model chunks per stage.
        stage_layers: Layers of each chunk in the order of the forward pass.
        prompts: Safetensors file of int64 token ids: name -> ``[batch, seq]``.
        generate: Greedy tokens to add to each prompt's first row; 0: none.
        stop_ids: Tokens that end a continuation.
        out: Safetensors file to write: ``logits/NAME`` fp32 ``[batch, seq, vocab]``, ``tokens/NAME`` int64 ``[new]``.
        timeout_s: A collective that takes longer fails.
    """

    checkpoint: str
    group: str
    round_to: str | None
    tp_size: int
    pp_size: int
    vp_size: int
    stage_layers: tuple[int, ...]
    prompts: str
    generate: int
    stop_ids: tuple[int, ...]
    out: str
    timeout_s: int = 600

    def to_json(self) -> str:
        """Return the request as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Read a request back."""
        data: dict[str, Any] = json.loads(text)
        for name in ("stage_layers", "stop_ids"):
            data[name] = tuple(data[name])
        return cls(**data)
