"""A tiny LLaMA with a chat template, made by transformers: what fine-tuning tests start from."""

from __future__ import annotations

from pathlib import Path

from tests.task_tokenizer import write_tokenizer

VOCABULARY = 512


def write_chat_model(folder: Path) -> Path:
    """Write weights, config, generation config, tokenizer and chat template, and return the folder."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=1)
    model.save_pretrained(folder)
    return write_tokenizer(folder, vocab_size=VOCABULARY)
