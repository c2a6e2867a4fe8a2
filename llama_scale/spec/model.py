"""Section ``model``: which LLaMA, by preset, by a Hugging Face folder or by its numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from llama_scale.spec.base import Name, PathStr, PositiveFloat, PositiveInt, Section


class RopeScaling(Section):
    """Llama 3's frequency-dependent RoPE scaling (``rope_type: llama3`` of a Hugging Face config)."""

    factor: PositiveFloat = Field(8.0, description="Long wavelengths are stretched by this factor.")
    low_freq_factor: PositiveFloat = Field(1.0, description="Wavelengths above original/low are fully stretched.")
    high_freq_factor: PositiveFloat = Field(4.0, description="Wavelengths below original/high are left alone.")
    original_max_position_embeddings: PositiveInt = Field(8192, description="Context length before the stretch.")


class ModelShape(Section):
    """Hold the numbers that define a dense LLaMA: all that plan, layout, train and convert need.

    Attributes follow Hugging Face's ``LlamaConfig`` except that FFN width is ``ffn_hidden_size``
    (``intermediate_size`` there) and that the count of key/value heads is ``num_kv_heads``.
    """

    hidden_size: PositiveInt = Field(description="Width of the residual stream.")
    ffn_hidden_size: PositiveInt = Field(description="Width of the SwiGLU MLP (HF: intermediate_size).")
    num_layers: PositiveInt = Field(description="Number of transformer layers (HF: num_hidden_layers).")
    num_heads: PositiveInt = Field(description="Number of query heads (HF: num_attention_heads).")
    num_kv_heads: PositiveInt = Field(description="Number of key/value heads (GQA; equals num_heads for MHA).")
    head_dim: PositiveInt = Field(description="Width of one head; need not be hidden_size / num_heads.")
    vocab_size: PositiveInt = Field(description="Tokens the model knows, without padding rows.")
    max_position_embeddings: PositiveInt = Field(2048, description="Longest context the model is meant for.")
    rope_theta: PositiveFloat = Field(10000.0, description="Base of the rotary embedding's frequencies.")
    rope_scaling: RopeScaling | None = Field(None, description="Llama 3 scaling of RoPE; null for plain RoPE.")
    rms_norm_eps: PositiveFloat = Field(1e-5, description="Epsilon inside RMSNorm.")
    tie_word_embeddings: bool = Field(False, description="Use the embedding matrix as output layer too.")

    @property
    def queries_per_kv(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads


BASE_NAME_PATTERN = r"^[^\x00-\x1f\x7f]+$"


class _WithInit(Section):
    init_std: PositiveFloat = Field(
        0.02,
        description="Standard deviation of initial weights; output projections get it over sqrt(2 x layers).",
    )
    vocab_pad_multiple: PositiveInt = Field(
        128,
        description="The vocabulary is padded to a multiple of this x tensor_parallel; padding rows are masked "
        "everywhere and never exported.",
    )
    init_from: PathStr | None = Field(
        None,
        description="Warm start: a Hugging Face folder (config.json, *.safetensors) or a checkpoint folder (any "
        "layout) whose weights are loaded before step 0; optimizer state and step are not.",
    )
    base_name: Annotated[str, Field(pattern=BASE_NAME_PATTERN)] | None = Field(
        None,
        description="What logs and exports call the folder that the weights come from, e.g. a name on the hub; a PEFT "
        "folder has it as base_model_name_or_path. Default: model.init_from or model.path as the spec has it.",
    )


def _known_preset(name: str) -> str:
    from llama_scale.spec.nearby import suggest  # lazy: most specs name a known preset
    from llama_scale.spec.presets import PRESETS  # lazy: the table is built from this module's models

    if name not in PRESETS:
        hint = suggest(name, list(PRESETS))
        listing = "; `llama-scale init --list-models` shows all" if hint.startswith("did") else ""
        raise ValueError(f"{name!r} is not in the preset table; {hint}{listing}")
    return name


def _name_the_presets(schema: dict[str, Any]) -> None:
    from llama_scale.spec.presets import PRESETS  # lazy: see _known_preset

    schema["enum"] = list(PRESETS)


class PresetModel(_WithInit):
    """A model of the preset table (`llama-scale init --list-models` shows it)."""

    kind: Literal["preset"]
    name: Annotated[str, AfterValidator(_known_preset)] = Field(
        description="Name in the preset table, e.g. llama-3.1-8b.", json_schema_extra=_name_the_presets
    )
    vocab_size: PositiveInt | None = Field(None, description="Replace the preset's vocabulary (own tokenizer).")
    num_layers: PositiveInt | None = Field(None, description="Replace the preset's depth (cut-down trials).")


class HfModel(_WithInit):
    """A model whose numbers are read from a Hugging Face folder's config.json while the spec is loaded."""

    kind: Literal["hf"]
    path: PathStr = Field(
        description="Folder that holds config.json (architecture LlamaForCausalLM); the weights too where train.from "
        "is weights."
    )


class InlineModel(_WithInit, ModelShape):
    """A model given by its numbers."""

    kind: Literal["inline"]
    name: Name = Field("llama", description="Name for tables and logs.")


Model = Annotated[PresetModel | HfModel | InlineModel, Field(discriminator="kind")]
