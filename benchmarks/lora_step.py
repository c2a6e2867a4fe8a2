"""A LoRA training step over PEFT's on the same model and batch: seconds a step and peak memory, one process each.

    python benchmarks/lora_step.py                      # the closing note's figure: SmolLM2-135M's shape
    python benchmarks/lora_step.py --last 8 --targets q_proj,v_proj --json

Each side is a process of its own, so that its peak resident memory is its own; they take turns step by step on the
same tokens, so that other load on the machine weighs on both alike. Medians are compared. Both train fp32 adapters on
a frozen fp32 base with torch's fused AdamW and gradient clipping.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SIDES = ("ours", "peft")


def main() -> None:
    """Measure and print, or be one of the two sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--ffn", type=int, default=1536)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", default="all-linear", help="all-linear, or names with commas between them")
    parser.add_argument("--last", type=int, help="adapters on this many last layers only; default: on all")
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each, after two of warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU seconds, not wall: for a busy machine")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side is not None:
        serve(args)
        return
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:24s} {value:12.4g}")


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Return medians of both sides, their ratios and the losses of the last step."""
    workers = {side: _start(side) for side in SIDES}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    last: dict[str, dict[str, float]] = {}
    for step in range(args.steps + 2):
        # Whoever goes first finds other caches: take turns at that too.
        for side in SIDES if step % 2 else SIDES[::-1]:
            last[side] = _ask(workers[side])
            if step >= 2:
                times[side].append(last[side]["seconds"])
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    median = {side: statistics.median(values) for side, values in times.items()}
    return {
        "ours_step_s": median["ours"],
        "peft_step_s": median["peft"],
        "time_ratio": median["ours"] / median["peft"],
        "ours_peak_mb": last["ours"]["peak_mb"],
        "peft_peak_mb": last["peft"]["peak_mb"],
        "memory_ratio": last["ours"]["peak_mb"] / last["peft"]["peak_mb"],
        "ours_last_loss": last["ours"]["loss"],
        "peft_last_loss": last["peft"]["loss"],
    }


def _start(side: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], "--side", side],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _ask(worker: subprocess.Popen[str]) -> dict[str, float]:
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write("step\n")
    worker.stdin.flush()
    answer: dict[str, float] = json.loads(worker.stdout.readline())
    return answer


def serve(args: argparse.Namespace) -> None:
    """Do a step for each line of stdin and answer with its seconds, loss and the peak of resident memory so far."""
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    import torch

    torch.set_num_threads(args.threads)
    step = _ours(args) if args.side == "ours" else _peft(args)
    generator = torch.Generator().manual_seed(0)
    clock = time.process_time if args.cpu_time else time.perf_counter
    for _ in sys.stdin:
        tokens = torch.randint(args.vocab, (args.batch, args.seq + 1), generator=generator)
        begin = clock()
        loss = step(tokens)
        seconds = clock() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "loss": loss, "peak_mb": peak}), flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ours(args: argparse.Namespace) -> Callable[[Any], float]:
    import torch

    from llama_scale.plan.run_plan import make_plan
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.distributed import initialize
    from llama_scale.train.engine import make_engine

    layers = "all" if args.last is None else {"last": args.last}
    targets = args.targets if args.targets == "all-linear" else args.targets.split(",")
    spec = RunSpec.model_validate(
        {
            "version": 1,
            "name": "lora-step",
            "model": {
                "kind": "inline",
                "hidden_size": args.hidden,
                "ffn_hidden_size": args.ffn,
                "num_layers": args.layers,
                "num_heads": args.heads,
                "num_kv_heads": args.kv_heads,
                "head_dim": args.hidden // args.heads,
                "vocab_size": args.vocab,
                "tie_word_embeddings": True,
            },
            "data": {"kind": "indexed", "blend": ({"path": "/none"},), "seq_length": args.seq},
            "train": {"steps": 1},
            "batch": {"global": args.batch, "micro": args.batch, "accumulation": 1},
            "engine": {"kind": "megatron", "distributed_optimizer": False},
            "precision": {"compute": "fp32"},
            "cluster": {"nodes": 1, "devices_per_node": 1, "device": "cpu"},
            "adapters": (
                {
                    "name": "a",
                    "kind": "lora",
                    "options": {"rank": args.rank, "alpha": 16, "targets": targets, "layers": layers},
                },
            ),
        }
    )
    plan = make_plan(spec)
    initialize(plan.topology, device="cpu", timeout_s=60, virtual_stages=1)
    engine = make_engine(spec, plan)

    def step(tokens: torch.Tensor) -> float:
        micro = {
            "tokens": tokens[:, :-1].contiguous(),
            "labels": tokens[:, 1:].contiguous(),
            "loss_mask": torch.ones(args.batch, args.seq),
            "position_ids": torch.arange(args.seq).expand(args.batch, -1),
        }
        return engine.train_step([micro], 1e-3).loss  # type: ignore[list-item]

    return step


def _peft(args: argparse.Namespace) -> Callable[[Any], float]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=args.hidden,
        intermediate_size=args.ffn,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        vocab_size=args.vocab,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.rank,
        lora_alpha=16,
        target_modules=args.targets if args.targets == "all-linear" else args.targets.split(","),
        layers_to_transform=None if args.last is None else list(range(args.layers - args.last, args.layers)),
    )
    model = get_peft_model(LlamaForCausalLM(config), lora)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)

    def step(tokens: torch.Tensor) -> float:
        optimizer.zero_grad()
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


if __name__ == "__main__":
    main()
