"""A real pretrained model: SmolLM2-135M-Instruct, 9 heads, 3 key/value heads, tied, at tensor=3 x pipeline=2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.proof import TOLERANCE
from llama_scale.convert.reference import load_text_tokenizer
from llama_scale.convert.shards import Layout
from llama_scale.convert.verify import verify
from llama_scale.evaluation.assembled import AssembledModel
from llama_scale.evaluation.completion import complete
from tests.engines.smollm2 import NotAvailable, smollm2_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        return smollm2_folder()
    except NotAvailable as error:
        pytest.skip(f"NOT TESTED on a real model: {error}")


def test_import_export_and_greedy_generation_equal_transformers(smollm2, tmp_path):
    manifest = import_hf(smollm2, tmp_path / "ck", layout=Layout(tp_size=3, pp_size=2))
    assert len(manifest.shards) == 6
    export_hf(tmp_path / "ck", tmp_path / "out", shard_bytes=200_000_000)
    assert_same_tensors(smollm2, tmp_path / "out")
    proof = verify(tmp_path / "ck", tmp_path / "out", num_tokens=32, generate=6)
    assert proof.layout == {"tensor": 3, "pipeline": 2, "virtual": 1}
    assert proof.differing == ()
    # 30 layers of fp32 rounding stay a factor of ten below the documented tolerance.
    assert all(c.relative < TOLERANCE / 10 for c in proof.comparisons)
    assert all(c.generated and c.generated == c.generated_equal for c in proof.comparisons)
    assert proof.passed
    prompts = ["The capital of France is", "Paris is the capital of"]
    model, tokenizer = AssembledModel(tmp_path / "out"), load_text_tokenizer(tmp_path / "out")
    completions = complete(model, tokenizer, prompts, max_new_tokens=4)
    assert completions[0].text.startswith(" Paris")
    peer = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        generated = peer.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert list(completion.tokens) == generated.tolist()


def assert_same_tensors(one: Path, two: Path) -> None:
    with safe_open(str(one / "model.safetensors"), framework="pt") as source:
        left = set(source.keys())
        for file in sorted(two.glob("*.safetensors")):
            with safe_open(str(file), framework="pt") as copy:
                names = set(copy.keys())
                assert names <= left
                left -= names
                for name in names:
                    assert torch.equal(source.get_tensor(name), copy.get_tensor(name)), name
    assert not left
