"""Tokens per second of the Megatron engine over transformers' LlamaForCausalLM with fused AdamW, in one process.

    python benchmarks/throughput.py                     # the closing note's figure
    python benchmarks/throughput.py --vocab 8192 --json

The two take turns, step by step, in the same process on the same samples, so that other load on the machine weighs on
both alike; medians are compared. The share of the machine's fp32 matrix product rate is measured beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=1376)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each, after two of warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU seconds, not wall: for a busy machine")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:32s} {value:12.4g}" if isinstance(value, float) else f"{key:32s} {value}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return medians of both, their ratio and the share of the matrix product rate."""
    import torch

    torch.set_num_threads(args.threads)
    ours = _ours(args)
    theirs = _theirs(args)
    generator = torch.Generator().manual_seed(0)

    def batch() -> torch.Tensor:
        return torch.randint(args.vocab, (args.batch, args.seq + 1), generator=generator)

    clock = time.process_time if args.cpu_time else time.perf_counter
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "matmul": []}
    losses: dict[str, float] = {}
    for step in range(args.steps + 2):
        tokens = batch()
        # Whoever goes first finds other caches: take turns at that too.
        order: list[tuple[str, Callable[[Any], float]]] = [("ours", ours), ("theirs", theirs)]
        for name, function in order if step % 2 else order[::-1]:
            begin = clock()
            losses[name] = function(tokens)
            elapsed = clock() - begin
            if step >= 2:
                times[name].append(elapsed)
        times["matmul"].append(_matmul_seconds(args, clock))
    tokens_per_step = args.batch * args.seq
    median = {name: statistics.median(values) for name, values in times.items()}
    flops = _flops(args)
    rate = 2 * tokens_per_step * args.hidden * args.ffn / median["matmul"]
    return {
        "ours_tokens_per_s": tokens_per_step / median["ours"],
        "transformers_tokens_per_s": tokens_per_step / median["theirs"],
        "ratio": median["theirs"] / median["ours"],
        "best_ratio": min(times["theirs"]) / min(times["ours"]),
        "matmul_gflops": rate / 1e9,
        "share_of_matmul_rate": flops / median["ours"] / rate,
        "last_loss_ours": losses["ours"],
        "last_loss_transformers": losses["theirs"],
    }


def _flops(args: argparse.Namespace) -> float:
    """Matrix products of forward and backward pass; causal attention counts half of its square."""
    tokens = args.batch * args.seq
    head_dim = args.hidden // 8
    weights = args.layers * (
        2 * args.hidden * args.hidden + 2 * args.hidden * args.kv_heads * head_dim + 3 * args.hidden * args.ffn
    )
    attention = args.layers * 2 * args.hidden * args.seq / 2
    return 3 * 2 * tokens * (weights + args.hidden * args.vocab + attention)


def _matmul_seconds(args: argparse.Namespace, clock: Callable[[], float]) -> float:
    import torch

    a = torch.randn(args.batch * args.seq, args.hidden)
    b = torch.randn(args.ffn, args.hidden)
    a @ b.t()
    begin = clock()
    for _ in range(5):
        a @ b.t()
    return (clock() - begin) / 5


def _spec(args: argparse.Namespace) -> Any:
    from llama_scale.spec.run import RunSpec

    return RunSpec.model_validate(
        {
            "version": 1,
            "name": "throughput",
            "model": {
                "kind": "inline",
                "hidden_size": args.hidden,
                "ffn_hidden_size": args.ffn,
                "num_layers": args.layers,
                "num_heads": 8,
                "num_kv_heads": args.kv_heads,
                "head_dim": args.hidden // 8,
                "vocab_size": args.vocab,
            },
            "data": {"kind": "indexed", "blend": ({"path": "/none"},), "seq_length": args.seq},
            "train": {"steps": 1},
            "batch": {"global": args.batch, "micro": args.batch, "accumulation": 1},
            "engine": {"kind": "megatron", "distributed_optimizer": False},
            "precision": {"compute": "fp32"},
            "cluster": {"nodes": 1, "devices_per_node": 1, "device": "cpu"},
        }
    )


def _ours(args: argparse.Namespace) -> Callable[[Any], float]:
    import torch

    from llama_scale.plan.run_plan import make_plan
    from llama_scale.train.distributed import initialize
    from llama_scale.train.engine import make_engine

    spec = _spec(args)
    plan = make_plan(spec)
    initialize(plan.topology, device="cpu", timeout_s=60)
    engine = make_engine(spec, plan)
    ones = torch.ones(args.batch, args.seq)
    positions = torch.arange(args.seq).expand(args.batch, -1)

    def step(tokens: Any) -> float:
        batch = {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "loss_mask": ones, "position_ids": positions}
        return engine.train_step([batch], 3e-4).loss  # type: ignore[list-item]

    return step


def _theirs(args: argparse.Namespace) -> Callable[[Any], float]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=args.hidden,
            intermediate_size=args.ffn,
            num_hidden_layers=args.layers,
            num_attention_heads=8,
            num_key_value_heads=args.kv_heads,
            vocab_size=args.vocab,
            max_position_embeddings=args.seq,
            use_cache=False,
            attn_implementation="sdpa",
        )
    )
    decay = [p for p in model.parameters() if p.dim() > 1]
    no_decay = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}],
        lr=3e-4,
        betas=(0.9, 0.95),
        fused=True,
    )

    def step(tokens: Any) -> float:
        # transformers shifts the labels itself; the last position has none, which makes it one token in 512 cheaper.
        loss = model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


if __name__ == "__main__":
    main()
