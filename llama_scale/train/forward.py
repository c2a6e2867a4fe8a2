"""Logits and greedy continuations of a checkpoint's sharded model, for `convert verify`.

``python -m llama_scale.train.forward REQUEST.json`` imports everything once, forks one CPU rank (gloo) per tensor and
pipeline rank and writes one safetensors file. It computes in fp32 whatever the weights' format.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from llama_scale.checkpoint.manifest import ExtensionRecord
from llama_scale.convert.request import ADAPTER, FREQUENCIES, MIXED, Request
from llama_scale.convert.weights import Weights
from llama_scale.plan.run_plan import RunPlan, make_plan
from llama_scale.plan.topology import Coordinates
from llama_scale.spec.run import RunSpec
from llama_scale.train import distributed
from llama_scale.train.engine import MicroBatch, Route
from llama_scale.train.forward_weights import load_weights, stream_weights
from llama_scale.train.model import LlamaModel, build_chunks
from llama_scale.train.ports import free_port, rank_variables


def main(argv: Sequence[str] | None = None) -> int:
    """Run a request; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m llama_scale.train.forward", description=__doc__)
    parser.add_argument("request", type=Path, help="JSON of a Request")
    request = Request.from_json(parser.parse_args(argv).request.read_text(encoding="utf-8"))
    world = request.tp_size * request.pp_size
    port = free_port()
    # Kills the others when one fails, and shows the first failure's traceback.
    torch.multiprocessing.start_processes(_rank_main, args=(world, port, request), nprocs=world, start_method="fork")
    return 0


def _rank_main(rank: int, world: int, port: int, request: Request) -> None:
    os.environ |= rank_variables(rank, world=world, port=port)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    results = forward(request)
    if results is not None:
        save_file(results, request.out)


def forward(request: Request) -> dict[str, torch.Tensor] | None:
    """Do this rank's part; the environment names rank and rendezvous.

    Returns:
        The results on the last stage's first tensor rank, None elsewhere.
    """
    weights = Weights(Path(request.checkpoint), base=None if request.base is None else Path(request.base))
    prompts = load_file(request.prompts)
    spec = make_spec(request, weights, seq_length=max(p.shape[1] for p in prompts.values()) + request.generate)
    plan = make_plan(spec)
    coordinates = distributed.initialize(
        plan.topology, device="cpu", timeout_s=request.timeout_s, virtual_stages=request.vp_size
    )
    chunks = build_chunks(spec, plan, coordinates, initialize=False)
    fill = stream_weights if request.stream else load_weights
    fill(chunks, plan, coordinates, weights=weights, dtype=getattr(torch, request.dtype))
    pipeline = Pipeline(chunks, plan, coordinates)
    results: dict[str, torch.Tensor] = {FREQUENCIES: chunks[-1].inverse_frequencies.clone()}
    with torch.no_grad():
        for name, tokens in sorted(prompts.items()):
            pipeline.choose(request.choices[name])
            logits = pipeline.logits(tokens)
            if logits is not None:
                results[f"logits/{name}"] = logits.contiguous()
            if request.generate:
                new = pipeline.continue_greedily(tokens[:1], count=request.generate, stop_ids=request.stop_ids)
                results[f"tokens/{name}"] = torch.tensor(new, dtype=torch.int64)
    distributed.shutdown()
    return results if pipeline.writes_results else None


def make_spec(request: Request, weights: Weights, *, seq_length: int) -> RunSpec:
    """Return the spec of a run that would hold this model in this layout: layers are built from specs alone.

    Task heads are left out: they give no logits.
    """
    manifest = weights.manifest
    extensions = manifest.extensions or ExtensionRecord(seed=0)
    return RunSpec.model_validate(
        {
            "version": 1,
            "name": "verify",
            "seed": extensions.seed,
            "adapters": tuple(adapter.model_dump() | {"task": None} for adapter in extensions.adapters),
            "mixture": None if extensions.mixture is None else extensions.mixture.model_dump(),
            "model": {
                "kind": "inline",
                "vocab_pad_multiple": manifest.vocab_pad_multiple,
                **manifest.shape.model_dump(),
                "rope_scaling": manifest.shape.rope_scaling,
            },
            "data": {"kind": "indexed", "blend": ({"path": "/none"},), "seq_length": seq_length},
            "train": {"steps": 1},
            "batch": {"global": request.pp_size, "micro": 1, "accumulation": request.pp_size},
            "parallel": {
                "tensor": request.tp_size,
                "pipeline": request.pp_size,
                "virtual_stages": request.vp_size,
                "stage_layers": request.stage_layers,
            },
            "engine": {"kind": "megatron", "overlap_p2p": request.vp_size > 1},
            "precision": {"compute": "fp32"},
            "cluster": {"nodes": 1, "devices_per_node": request.tp_size * request.pp_size, "device": "cpu"},
        }
    )


