"""The import of Megatron-Core: quiet, quick, and torch as it was before."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

PROBE = """
import sys, torch
before = torch.compile
import llama_scale.train.model
assert torch.compile is before
print("compiler" if "torch._dynamo" in sys.modules else "no compiler")
from megatron.core.fusions.fused_bias_swiglu import swiglu
x = torch.tensor([[1.0, 2.0]])
assert torch.allclose(swiglu(x), torch.nn.functional.silu(x[:, :1]) * x[:, 1:])
import llama_scale.train.optimizer
print("compiler" if "torch._dynamo" in sys.modules else "no compiler")
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build keeps torch.compile")
def test_import_loads_no_compiler_until_there_is_an_optimizer() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["no compiler", "compiler"]
