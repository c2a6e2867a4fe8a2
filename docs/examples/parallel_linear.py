"""Train y = A x + b on two processes, in each way that a model can be divided, and compare with one process.

    torchrun --nproc-per-node 2 docs/examples/parallel_linear.py data
    torchrun --nproc-per-node 2 docs/examples/parallel_linear.py tensor-column
    torchrun --nproc-per-node 2 docs/examples/parallel_linear.py tensor-row
    torchrun --nproc-per-node 2 docs/examples/parallel_linear.py pipeline

Every way ends with the same A and b as one process that sees everything. docs/parallelism.md explains each.

Shapes: B batch, I inputs, O outputs. x is [B, I], A is [O, I], b is [O], y and the target t are [B, O].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist

BATCH, INPUTS, OUTPUTS, STEPS, RATE, MICRO_BATCHES = 8, 4, 6, 5, 0.1, 4

Tensors = tuple[torch.Tensor, torch.Tensor]


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x, t and the initial A and b; every process makes the same ones from the same seed."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(BATCH, INPUTS), draw(BATCH, OUTPUTS), draw(OUTPUTS, INPUTS), draw(OUTPUTS)


def output_gradient(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return dL/dy of L = sum((y - t)^2) / BATCH, the whole batch's size even for a part of it."""
    return 2 * (y - t) / BATCH


def single() -> Tensors:
    """One process: the reference."""
    x, t, a, b = problem()
    for _ in range(STEPS):
        dy = output_gradient(x @ a.T + b, t)
        a, b = a - RATE * dy.T @ x, b - RATE * dy.sum(0)
    return a, b


def data_parallel(rank: int) -> Tensors:
    """Each process holds all of A and b and half of the batch; gradients are summed over the processes."""
    x, t, a, b = problem()
    x, t = x.chunk(2)[rank], t.chunk(2)[rank]
    for _ in range(STEPS):
        dy = output_gradient(x @ a.T + b, t)
        da, db = dy.T @ x, dy.sum(0)
        dist.all_reduce(da)
        dist.all_reduce(db)
        a, b = a - RATE * da, b - RATE * db
    return a, b


def tensor_column(rank: int) -> Tensors:
    """Each process holds half of A's rows (outputs) and of b: it computes half of y, from all of x.

    Megatron calls this column parallel, because y = x A^T and the rows of A are the columns of A^T. No traffic is
    needed forward or for A's gradient; dL/dx, which a layer below would need, is a sum over the processes.
    """
    x, t, a, b = problem()
    a, b, t = a.chunk(2)[rank], b.chunk(2)[rank], t.chunk(2, dim=1)[rank]
    for _ in range(STEPS):
        dy = output_gradient(x @ a.T + b, t)
        a, b = a - RATE * dy.T @ x, b - RATE * dy.sum(0)
    return gathered(a, dim=0), gathered(b, dim=0)


def tensor_row(rank: int) -> Tensors:
    """Each process holds half of A's columns (inputs) and reads half of x: its y is one summand of the real one.

    Row parallel in Megatron's words. The sum over processes is the forward pass's all-reduce; b is added after it,
    once. Backward needs no traffic: every process knows all of dL/dy.
    """
    x, t, a, b = problem()
    x, a = x.chunk(2, dim=1)[rank], a.chunk(2, dim=1)[rank]
    for _ in range(STEPS):
        y = x @ a.T
        dist.all_reduce(y)
        dy = output_gradient(y + b, t)
        a, b = a - RATE * dy.T @ x, b - RATE * dy.sum(0)
    return gathered(a, dim=1), b


def pipeline(rank: int) -> Tensors:
    """Process 0 holds A and computes z = A x; process 1 holds b and computes y = z + b and the loss.

    The batch goes through in micro-batches, so that both work at the same time: while process 1 has micro-batch m,
    process 0 computes m + 1. Gradients come back the same way and are summed over the micro-batches.
    """
    x, t, a, b = problem()
    for _ in range(STEPS):
        if rank == 0:
            parts = x.chunk(MICRO_BATCHES)
            for part in parts:
                dist.send(part @ a.T, dst=1)
            da = torch.zeros_like(a)
            for part in parts:
                dz = torch.empty(len(part), OUTPUTS, dtype=a.dtype)
                dist.recv(dz, src=1)
                da += dz.T @ part
            a = a - RATE * da
        else:
            db, answers = torch.zeros_like(b), []
            for part in t.chunk(MICRO_BATCHES):
                z = torch.empty_like(part)
                dist.recv(z, src=0)
                answers.append(output_gradient(z + b, part))
                db += answers[-1].sum(0)
            for dz in answers:
                dist.send(dz, dst=0)
            b = b - RATE * db
    dist.broadcast(a, src=0)
    dist.broadcast(b, src=1)
    return a, b


def gathered(part: torch.Tensor, *, dim: int) -> torch.Tensor:
    """Assemble the whole from each process's part: what `convert export` does with a trained model."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts, dim=dim)


WAYS: dict[str, Callable[[int], Tensors]] = {
    "data": data_parallel,
    "tensor-column": tensor_column,
    "tensor-row": tensor_row,
    "pipeline": pipeline,
}


def main() -> int:
    """Train one way on the two processes of torchrun; exit 1 if A or b differ from the single process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    way = parser.parse_args().way
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    a, b = WAYS[way](rank)
    a_one, b_one = single()
    difference = max(float((a - a_one).abs().max()), float((b - b_one).abs().max()))
    good = difference <= 1e-12
    if rank == 0:
        sys.stdout.write(f"{way}: A and b after {STEPS} steps differ from one process by {difference:.1e} at most\n")
    dist.destroy_process_group()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
