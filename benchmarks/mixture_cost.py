"""Cost of a mixture of N adapters on the last k layers: over one forward pass of the base, and over N adapter runs.

    python benchmarks/mixture_cost.py                   # the closing note's figures
    python benchmarks/mixture_cost.py --last 12 --cpu-time --json

* forward: the mixture's loss over the base's on the same samples. The trunk runs once; the last k layers and the output
  layer run N times. Bound: 1.15 x [(1 - h)(1 + (N - 1) k / L) + N h], h being the output layer's share of the FLOPs.
* training: forward and backward of the mixture over N runs of one adapter each, on the same samples. Bound: 1.0.

All take turns, step by step, in one process, so that other load on the machine weighs on them alike; medians.
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

FORWARD_SLACK, TRAINING_BOUND = 1.15, 1.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--ffn", type=int, default=1536)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--last", type=int, default=3, help="k: layers that the adapters touch")
    parser.add_argument("--adapters", type=int, default=4, help="N")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--weights", choices=("prior", "posterior", "gate"), default="prior")
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each, after two of warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU seconds, not wall: for a busy machine")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:32s} {value:12.4g}" if isinstance(value, float) else f"{key:32s} {value}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return medians, ratios and what they may be."""
    import torch

    from llama_scale.plan.run_plan import make_plan
    from llama_scale.train.distributed import initialize

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    names = [f"a{number}" for number in range(args.adapters)]
    plan = make_plan(_spec(args, ()))
    initialize(plan.topology, device="cpu", timeout_s=60)
    base, single, mixture = (_chunk(_spec(args, chosen)) for chosen in ((), names[:1], names))

    def separate(batch: Any) -> None:
        for _ in names:
            _train(single, batch)

    times = _times(
        args,
        {
            "base_forward": lambda batch: _forward(base, batch),
            "mixture_forward": lambda batch: _forward(mixture, batch),
            "mixture_training": lambda batch: _train(mixture, batch),
            "separate_training": separate,
        },
    )
    share, flops = _flop_ratio(args, plan.shape)
    forward = times["mixture_forward"] / times["base_forward"]
    training = times["mixture_training"] / times["separate_training"]
    return {
        **{f"{name}_s": value for name, value in times.items()},
        "head_share_of_flops": share,
        "forward_ratio": forward,
        "forward_flop_ratio": flops,
        "forward_bound": FORWARD_SLACK * flops,
        "forward_holds": forward <= FORWARD_SLACK * flops,
        "training_ratio": training,
        "training_bound": TRAINING_BOUND,
        "training_holds": training <= TRAINING_BOUND,
    }


def _flop_ratio(args: argparse.Namespace, shape: Any) -> tuple[float, float]:
    """Return the output layer's share h of a forward pass, and (1 - h)(1 + (N - 1) k / L) + N h."""
    from llama_scale.plan.flops import attention_flops_per_token, matmul_flops_per_token

    whole = matmul_flops_per_token(shape) + attention_flops_per_token(shape, args.seq, convention="causal")
    h = 2 * shape.hidden_size * shape.vocab_size / whole
    return h, (1 - h) * (1 + (args.adapters - 1) * args.last / args.layers) + args.adapters * h


def _times(args: argparse.Namespace, ways: dict[str, Callable[[Any], None]]) -> dict[str, float]:
    import torch

    clock = time.process_time if args.cpu_time else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(args.steps + 2):
        tokens = torch.randint(args.vocab, (args.batch, args.seq + 1))
        batch = {
            "tokens": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "loss_mask": torch.ones(args.batch, args.seq),
            "position_ids": torch.arange(args.seq).expand(args.batch, -1),
        }
        # Whoever goes first finds other caches: take turns at that too.
        for name in list(ways)[:: 1 if step % 2 else -1]:
            begin = clock()
            ways[name](batch)
            if step >= 2:
                found[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in found.items()}


def _forward(chunk: Any, batch: Any) -> None:
    import torch

    with torch.no_grad():
        chunk(batch)


def _train(chunk: Any, batch: Any) -> None:
    chunk(batch).backward()
    for parameter in chunk.parameters():
        parameter.grad = None


def _chunk(spec: Any) -> Any:
    from llama_scale.plan.run_plan import make_plan
    from llama_scale.train.model import build_chunks

    plan = make_plan(spec)
    [chunk] = build_chunks(spec, plan, plan.topology.coordinates(0))
    return chunk


def _spec(args: argparse.Namespace, adapters: Any) -> Any:
    from llama_scale.spec.run import RunSpec

    options = {"rank": args.rank, "layers": {"last": args.last}}
    mixture = {"weights": args.weights, "objective": "joint", "gate": "linear" if args.weights == "gate" else None}
    return RunSpec.model_validate(
        {
            "version": 1,
            "name": "mixture-cost",
            "model": {
                "kind": "inline",
                "hidden_size": args.hidden,
                "ffn_hidden_size": args.ffn,
                "num_layers": args.layers,
                "num_heads": 9,
                "num_kv_heads": 3,
                "head_dim": args.hidden // 9,
                "vocab_size": args.vocab,
            },
            "data": {"kind": "indexed", "blend": ({"path": "/none"},), "seq_length": args.seq},
            "train": {"steps": 1},
            "batch": {"global": args.batch, "micro": args.batch, "accumulation": 1},
            "engine": {"kind": "megatron", "distributed_optimizer": False},
            "precision": {"compute": "fp32"},
            "cluster": {"nodes": 1, "devices_per_node": 1, "device": "cpu"},
            "adapters": tuple({"name": name, "kind": "lora", "options": options} for name in adapters),
            "mixture": mixture if len(adapters) > 1 else None,
        }
    )


if __name__ == "__main__":
    main()
