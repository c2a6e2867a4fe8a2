"""What `convert verify` asks of the process that runs the sharded model (``llama_scale.train.forward``)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

BASE, MIXED, ADAPTER = "base", "mixture", "adapter:"
"""What a model may be asked to be: its bare base, its mixture, or the adapter of the name that follows."""

FREQUENCIES = "inverse_frequencies"
"""Name of RoPE's angle per position of each pair among the results: fp32 ``[head_dim / 2]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Ask for a forward pass.

    Args:
        checkpoint: Checkpoint folder.
        base: Where its frozen base is now; None: where it was.
        dtype: Element type that the base's weights are read in before they are computed with in fp32: ``float32``
            (masters where there are any) or ``bfloat16``, as an export has them.
        tp_size: Tensor parallel ranks.
        pp_size: Pipeline stages.
        vp_size: Model chunks per stage.
        stage_layers: Layers of each chunk in the order of the forward pass.
        prompts: Safetensors file of int64 token ids: name -> ``[batch, seq]``.
        choices: Name of a prompt -> what the model is to be for it.
        generate: Greedy tokens to add to each prompt's first row; 0: none.
        stop_ids: Tokens that end a continuation.
        out: Safetensors file to write: ``logits/NAME`` fp32 ``[batch, seq, vocab]``, ``tokens/NAME`` int64 ``[new]``,
            and ``FREQUENCIES``.
        stream: Read each matrix when it is used, and drop it then: for one forward pass, whatever the model's size.
        timeout_s: A collective that takes longer fails.
    """

    checkpoint: str
    base: str | None
    dtype: str
    tp_size: int
    pp_size: int
    vp_size: int
    stage_layers: tuple[int, ...]
    prompts: str
    choices: dict[str, str]
    generate: int
    stop_ids: tuple[int, ...]
    out: str
    stream: bool = False
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
