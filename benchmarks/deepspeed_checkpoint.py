"""Our checkpoint of a DeepSpeed run against DeepSpeed's own, and what a change of layout takes with each.

    python benchmarks/deepspeed_checkpoint.py [--zero 1] [--layers 8] [--hidden 512]

Saves the same ZeRO state on two ranks in both formats. To go on with another number of ranks, DeepSpeed's needs a
conversion to its universal format (one more command, one more copy); ours is read as it is. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the ranks are the tests'
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from tests.engines.harness import run_ranks  # noqa: E402
from tests.engines.specs import Case  # noqa: E402
from tests.engines.training import micro_batches, start  # noqa: E402


def save_both(case: Case, folder: Path) -> dict[str, float]:
    """Train a step and save it in both formats; return this rank's seconds."""
    import torch.distributed as dist

    from llama_scale.train.checkpointing import Checkpointer, Position
    from llama_scale.train.deepspeed_import import quiet

    engine = start(case)
    engine.train_step(micro_batches(case, step=0, dp_rank=engine.coordinates.dp_rank), 1e-4)
    checkpointer = Checkpointer(folder / "ours", spec=case.spec(), plan=case.plan())
    seconds = {}
    for name in ("first", "ours", "deepspeed"):  # the first one only warms up
        dist.barrier()
        begin = time.perf_counter()
        if name == "deepspeed":
            with quiet():
                engine._engine.save_checkpoint(str(folder / "deepspeed"))
            os.sync()  # ours is flushed to the disk, too
        else:
            step = 1 if name == "first" else 2
            checkpointer.save(engine, Position(step=step, samples=step * case.global_batch), final=True)
        dist.barrier()
        seconds[name] = time.perf_counter() - begin
    checkpointer.close()
    return seconds


def load_ours(case: Case, folder: Path) -> float:
    """Go on from ours; return seconds, the hashing of every file included."""
    from llama_scale.train.checkpointing import Checkpointer

    engine = start(case)
    checkpointer = Checkpointer(folder / "ours", spec=case.spec(), plan=case.plan())
    begin = time.perf_counter()
    checkpointer.resume(engine)
    return time.perf_counter() - begin


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def to_universal(folder: Path) -> float:
    """Convert DeepSpeed's checkpoint to its universal format; return seconds."""
    import torch

    (source,) = (folder / "deepspeed").glob("global_step*")
    for path in source.glob("mp_rank_*_model_states.pt"):
        # Megatron-Core's layers have empty extra state, at which the converter stops (AttributeError).
        state = torch.load(path, weights_only=True)
        state["module"] = {name: tensor for name, tensor in state["module"].items() if tensor is not None}
        torch.save(state, path)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(source)]
    command += ["--output_folder", str(folder / "universal"), "--inject_missing_state"]
    begin = time.perf_counter()
    command += ["--num_extract_workers", "2", "--num_merge_workers", "1"]
    done = subprocess.run(
        command, env={**os.environ, "DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    options = parser.parse_args()
    shape = {"hidden_size": options.hidden, "ffn_hidden_size": 3 * options.hidden, "num_layers": options.layers}
    shape |= {"num_heads": 8, "num_kv_heads": 4, "head_dim": options.hidden // 8, "vocab_size": 4096}
    case = Case(dp=2, shape=shape, engine={"kind": "deepspeed", "zero": options.zero})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = run_ranks(2, save_both, case, folder)[0]
        result: dict[str, Any] = {
            "load_average": round(os.getloadavg()[0], 1),
            "ours": {
                "save_s": round(seconds["ours"], 2),
                "bytes": folder_bytes(folder / "ours" / "step-00000002"),
                "load_on_4_ranks_s": round(
                    run_ranks(4, load_ours, Case(dp=4, shape=shape, engine=case.engine), folder)[0], 2
                ),
            },
            "deepspeed": {"save_s": round(seconds["deepspeed"], 2), "bytes": folder_bytes(folder / "deepspeed")},
        }
        result["deepspeed"]["to_universal_s"] = round(to_universal(folder), 2)
        result["deepspeed"]["universal_bytes"] = folder_bytes(folder / "universal")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
