"""A real pretrained model: SmolLM2-135M-Instruct, 9 heads, 3 key/value heads, tied, at tensor=3 x pipeline=2."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from llama_scale.convert.export_hf import export_hf
from llama_scale.convert.proof import TOLERANCE
from llama_scale.convert.verify import verify
from llama_scale.data.task_tokenizer import TaskTokenizer
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
    imported, peak_bytes = run_watched(
        *("convert", "import", "--from", str(smollm2), "--to", str(tmp_path / "ck"), "--json"),
        *("--tensor", "3", "--pipeline", "2", "--max-ram", "1.5GB"),
    )
    assert imported["shards"] == 6
    assert imported["verify"]["passed"]
    assert [row["prompt"] for row in imported["verify"]["comparisons"]] == ["random", "text"]
    assert peak_bytes < 1_500_000_000, "of the largest process, proof included"
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
    model, tokenizer = AssembledModel(tmp_path / "out"), TaskTokenizer(tmp_path / "out")
    completions = complete(model, tokenizer, prompts, max_new_tokens=4)
    assert completions[0].text.startswith(" Paris")
    peer, theirs = (
        AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32),
        AutoTokenizer.from_pretrained(smollm2),
    )
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = theirs(prompt, return_tensors="pt")
        generated = peer.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert list(completion.tokens) == generated.tolist()


def run_watched(*arguments: str) -> tuple[dict[str, Any], int]:
    """Run a command; return the JSON it prints and the peak resident bytes of the largest of its processes."""
    command = [sys.executable, "-m", "llama_scale", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            for one in (found := psutil.Process(process.pid), *found.children(recursive=True)):
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{one.pid}/status").read_text()
                    peak = max([peak, *(1024 * int(kib) for kib in re.findall(r"^VmHWM:\s+(\d+) kB", status, re.M))])
        time.sleep(0.02)
    assert process.returncode == 0
    assert process.stdout is not None
    with process.stdout as stream:
        return json.loads(stream.read()), peak


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
