"""Train LLaMA-family models with several adapters through Megatron-Core and DeepSpeed, from one YAML file."""

__version__ = "0.1.0"
