"""Checkpoints of adapters as PEFT folders, merged models and mixtures, on one process each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from llama_scale.convert.assemble import assemble
from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.import_hf import import_hf
from llama_scale.convert.peft import export_peft
from llama_scale.convert.shards import Layout
from tests.unit.convert.adapted import DORA, IA3, LORA, RS_LORA, adapter_checkpoint, record
from tests.unit.convert.tiny import Tiny

# PEFT asks transformers by the older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TOKENS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    Tiny(config={"hidden_size": 24, "num_attention_heads": 12, "num_key_value_heads": 4}).write(folder / "hf")
    import_hf(folder / "hf", folder / "ck", layout=Layout())
    return folder


@torch.no_grad()
def logits(model, **kwargs) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS, **kwargs).logits


@pytest.mark.parametrize("adapter", [LORA, RS_LORA, DORA, IA3], ids=["lora", "rs", "dora", "ia3"])
def test_peft_merged_and_mixture_are_one_model(tmp_path, base, adapter):
    ck = adapter_checkpoint(
        tmp_path / "ck", base=base / "ck", extensions=record(adapter), layout=Layout(tp_size=2, pp_size=2)
    )
    export_peft(ck, tmp_path / "peft")
    export_hf(ck, tmp_path / "merged", merge=True)
    assemble(ck, tmp_path / "whole")

    plain = logits(LlamaForCausalLM.from_pretrained(base / "hf"))
    peft = logits(PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base / "hf"), tmp_path / "peft"))
    merged = logits(LlamaForCausalLM.from_pretrained(tmp_path / "merged"))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", trust_remote_code=True)

    assert (peft - plain).abs().max() > 0.1
    torch.testing.assert_close(merged, peft, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(whole), peft, rtol=1e-4, atol=1e-4)
    whole.set_adapter(None)
    torch.testing.assert_close(logits(whole), plain, rtol=1e-4, atol=1e-4)
