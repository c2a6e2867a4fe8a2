"""Next-token decoding of a mixture of N adapters over N decodings with one adapter each, batch 1, with a KV cache.

    python benchmarks/mixture_decode.py                          # SmolLM2-135M's shape, N = 4, adapters on all layers
    python benchmarks/mixture_decode.py --folder out/mixture     # a folder of `convert export --as mixture`

The mixture is the exported folder, opened by transformers. The alternative is the fastest that there is without it: a
plain LlamaForCausalLM of the same shape, as one merged adapter gives, run N times. Both decode as many tokens after the
same prompt, which is not counted, in turns, in one process; medians. The mixture reads the base's weights once a
token, N runs read them N times. Bound: 0.6.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.live_runs import write_tokens

BOUND = 0.6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="an exported mixture; default: one that is made for this")
    parser.add_argument("--adapters", type=int, default=4, help="N, of the mixture that is made")
    parser.add_argument("--last", type=int, help="its adapters are on this many last layers only; default: on all")
    parser.add_argument("--weights", choices=("prior", "posterior", "gate"), default="posterior")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens decoded each time")
    parser.add_argument("--repeat", type=int, default=5, help="timed decodings of each, after one of warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU seconds, not wall: for a busy machine")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or make_mixture(Path(scratch), args)
        result = measure(folder, args)
    if args.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:24s} {value:12.4g}")


def make_mixture(folder: Path, args: argparse.Namespace) -> Path:
    """Train one step from random weights, and export."""
    write_tokens(folder / "tokens")
    layers = "all" if args.last is None else {"last": args.last}
    options = {"rank": 8, "layers": layers}
    adapters = [{"name": f"a{n}", "kind": "lora", "options": options} for n in range(args.adapters)]
    mixture = {"weights": args.weights, "objective": "joint"} | ({"gate": "linear"} if args.weights == "gate" else {})
    spec = {
        "version": 1,
        "name": "decode",
        "model": {"kind": "preset", "name": "smollm2-135m"},
        "data": {"kind": "indexed", "blend": [{"path": "tokens"}], "seq_length": 16},
        "adapters": adapters,
        "mixture": mixture,
        "train": {"steps": 1},
        "batch": {"global": 1, "micro": 1},
        "engine": {"kind": "megatron"},
        "optimizer": {"lr": 1e-3},
        "precision": {"compute": "fp32"},
        "cluster": {"device": "cpu", "devices_per_node": 1},
        "launcher": {"kind": "local", "threads_per_process": args.threads},
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "llama_scale"]
    launch = [*command, "launch", "spec.yaml", "--runs-dir", "runs"]
    run = subprocess.run(launch, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    export = [*command, "convert", "export", "--from", run, "--to", "mixture", "--as", "mixture"]
    subprocess.run(export, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "mixture"


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return medians of both sides and their ratio."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    mixture = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    count = len(mixture.adapter_names)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True).to_dict()
    known = LlamaConfig().to_dict().keys() - {"architectures", "model_type", "auto_map"}
    single = LlamaForCausalLM(LlamaConfig(**{key: config[key] for key in known & config.keys()})).eval()
    prompt = torch.randint(3, 90, (1, args.prompt), generator=torch.Generator().manual_seed(0))

    def seconds(model: Any, times: int, tokens: int) -> float:
        start = clock()
        for _ in range(times):
            made = model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
            assert made.shape == (1, args.prompt + tokens)
        return clock() - start

    def decoding(model: Any, times: int) -> float:
        """Seconds of the tokens after the first one, which comes with the prompt's forward pass."""
        return seconds(model, times, args.tokens + 1) - seconds(model, times, 1)

    both: list[tuple[float, float]] = []
    for turn in range(args.repeat + 1):
        ours, theirs = decoding(mixture, 1), decoding(single, count)
        if turn:
            both.append((ours, theirs))
    ours, theirs = (statistics.median(times) for times in zip(*both, strict=True))
    return {
        "adapters": count,
        "mixture_s": ours,
        "separate_runs_s": theirs,
        "ratio": ours / theirs,
        "ratio_bound": BOUND,
        "mixture_ms_per_token": 1000 * ours / args.tokens,
    }


if __name__ == "__main__":
    main()
