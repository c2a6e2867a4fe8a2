"""The preset table, Hugging Face configs and site profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_scale.errors import SpecError
from llama_scale.layout.parameters import iter_parameters
from llama_scale.spec.hf_config import HfConfigError, read_hf_config
from llama_scale.spec.presets import PRESETS
from llama_scale.spec.profiles import load_profile, profile_names

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_published_number_of_parameters(name: str) -> None:
    preset = PRESETS[name]
    assert sum(parameter.numel for parameter in iter_parameters(preset.shape)) == preset.parameters
    assert preset.shape.num_heads % preset.shape.num_kv_heads == 0
    assert "/" in preset.repository


def write(folder: Path, text: str) -> Path:
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def test_config_gets_the_defaults_of_transformers(tmp_path: Path) -> None:
    shape = read_hf_config(write(tmp_path, json.dumps(CONFIG))).shape
    assert (shape.num_kv_heads, shape.head_dim, shape.rms_norm_eps, shape.rope_theta) == (4, 16, 1e-6, 1e4)
    assert shape.rope_scaling is None


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_config_reads_llama3_scaling_in_both_forms(tmp_path: Path, key: str) -> None:
    table = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192}  # fmt: skip
    theta = {"rope_theta": 5e5}
    config = {**CONFIG, **theta, key: table} if key == "rope_scaling" else {**CONFIG, key: {**table, **theta}}
    shape = read_hf_config(write(tmp_path, json.dumps(config))).shape
    assert shape.rope_theta == 5e5
    assert shape.rope_scaling is not None
    assert shape.rope_scaling.factor == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"model_type": None}, "model_type is null"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is set"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": 3}, "rope_scaling is 3, not an object"),
        ({"hidden_size": "64"}, "hidden_size is '64', not a positive integer"),
        ({"hidden_size": 66}, "does not divide hidden_size=66"),
        ({"tie_word_embeddings": 1}, "not true or false"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ],
)
def test_config_that_is_no_llama_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(HfConfigError, match=message):
        read_hf_config(write(tmp_path, json.dumps({**CONFIG, **change})))


def test_config_lists_all_wrong_keys_at_once(tmp_path: Path) -> None:
    wrong = dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    with pytest.raises(HfConfigError) as caught:
        read_hf_config(write(tmp_path, json.dumps({**CONFIG, **wrong, "rope_theta": "1e4"})))
    assert len(caught.value.faults) == 5


def test_folder_file_and_json_faults_are_told_apart(tmp_path: Path) -> None:
    for folder, text in ((tmp_path / "no", "is not there"), (tmp_path, "holds no config.json")):
        with pytest.raises(HfConfigError, match=text):
            read_hf_config(folder)
    for content, text in (("{", "is not JSON"), ("[]", "holds list")):
        with pytest.raises(HfConfigError, match=text):
            read_hf_config(write(tmp_path, content))


def test_profiles_load_and_unknown_ones_are_named() -> None:
    assert {"laptop", "dgx-a100", "dgx-h100", "dgx-h200", "dgx-b200"} <= set(profile_names())
    for name in profile_names():
        profile = load_profile(name)
        assert (profile.gpu is None) == (profile.device == "cpu")
    with pytest.raises(SpecError, match="'nope' is not a cluster profile; use one of"):
        load_profile("nope")
