"""Tiny Hugging Face folders, written by hand so that they do not depend on what is tested."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 6,  # not hidden_size / num_attention_heads
    "vocab_size": 61,  # not divisible by anything
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """What to write: settings of config.json, element type, number of files."""

    config: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    files: int = 1
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        return CONFIG | self.config

    def tensors(self) -> dict[str, torch.Tensor]:
        c = self.settings()
        hidden, ffn, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
        heads, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
        for i in range(c["num_hidden_layers"]):
            layer = {
                "input_layernorm": (hidden,),
                "self_attn.q_proj": (heads, hidden),
                "self_attn.k_proj": (kv, hidden),
                "self_attn.v_proj": (kv, hidden),
                "self_attn.o_proj": (hidden, heads),
                "post_attention_layernorm": (hidden,),
                "mlp.gate_proj": (ffn, hidden),
                "mlp.up_proj": (ffn, hidden),
                "mlp.down_proj": (hidden, ffn),
            }
            shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes["model.norm.weight"] = (hidden,)
        if not c["tie_word_embeddings"]:
            shapes["lm_head.weight"] = (vocab, hidden)
        generator = torch.Generator().manual_seed(self.seed)
        made = {}
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator)
            made[name] = (1 + 0.3 * values if len(shape) == 1 else 0.3 * values).to(self.dtype)
        return made

    def write(self, folder: Path, *, tensors: dict[str, torch.Tensor] | None = None) -> Path:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.settings()))
        write_weights(folder, self.tensors() if tensors is None else tensors, files=self.files)
        return folder


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], *, files: int = 1) -> None:
    names = list(tensors)
    if files == 1:
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        return
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::files]}
        save_file(part, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
