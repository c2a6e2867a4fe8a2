"""Run the two models of a verification on the same prompts: the sharded one in processes, transformers' one here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llama_scale.convert.folders import read_json
from llama_scale.convert.hf_config import CONFIG, GENERATION_CONFIG, named_stops
from llama_scale.convert.request import Request
from llama_scale.errors import ConvertError

Prompts = dict[str, torch.Tensor]
"""Prompt -> int64 token ids ``[1, seq]``."""

Results = dict[str, torch.Tensor]
"""``logits/PROMPT`` fp32 ``[1, seq, vocab]`` and ``tokens/PROMPT`` int64 ``[new]``."""

_TAIL_LINES = 12


def save_prompts(prompts: Prompts, path: Path) -> None:
    """Write prompts for the sharded model's processes."""
    save_file({name: tokens.clone() for name, tokens in prompts.items()}, str(path))


@contextlib.contextmanager
def sharded_model(request: Request, *, folder: Path) -> Iterator[None]:
    """Run the sharded model in processes of its own while the body runs, and wait for it at the end.

    Args:
        request: What to compute; the results are in ``request.out`` afterwards.
        folder: For the request file and the processes' log.

    Raises:
        ConvertError: A rank failed; the message ends with what it said last.
    """
    path, log = folder / "request.json", folder / "forward.log"
    path.write_text(request.to_json(), encoding="utf-8")
    # CPU only: on CUDA the model would compute in TF32 or on other kernels than the reference.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a fresh install would be compiled anew at every start
    with log.open("wb") as stream:
        command = [sys.executable, "-P", "-m", "llama_scale.train.forward", str(path)]
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)
        try:
            yield
            status = process.wait()
        finally:
            if process.poll() is None:
                _kill_group(process)
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise ConvertError(f"the sharded model could not be run (exit status {status}):\n{tail}")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and the ranks it forked."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def reference_results(model: Any, prompts: Prompts, *, stop: Sequence[int], generate: int) -> Results:
    """Run a model of transformers or PEFT in fp32 on the prompts.

    Args:
        model: It may have been loaded in bf16.
        prompts: The prompts.
        stop: Tokens that end a continuation.
        generate: Greedy tokens to add to each prompt; 0: none.
    """
    model = model.float().eval()
    settings = generation_settings(model, stop=stop, max_new_tokens=max(1, generate), do_sample=False, pad_token_id=0)
    results: Results = {}
    with torch.no_grad():
        for name, tokens in prompts.items():
            results[f"logits/{name}"] = model(input_ids=tokens, use_cache=False).logits.float()
            if generate:
                mask = torch.ones_like(tokens)
                made = model.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)
                results[f"tokens/{name}"] = made[0, tokens.shape[1] :]
    return results


def stop_ids(hf: Path) -> tuple[int, ...]:
    """Return the ids at which transformers' ``generate`` ends a text with a folder's model.

    Raises:
        ConvertError: They are no ids.
    """
    generation = read_json(hf / GENERATION_CONFIG)  # where it is, config.json does not count
    return named_stops(read_json(hf / CONFIG) if generation is None else generation)


def generation_settings(model: Any, *, stop: Sequence[int], **settings: Any) -> Any:
    """Return transformers' settings of one generation, and keep the folder's own from filling in what is left out.

    ``generate`` takes from ``model.generation_config`` whatever the given settings do not say: a penalty there would
    change which token is the likeliest.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    return GenerationConfig(eos_token_id=list(stop) or None, **settings)
