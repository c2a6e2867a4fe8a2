"""The preset table: published LLaMAs by name, one row each, with the source of its numbers.

``parameters`` are the totals that the published weights hold; ``tests/unit/spec/test_presets.py`` recomputes each from
the row's own sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_scale.spec.model import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One row of the table.

    Args:
        title: The publisher's name.
        sizes: hidden, ffn, layers, heads, kv heads, head dim.
        rope_factor: ``factor`` of Llama 3's RoPE scaling (low 1, high 4, original context 8192); None for plain RoPE.
        parameters: Total parameters, tied matrices counted once.
        init_std: ``initializer_range`` of the published config.
        repository: Hugging Face repository whose config.json the numbers are from.
    """

    title: str
    sizes: tuple[int, int, int, int, int, int]
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    parameters: int
    repository: str
    tied: bool = False
    rope_factor: float | None = None
    rms_norm_eps: float = 1e-5
    init_std: float = 0.02

    def numbers(self) -> dict[str, Any]:
        """Return the fields of ``ModelShape`` as plain data."""
        names = ("hidden_size", "ffn_hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        scaling = {
            "factor": self.rope_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        return {
            **dict(zip(names, self.sizes, strict=True)),
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling if self.rope_factor else None,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tied,
        }

    @property
    def shape(self) -> ModelShape:
        """The model's numbers."""
        from llama_scale.spec.model import ModelShape  # lazy: `validate` of a good spec needs the numbers only

        return ModelShape.model_validate(self.numbers())


_8B = (4096, 14336, 32, 32, 8, 128)
_70B = (8192, 28672, 80, 64, 8, 128)

PRESETS: dict[str, Preset] = {
    "tinyllama-1.1b": Preset(
        title="TinyLlama 1.1B", sizes=(2048, 5632, 22, 32, 4, 64), vocab_size=32000, max_position_embeddings=2048,
        rope_theta=1e4, parameters=1_100_048_384, repository="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    ),
    "smollm2-135m": Preset(
        title="SmolLM2 135M", sizes=(576, 1536, 30, 9, 3, 64), vocab_size=49152, max_position_embeddings=8192,
        rope_theta=1e5, parameters=134_515_008, repository="HuggingFaceTB/SmolLM2-135M", tied=True, init_std=1 / 24,
    ),
    "smollm2-360m": Preset(
        title="SmolLM2 360M", sizes=(960, 2560, 32, 15, 5, 64), vocab_size=49152, max_position_embeddings=8192,
        rope_theta=1e5, parameters=361_821_120, repository="HuggingFaceTB/SmolLM2-360M", tied=True,
    ),
    "smollm2-1.7b": Preset(
        title="SmolLM2 1.7B", sizes=(2048, 8192, 24, 32, 32, 64), vocab_size=49152, max_position_embeddings=8192,
        rope_theta=1.3e5, parameters=1_711_376_384, repository="HuggingFaceTB/SmolLM2-1.7B", tied=True,
    ),
    "llama-2-7b": Preset(
        title="Llama 2 7B", sizes=(4096, 11008, 32, 32, 32, 128), vocab_size=32000, max_position_embeddings=4096,
        rope_theta=1e4, parameters=6_738_415_616, repository="meta-llama/Llama-2-7b-hf",
    ),
    "llama-2-13b": Preset(
        title="Llama 2 13B", sizes=(5120, 13824, 40, 40, 40, 128), vocab_size=32000, max_position_embeddings=4096,
        rope_theta=1e4, parameters=13_015_864_320, repository="meta-llama/Llama-2-13b-hf",
    ),
    "llama-2-70b": Preset(
        title="Llama 2 70B", sizes=_70B, vocab_size=32000, max_position_embeddings=4096,
        rope_theta=1e4, parameters=68_976_648_192, repository="meta-llama/Llama-2-70b-hf",
    ),
    "llama-3-8b": Preset(
        title="Llama 3 8B", sizes=_8B, vocab_size=128256, max_position_embeddings=8192,
        rope_theta=5e5, parameters=8_030_261_248, repository="meta-llama/Meta-Llama-3-8B",
    ),
    "llama-3-70b": Preset(
        title="Llama 3 70B", sizes=_70B, vocab_size=128256, max_position_embeddings=8192,
        rope_theta=5e5, parameters=70_553_706_496, repository="meta-llama/Meta-Llama-3-70B",
    ),
    "llama-3.1-8b": Preset(
        title="Llama 3.1 8B", sizes=_8B, vocab_size=128256, max_position_embeddings=131072,
        rope_theta=5e5, rope_factor=8.0, parameters=8_030_261_248, repository="meta-llama/Llama-3.1-8B",
    ),
    "llama-3.1-70b": Preset(
        title="Llama 3.1 70B", sizes=_70B, vocab_size=128256, max_position_embeddings=131072,
        rope_theta=5e5, rope_factor=8.0, parameters=70_553_706_496, repository="meta-llama/Llama-3.1-70B",
    ),
    "llama-3.1-405b": Preset(
        title="Llama 3.1 405B", sizes=(16384, 53248, 126, 128, 8, 128), vocab_size=128256,
        max_position_embeddings=131072, rope_theta=5e5, rope_factor=8.0, parameters=405_853_388_800,
        repository="meta-llama/Llama-3.1-405B",
    ),
    "llama-3.2-1b": Preset(
        title="Llama 3.2 1B", sizes=(2048, 8192, 16, 32, 8, 64), vocab_size=128256, max_position_embeddings=131072,
        rope_theta=5e5, rope_factor=32.0, parameters=1_235_814_400, repository="meta-llama/Llama-3.2-1B", tied=True,
    ),
    "llama-3.2-3b": Preset(
        title="Llama 3.2 3B", sizes=(3072, 8192, 28, 24, 8, 128), vocab_size=128256, max_position_embeddings=131072,
        rope_theta=5e5, rope_factor=32.0, parameters=3_212_749_824, repository="meta-llama/Llama-3.2-3B", tied=True,
    ),
}  # fmt: skip
"""Every preset by the name that a spec uses."""