class Pipeline:
    """Run prompts through all stages, forward only, one after the other.

    Args:
        chunks: This rank's chunks.
        plan: The plan.
        coordinates: This rank's place.
    """

    def __init__(self, chunks: Sequence[LlamaModel], plan: RunPlan, coordinates: Coordinates) -> None:
        self._chunks = [chunk.eval() for chunk in chunks]
        self._mixture = chunks[0].mixture_rows
        self._plan = plan
        self._at = coordinates
        self._last = plan.topology.pp_size - 1
        self._adapter: str | None = None

    def choose(self, choice: str) -> None:
        """Be the base, the mixture or one adapter from now on; see ``convert.request``."""
        self._adapter = choice.removeprefix(ADAPTER) if choice.startswith(ADAPTER) else None
        for chunk in self._chunks:
            chunk.mixture_rows = self._mixture if choice == MIXED else None

    @property
    def writes_results(self) -> bool:
        """Whether this rank is the one that keeps the results."""
        return self._at.pp_rank == self._last and self._at.tp_rank == 0

    def logits(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """Return logits (of a mixture: log-probabilities) ``[B, S, V]`` on the last stage's ranks, None elsewhere."""
        batch = self._batch(tokens)
        hidden: torch.Tensor | None = None
        for virtual_rank, chunk in enumerate(self._chunks):
            first = virtual_rank == 0 and self._at.pp_rank == 0
            if not first:
                if self._plan.topology.pp_size > 1:
                    hidden = self._receive()
                chunk.set_input_tensor(hidden)
            output = chunk(batch, with_loss=False)
            if virtual_rank == len(self._chunks) - 1 and self._at.pp_rank == self._last:
                return chunk.gather_logits(output.contiguous())
            hidden = output
            if self._plan.topology.pp_size > 1:
                self._send(output.contiguous())
        return None

    def _send(self, hidden: torch.Tensor) -> None:
        """Hand hidden states ``[S, R, H]`` to the next stage; a mixture's rows grow on the way."""
        dist.send(torch.tensor(hidden.shape), self._neighbour(1))
        dist.send(hidden, self._neighbour(1))

    def _receive(self) -> torch.Tensor:
        shape = torch.empty(3, dtype=torch.int64)
        dist.recv(shape, self._neighbour(-1))
        hidden = torch.empty(shape.tolist())
        dist.recv(hidden, self._neighbour(-1))
        return hidden

    def _batch(self, tokens: torch.Tensor) -> MicroBatch:
        batch: MicroBatch = {"tokens": tokens, "position_ids": torch.arange(tokens.shape[1]).expand_as(tokens)}
        if self._chunks[0].mixture_rows is None:
            batch["routes"] = (Route(adapter=self._adapter, task=None, start=0, stop=tokens.shape[0]),)
        return batch

    def _neighbour(self, step: int) -> int:
        topology = self._plan.topology
        pp_rank = (self._at.pp_rank + step) % topology.pp_size
        return topology.rank(dp_rank=0, pp_rank=pp_rank, tp_rank=self._at.tp_rank)

    def continue_greedily(self, tokens: torch.Tensor, *, count: int, stop_ids: Sequence[int]) -> list[int]:
        """Return the most likely next tokens, one after the other, on every rank.

        Args:
            tokens: The prompt, ``[1, seq]``.
            count: Most tokens to add.
            stop_ids: A token of these is the last one.
        """
        source = self._plan.topology.rank(dp_rank=0, pp_rank=self._last, tp_rank=0)
        new: list[int] = []
        while len(new) < count and not (new and new[-1] in stop_ids):
            logits = self.logits(tokens)
            choice = torch.zeros(1, dtype=torch.int64)
            if logits is not None:
                choice[0] = logits[0, -1].argmax()
            dist.broadcast(choice, source)
            new.append(int(choice))
            tokens = torch.cat((tokens, choice.view(1, 1)), dim=1)
        return new


if __name__ == "__main__":
    sys.exit(main())
