"""Each rule: the document that breaks it, the field it points at, the code and the values it proposes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_scale.spec.compatibility import TABLE
from llama_scale.spec.load import check_text
from tests.unit.spec.documents import INLINE, document

PAR = {"data": 2, "tensor": 2, "pipeline": 2}
DS = {"kind": "deepspeed", "zero": 1}
ONE = {"data": 8, "tensor": 1, "pipeline": 1}
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    # code, changed sections, path, part of message or hint
    ("heads-kv-heads", {"model": {**INLINE, "num_kv_heads": 3}}, "model.num_kv_heads", "2 or 4"),
    ("head-dim-even", {"model": {**INLINE, "head_dim": 7}}, "model.head_dim", "6 or 8"),
    ("rope-factors", {"model": {**INLINE, "rope_scaling": {"low_freq_factor": 4}}}, "model.rope_scaling", "1 and 4"),
    ("tensor-num-heads", {"parallel": {**PAR, "tensor": 3}}, "parallel.tensor", "use 1, 2, 4, 8, 16 or 32"),
    ("tensor-num-kv-heads", {"parallel": {**PAR, "tensor": 8}}, "parallel.tensor", "1, 2 or 4"),
    ("tensor-ffn-hidden-size", {"model": {**INLINE, "ffn_hidden_size": 95}}, "parallel.tensor", "94 or 96"),
    ("layers-stages", {"parallel": {**PAR, "pipeline": 4}}, "parallel.pipeline", "stage_layers: [6, 6, 5, 5]"),
    ("layers-stages", {"parallel": {**PAR, "virtual_stages": 3}}, "parallel.pipeline", "virtual_stages: 1 or 11"),
    ("stage-layers-count", {"parallel": {**PAR, "stage_layers": [22]}}, "parallel.stage_layers", "give 2 numbers"),
    ("stage-layers-sum", {"parallel": {**PAR, "stage_layers": [1, 2]}}, "parallel.stage_layers", "[11, 11]"),
    ("seq-length-positions", {"data": {"kind": "indexed", "blend": [{"path": "a"}], "seq_length": 4096}},
     "data.seq_length", "at most 2048"),
    ("sequence-length-tensor", {"data": {"kind": "indexed", "blend": [{"path": "a"}], "seq_length": 127},
     "parallel": {**PAR, "sequence": True}}, "data.seq_length", "126 or 128"),
    ("sequence-tensor", {"parallel": {**ONE, "sequence": True}}, "parallel.sequence", "2 or more"),
    ("recompute-uniform", {"recompute": {"kind": "full", "layers": 3}}, "recompute.layers", "use 1 or 11"),
    ("recompute-block", {"recompute": {"kind": "full", "method": "block", "layers": 12}}, "recompute.layers",
     "1 to 11"),
    ("world-size", {"cluster": {"devices_per_node": 4, "device": "cpu"}}, "parallel", "(data=1, tensor=2, pipeline=2)"),
    ("world-size", {"cluster": {"devices_per_node": 7, "device": "cpu"}}, "parallel", "devices_per_node=8"),
    ("batch-incomplete", {"batch": {"micro": 2}}, "batch", "only micro"),
    ("batch-incomplete", {"batch": {}}, "batch", "none of them"),
    ("batch-divisible", {"batch": {"global": 9, "micro": 2}}, "batch.global", "8 or 12"),
    ("batch-divisible", {"batch": {"global": 9, "accumulation": 2}}, "batch.global", "8 or 12"),
    ("batch-contradiction", {"batch": {"global": 9, "micro": 2, "accumulation": 3}}, "batch.global",
     "(global=12, micro=2, accumulation=3)"),
    ("interleaving-pipeline", {"parallel": {**ONE, "virtual_stages": 2}}, "parallel.virtual_stages", "2 or more"),
    ("interleaving-accumulation", {"parallel": {**PAR, "virtual_stages": 11}, "batch": {"micro": 1, "accumulation": 3}},
     "batch", "2 or 4"),
    ("interleaving-p2p", {"parallel": {**PAR, "virtual_stages": 11}}, "engine.overlap_p2p", "overlap_p2p to true"),
    ("overlap-p2p-schedule", {"engine": {"kind": "megatron", "overlap_p2p": True}}, "engine.overlap_p2p", "false"),
    ("min-nodes", {"restart": {"min_nodes": 3}}, "restart.min_nodes", "use 1"),
    ("unknown-profile", {"cluster": {"devices_per_node": 8, "device": "cpu", "profile": "dgx-h10"}},
     "cluster.profile", "'dgx-h100'"),
    ("train-length", {"train": {}}, "train", "none is given"),
    ("train-length", {"train": {"steps": 1, "tokens": 2}}, "train", "steps=1 and tokens=2 are both given"),
    ("train-length", {"train": {"tokens": 1, "epochs": 0.5}}, "train", "tokens=1 and epochs=0.5 are both given"),
    ("train-length", {"train": {"steps": 1, "tokens": 2, "epochs": 3}}, "train", "are all given"),
    ("schedule-warmup", {"schedule": {"kind": "cosine", "warmup_steps": 11}}, "schedule.warmup_steps", "0 to 10"),
    ("schedule-decay", {"schedule": {"kind": "wsd", "warmup_steps": 5, "decay_steps": 6}}, "schedule.decay_steps",
     "decay_steps <= 5"),
    ("validation-split", {"validation": {"every_steps": 1}, "data": {"kind": "indexed", "blend": [{"path": "a"}],
     "seq_length": 128, "split": {"validation": 0}}}, "validation", "above 0"),
    ("keep-best", {"checkpoint": {"keep_best": True}}, "checkpoint.keep_best", "every_steps"),
    ("duplicate-name", {"adapters": [{"name": "a", "kind": "lora"}] * 2}, "adapters[1].name", "adapters[0]"),
    ("task-weights", {"tasks": [{"name": "a", "kind": "k", "weight": 0}]}, "tasks", "above 0"),
    ("unknown-task", {"tasks": [{"name": "summarize", "kind": "k"}],
     "adapters": [{"name": "a", "kind": "lora", "task": "sumarize"}]}, "adapters[0].task", "'summarize'"),
    ("adapter-task", {"tasks": [{"name": "t", "kind": "k"}], "adapters": [{"name": "a", "kind": "lora"}]},
     "adapters[0]", "add task: t"),
    ("adapter-task", {"tasks": [{"name": "t", "kind": "k"}],
     "adapters": [{"name": n, "kind": "lora", "task": "t"} for n in "ab"]}, "adapters[1].task",
     "served by adapters[0]"),
    ("task-adapter", {"tasks": [{"name": n, "kind": "k"} for n in "tu"],
     "adapters": [{"name": "a", "kind": "lora", "task": "t"}]}, "tasks[1]", "add an adapter with task: u"),
    ("adapters-without-tasks", {"adapters": [{"name": n, "kind": "lora"} for n in "ab"]}, "adapters",
     "keep one adapter"),
    ("adapters-without-tasks", {"adapters": [{"name": n, "kind": "lora"} for n in "ab"], "mixture": {}}, "adapters",
     "objective: joint"),
    ("task-data", {"tasks": [{"name": "t", "kind": "k"}]}, "data.kind", "kind: tasks"),
    ("task-data", {"data": {"kind": "tasks", "seq_length": 128}}, "tasks", "add tasks"),
    ("task-tokenizer", {"data": {"kind": "tasks", "seq_length": 128}}, "tokenizer", "kind: sentencepiece"),
    ("task-mixture", {"tasks": [{"name": "s", "kind": "semantic_search"}], "mixture": {},
     "adapters": [{"name": "a", "kind": "lora", "task": "s"}]}, "tasks[0].kind", "run of its own"),
    ("unknown-kind", {"adapters": [{"name": "a", "kind": "lorra"}]}, "adapters[0].kind", "did you mean 'lora'?"),
    ("mixture-adapters", {"mixture": {}}, "mixture", "add adapters"),
    ("mixture-unknown-adapter", {"adapters": [{"name": "a", "kind": "lora"}], "mixture": {"adapters": ["b"]}},
     "mixture.adapters[0]", "a"),
    ("duplicate-name", {"adapters": [{"name": "a", "kind": "lora"}], "mixture": {"adapters": ["a", "a"]}},
     "mixture.adapters[1]", "once"),
    ("mixture-part", {"adapters": [{"name": "a", "kind": "lora"}], "mixture": {"adapters": ["a"], "objective": "em"}},
     "mixture.adapters", "per_task"),
    ("mixture-gate", {"mixture": {"gate": "router"}}, "mixture.gate", "weights to gate"),
    ("megatron-param-gather", {"engine": {"kind": "megatron", "overlap_param_gather": True,
     "distributed_optimizer": False}}, "engine.overlap_param_gather", "distributed_optimizer"),
    ("megatron-param-gather-grad-reduce", {"engine": {"kind": "megatron", "overlap_param_gather": True}},
     "engine.overlap_param_gather", "overlap_grad_reduce"),
    ("gradients-precision", {"precision": {"compute": "fp32", "gradients": "bf16"}}, "precision.gradients", "fp32"),
    ("ddp-data-only", {"engine": {"kind": "ddp"}}, "engine.kind", "2 x 2"),
    ("deepspeed-pipeline-zero", {"engine": {**DS, "zero": 2}}, "engine.zero", "zero to 1"),
    ("deepspeed-bf16-zero-0", {"engine": {**DS, "zero": 0}, "parallel": ONE}, "engine.zero", "zero to 1"),
    ("deepspeed-interleaving", {"engine": DS, "parallel": {**PAR, "virtual_stages": 11}}, "parallel.virtual_stages",
     "no interleaved"),
    ("deepspeed-sequence", {"engine": DS, "parallel": {**PAR, "sequence": True}}, "parallel.sequence", "false"),
    ("deepspeed-offload-optimizer-zero", {"engine": {**DS, "zero": 0, "offload_optimizer": {"device": "cpu"}}},
     "engine.offload_optimizer", "1, 2 or 3"),
    ("deepspeed-offload-parameters-zero", {"engine": {**DS, "offload_parameters": {"device": "cpu"}}},
     "engine.offload_parameters", "zero to 3"),
    ("deepspeed-offload-pipeline", {"engine": {**DS, "offload_optimizer": {"device": "cpu"}}},
     "engine.offload_optimizer", "pipeline to 1"),
    ("deepspeed-nvme-cpu", {"engine": {**DS, "offload_optimizer": {"device": "nvme", "nvme_path": "n"}}}, "engine",
     "device to cpu"),
    ("deepspeed-nvme-path-optimizer", {"engine": {**DS, "offload_optimizer": {"device": "nvme"}}},
     "engine.offload_optimizer", "add nvme_path"),
    ("deepspeed-nvme-path-parameters", {"engine": {**DS, "offload_parameters": {"device": "nvme"}}},
     "engine.offload_parameters", "add nvme_path"),
    ("deepspeed-nvme-path-unused-optimizer", {"engine": {**DS, "offload_optimizer": {"device": "cpu",
     "nvme_path": "n"}}}, "engine.offload_optimizer.nvme_path", "device to nvme"),
    ("deepspeed-nvme-path-unused-parameters", {"engine": {**DS, "offload_parameters": {"device": "cpu",
     "nvme_path": "n"}}}, "engine.offload_parameters.nvme_path", "device to nvme"),
    ("deepspeed-overlap-zero", {"engine": {**DS, "zero": 0, "overlap_comm": True}, "parallel": ONE},
     "engine.overlap_comm", "1, 2 or 3"),
    ("deepspeed-overlap-pipeline", {"engine": {**DS, "overlap_comm": True}}, "engine.overlap_comm", "overlap_comm"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "sections", "path", "text"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_rule_names_the_field_the_value_and_what_to_do(
    code: str, sections: dict[str, Any], path: str, text: str
) -> None:
    problems = check_text(json.dumps(document(**sections)), name="run.yaml", folder="/", env={}).problems
    found = [problem for problem in problems if (problem.code, problem.dotted) == (code, path)]
    assert found, [str(problem) for problem in problems]
    assert any(text in f"{problem.message}; {problem.hint}" for problem in found)
    assert (found[0].file, found[0].line) == ("run.yaml", 1)


def test_every_row_of_the_compatibility_table_has_a_case() -> None:
    assert {row.code for row in TABLE} <= {case[0] for case in CASES}
