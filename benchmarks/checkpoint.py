"""Time and bytes of a checkpoint: our format against torch.save, torch.distributed.checkpoint and Megatron-Core's.

    .venv/bin/python benchmarks/checkpoint.py [--mib 512] [--ranks 2] [--repeats 3] [--folder DIR]

Every way saves the same state (fp32 weights and two AdamW moments, cut evenly over the ranks) and flushes it to the
disk. The baseline is what integrity costs at least: torch.save + fsync + SHA-256 of the same bytes. Prints one JSON
object; times are medians in seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing as mp
import os
import shutil
import socket
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama_scale.checkpoint.manifest import load_manifest, verify_files
from llama_scale.checkpoint.pieces import Piece
from llama_scale.checkpoint.reader import CheckpointReader
from llama_scale.checkpoint.writer import WrittenShard, build_manifest
from llama_scale.layout.boxes import Box
from llama_scale.spec.model import ModelShape
from llama_scale.train.engine import LocalPiece
from llama_scale.train.saving import BackgroundSave, HostBuffers, Ranks, SaveRequest, write_checkpoint

ROWS, COLUMNS = 1024, 1024  # of one rank's part of a tensor: 4 MiB
SHAPE = ModelShape(
    hidden_size=8, ffn_hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, vocab_size=8
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every rank needs: its state, the group and the folder."""

    state: dict[str, torch.Tensor]
    ranks: Ranks
    folder: Path

    def pieces(self) -> list[LocalPiece]:
        """Return the state as an engine yields it: one row block of each tensor."""
        found = []
        for key, tensor in self.state.items():
            group, name = key.split("/")
            box = Box((self.ranks.rank * ROWS, 0), (ROWS, COLUMNS))
            shape = (self.ranks.size * ROWS, COLUMNS)
            found.append(
                LocalPiece(group=group, name=name, global_shape=shape, box=box, flat_start=None, tensor=tensor)
            )
        return found

    def request(self, name: str) -> SaveRequest:
        """Describe a save into a folder of this name."""
        facts = {"step": 1, "samples": 1, "engine": "bench", "topology": {"tp_size": self.ranks.size}, "shape": SHAPE}
        root = self.folder / name
        return SaveRequest(
            final=root / "step-00000001",
            tmp=root / "step-00000001.tmp-0a",
            keep_last=1,
            keep_best=False,
            facts=facts,
        )


def baseline(job: Job) -> None:
    """Save with torch.save, flush, and hash the same bytes."""
    path = job.folder / f"plain-{job.ranks.rank}.pt"
    with path.open("wb") as file:
        torch.save(job.state, file)
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb", buffering=0) as file:
        hashlib.file_digest(file, "sha256")


def ours(job: Job) -> None:
    """Save in our format."""
    problem = write_checkpoint(job.request("ours"), job.pieces(), job.ranks)
    assert problem is None, problem


def torch_dcp(job: Job) -> None:
    """Save with torch.distributed.checkpoint (its files are flushed; it keeps no hashes)."""
    import torch.distributed.checkpoint as dcp

    state = {f"rank{job.ranks.rank}/{key}": tensor for key, tensor in job.state.items()}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(job.folder / "dcp"), no_dist=job.ranks.size == 1)


def megatron(job: Job) -> None:
    """Save with Megatron-Core's dist_checkpointing (torch_dist; no hashes)."""
    from megatron.core import dist_checkpointing

    from llama_scale.train import cpu

    cpu.adapt()
    state = {
        key: dist_checkpointing.ShardedTensor.from_rank_offsets(key, tensor, (0, job.ranks.rank, job.ranks.size))
        for key, tensor in job.state.items()
    }
    folder = job.folder / "megatron"
    folder.mkdir(exist_ok=True)
    dist_checkpointing.save(state, str(folder))


