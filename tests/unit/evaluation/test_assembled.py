"""A Hugging Face folder behind ``extensions.task.Model``: batches and padding change nothing; errors say what to do."""

import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llama_scale.errors import ConvertError, LaunchError
from llama_scale.evaluation.assembled import AssembledModel, Sampling

PROMPTS = [[5, 9, 3, 7, 2, 8], [11], [4, 4, 19], [30, 2, 8, 1, 17, 3, 3, 5, 9]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40,
        max_position_embeddings=24,
        initializer_range=0.6,
        eos_token_id=39,
    )
    path = tmp_path_factory.mktemp("hf")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_generation_is_the_same_in_any_batch(folder, batch_size):
    alone = AssembledModel(folder, batch_size=1)
    expected = [alone.generate([prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    assert AssembledModel(folder, batch_size=batch_size).generate(PROMPTS, max_new_tokens=6) == expected
    assert all(len(new) <= 6 and 39 not in new for new in expected)


def test_hidden_states_are_the_same_in_any_batch(folder):
    batched = AssembledModel(folder, batch_size=4).hidden_states(PROMPTS)
    model = AssembledModel(folder, batch_size=1)
    for prompt, hidden in zip(PROMPTS, batched, strict=True):
        assert hidden.shape == (len(prompt), 32)
        torch.testing.assert_close(hidden, model.hidden_states([prompt])[0], rtol=1e-5, atol=1e-5)


def test_sampling_follows_its_seed(folder):
    texts = [
        AssembledModel(folder, sampling=Sampling(temperature=1.5, seed=seed)).generate(PROMPTS, max_new_tokens=8)
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_progress_counts_every_sequence(folder):
    model, seen = AssembledModel(folder, batch_size=3), []
    model.on_advance = seen.append
    model.hidden_states(PROMPTS)
    assert sum(seen) == len(PROMPTS)


def test_a_plain_model_has_no_adapters(folder):
    model = AssembledModel(folder)
    model.use("base")
    assert model.adapters == ()
    with pytest.raises(LaunchError, match="is a plain model without adapters, so 'x' cannot be chosen"):
        model.use("x")


def test_prompts_that_cannot_be_continued(folder):
    model = AssembledModel(folder)
    with pytest.raises(ConvertError, match="a prompt has no tokens"):
        model.generate([[]], max_new_tokens=1)
    with pytest.raises(ConvertError, match="a prompt has 24 tokens and the model's context is 24"):
        model.generate([[1] * 24], max_new_tokens=1)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ConvertError, match="transformers cannot load"):
        AssembledModel(tmp_path)


def test_pickled_weights_are_not_loaded(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "hf")
    torch.save(LlamaForCausalLM.from_pretrained(folder).state_dict(), tmp_path / "hf" / "pytorch_model.bin")
    AssembledModel(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(ConvertError, match=r"only pickled weights \(pytorch_model\.bin\), which run code"):
        AssembledModel(tmp_path / "hf")
