"""A model is made and run on its device alone, told on a machine without CUDA: torch's meta device stands for it.

Every parameter, buffer and other tensor of a model has to be on that device, and no operation of a forward or backward
pass may mix it with the CPU, which meta tensors allow and a GPU does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.engines.harness import join, run_ranks
from tests.engines.specs import SCALING, Case
from tests.engines.task_runs import task_case, write_files

META = torch.device("meta")


class NoMixing(TorchDispatchMode):
    """Note operations on tensors of both devices, but for copies and numbers, which CUDA allows too."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = func._schema.name
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.dim() or x.device == META}
        if len(devices) > 1 and name not in ("aten::copy_", "aten::_to_copy"):
            self.mixed.append(f"{name} {[(x.device.type, list(x.shape)) for x in tensors]}")
        return func(*args, **(kwargs or {}))


def elsewhere(chunk: torch.nn.Module) -> Iterator[str]:
    """Yield the tensors that a chunk's modules hold on another device, whether they are registered or not."""
    for path, module in chunk.named_modules():
        held = {**module._parameters, **module._buffers, **vars(module)}
        for name, value in held.items():
            if isinstance(value, torch.Tensor) and value.device != META:
                yield f"{path}.{name} is on {value.device}"


def run_on_meta(case: Case, run_dir: Path) -> list[str]:
    """Build the case's model on the meta device, run and differentiate it; return what was elsewhere or mixed."""
    from llama_scale.train import cpu, engine, model
    from llama_scale.train.samples import make_task_samples

    spec, plan = case.spec(), case.plan()
    coordinates = join(plan)
    torch.cuda.current_device = cpu.model_device = lambda: META
    cpu._on_cpu = lambda device: META if "cuda" in str(device) else device
    (chunk,) = model.build_chunks(spec, plan, coordinates, initialize=False)
    found = list(elsewhere(chunk))
    samples = make_task_samples(spec, split="train", run_dir=run_dir) if spec.tasks else None
    batches = [plain_batch(case)]
    if samples is not None:
        batches = samples.global_batch(0, batch=plan.batch, dp_rank=0, dp_size=1)
    checker = NoMixing()
    for training in (True, False):
        chunk.train(training)
        for batch in batches:
            with checker:
                loss = chunk(engine.to_device(batch, META))
                if training:
                    loss.backward()
                assert loss.device == META
    trained = [p for p in chunk.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.device == META for p in trained)
    return found + checker.mixed


def plain_batch(case: Case) -> dict[str, torch.Tensor]:
    shape = (case.micro, case.seq_length)
    numbers = torch.zeros(shape, dtype=torch.int64)
    batch = {"tokens": numbers, "labels": numbers, "position_ids": numbers, "loss_mask": torch.ones(shape)}
    return batch | ({"documents": numbers} if case.isolate_documents else {})


def mixture(weights: str, **more: str) -> dict[str, Any]:
    adapters = tuple({"name": name, "kind": "lora", "options": {"rank": 2, "layers": {"last": 2}}} for name in "ab")
    return {"micro": 2, "adapters": adapters, "sections": {"mixture": {"weights": weights, **more}}}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "documents, tied, scaled": {
        "isolate_documents": True, "shape": {"tie_word_embeddings": True, "rope_scaling": SCALING}, "compute": "bf16",
    },
    "full recompute": {"recompute": {"kind": "full", "method": "uniform", "layers": 1}},
    "selective recompute": {"recompute": {"kind": "selective"}},
    **{
        kind: {"adapters": ({"name": "a", "kind": kind, "options": {}},)}
        for kind in ("lora", "ia3", "bottleneck", "prefix")
    },
    "dora": {"adapters": ({"name": "a", "kind": "lora", "options": {"dora": True}},)},
    "prior": mixture("prior", objective="joint"),
    "posterior": mixture("posterior", objective="joint"),
    "gate": mixture("gate", gate="linear", objective="joint"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_model_and_passes_stay_on_the_device(tmp_path, name):
    [found] = run_ranks(1, run_on_meta, Case(**CASES[name]), tmp_path)
    assert found == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("tasks"))


@pytest.mark.parametrize("kind", ["full", "adapters", "mixture"])
def test_heads_of_tasks_stay_on_the_device(folder, tmp_path, kind):
    kinds = {"sum": "lora", "qa": "bottleneck", "search": "ia3"}
    chosen = tuple({"name": task, "kind": kind, "task": task} for task, kind in kinds.items())
    case = task_case(folder, slot=3, adapters=() if kind == "full" else chosen)
    if kind == "mixture":
        weights = {"weights": "gate", "gate": "linear", "adapters": ("sum", "qa")}
        case = replace(case, sections={**case.sections, "mixture": weights})
    [found] = run_ranks(1, run_on_meta, case, tmp_path)
    assert found == []