def timed(job: Job, ways: dict[str, Callable[[Job], None]], *, repeats: int) -> dict[str, dict[str, Any]]:
    """Return each way's median time until all ranks are done, and its bytes; the ways take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    sizes: dict[str, int] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            job.ranks.first_error(None)
            if job.ranks.rank == 0:
                for path in job.folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                os.sync()
            job.ranks.first_error(None)
            started = time.perf_counter()
            way(job)
            job.ranks.first_error(None)
            times[name].append(time.perf_counter() - started)
            sizes[name] = folder_bytes(job.folder)
    return {
        name: {"seconds": round(statistics.median(values), 3), "bytes": sizes[name]} for name, values in times.items()
    }


def background(job: Job, *, repeats: int) -> dict[str, float]:
    """Return how long training stands still for a save in the background, the first time and later."""
    buffers = HostBuffers()
    buffers.reserve(job.pieces())
    time.sleep(1.0)  # a run trains before it saves
    pauses = []
    for index in range(repeats + 1):
        started = time.perf_counter()
        copies = buffers.snapshot(job.pieces())
        save = BackgroundSave(job.request(f"background-{index}"), copies, job.ranks)
        pauses.append(time.perf_counter() - started)
        assert save.wait() is None
    return {"first_pause_s": pauses[0], "pause_s": statistics.median(pauses[1:])}


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(rank: int, args: argparse.Namespace, port: int, folder: Path, sink: Any) -> None:
    """Measure everything, as one rank."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(args.ranks), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    dist.init_process_group("gloo")
    count = max(1, args.mib // args.ranks // 4 // 3)
    generator = torch.Generator().manual_seed(rank)
    state = {
        f"{group}/w{index:04d}": torch.randn(ROWS, COLUMNS, generator=generator)
        for index in range(count)
        for group in ("model", "exp_avg", "exp_avg_sq")
    }
    job = Job(state=state, ranks=Ranks(), folder=folder)
    result: dict[str, Any] = {"ranks": args.ranks, "state_bytes": count * 3 * ROWS * COLUMNS * 4 * args.ranks}
    ways: dict[str, Callable[[Job], None]] = {"baseline": baseline, "torch_dcp": torch_dcp, "megatron": megatron}
    result |= timed(job, ways | {"ours": ours}, repeats=args.repeats)  # ours last: its files are read below
    checkpoint = folder / "ours" / "step-00000001"
    result["ours"]["manifest_bytes"] = (checkpoint / "manifest.json").stat().st_size
    result["ours_over_baseline"] = round(result["ours"]["seconds"] / result["baseline"]["seconds"], 3)
    started = time.perf_counter()
    verify_files(checkpoint, shards=load_manifest(checkpoint).shards[rank :: args.ranks])
    result["verify_s"] = round(time.perf_counter() - started, 3)
    started = time.perf_counter()
    reader = CheckpointReader(checkpoint)
    for key, tensor in state.items():
        group, name = key.split("/")
        reader.read(group, name, Box((rank * ROWS, 0), (ROWS, COLUMNS)), out=tensor)
    result["read_own_part_s"] = round(time.perf_counter() - started, 3)
    result["background"] = background(job, repeats=args.repeats)
    result["pause_over_synchronous"] = round(result["background"]["pause_s"] / result["ours"]["seconds"], 3)
    if rank == 0:
        sink.put(result)


def large_manifest(*, dp_size: int, tp_size: int, pp_size: int, layers: int) -> dict[str, Any]:
    """Build and read the manifest of a run of many ranks with a distributed optimizer, without the data."""
    names = [f"decoder.layers.{layer}.mlp.linear_fc1.weight{i}" for layer in range(layers) for i in range(6)]
    per_stage = len(names) // pp_size
    shards = []
    for rank in range(dp_size * tp_size * pp_size):
        tp_rank, rest = rank % tp_size, rank // tp_size
        dp_rank, pp_rank = rest % dp_size, rest // dp_size
        held = names[pp_rank * per_stage : (pp_rank + 1) * per_stage]
        pieces, tensors = {}, {}
        numel = 1024 * 128
        cut = numel * len(held) // dp_size
        for index, name in enumerate(held):
            box = Box((tp_rank * 1024, 0), (1024, 128))
            tensor = ((tp_size * 1024, 128), "float32")
            ident = ("model", name)
            if index % dp_size == dp_rank:
                key = Piece(group="model", name=name, box=box, flat_start=None, numel=numel).key
                pieces[key], tensors[ident] = "0" * 16, tensor
            start = max(0, dp_rank * cut - index * numel)
            stop = numel if dp_rank == dp_size - 1 else min(numel, (dp_rank + 1) * cut - index * numel)
            for group in ("master", "exp_avg", "exp_avg_sq") if stop > start else ():
                piece = Piece(group=group, name=name, box=box, flat_start=start, numel=stop - start)
                pieces[piece.key], tensors[group, name] = "0" * 16, tensor
        entry = {"file": f"shard-{rank:05d}.safetensors", "bytes": 1, "sha256": "0" * 64, "pieces": pieces}
        shards.append(WrittenShard(entry=_entry(entry), tensors=tensors))
    started = time.perf_counter()
    topology = {"dp_size": dp_size, "tp_size": tp_size, "pp_size": pp_size}
    manifest = build_manifest(shards, step=1, samples=1, engine="bench", topology=topology, shape=SHAPE)
    text = manifest.model_dump_json()
    built = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_text(text)
        started = time.perf_counter()
        loaded = load_manifest(Path(folder))
        parsed = time.perf_counter() - started
    started = time.perf_counter()
    located = len(loaded.locations)
    return {
        "ranks": len(shards),
        "pieces": sum(len(shard.entry.pieces) for shard in shards),
        "tensors": located,
        "bytes": len(text),
        "build_s": round(built, 2),
        "load_s": round(parsed, 2),
        "index_s": round(time.perf_counter() - started, 2),
    }


def _entry(row: dict[str, Any]) -> Any:
    from llama_scale.checkpoint.manifest import ShardEntry

    return ShardEntry.model_validate(row)


def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512, help="size of the state over all ranks")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a temporary folder)")
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        sink = context.Queue()
        workers = [
            context.Process(target=measure, args=(rank, args, port, Path(folder), sink)) for rank in range(args.ranks)
        ]
        for worker in workers:
            worker.start()
        result = sink.get()
        for worker in workers:
            worker.join()
    result["manifest_at_16384_ranks"] = large_manifest(dp_size=128, tp_size=8, pp_size=16, layers=128)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
