"""Valid specs of every engine and layout, by construction."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from llama_scale.spec.dump import dump_yaml
from llama_scale.spec.load import check_text
from llama_scale.spec.run import RunSpec

DEGREES = st.sampled_from([1, 2, 3, 4, 8])


@st.composite
def models(draw: st.DrawFn, *, tensor: int, layers: int) -> dict[str, Any]:
    kv_heads = tensor * draw(st.integers(1, 5))
    heads = kv_heads * draw(st.integers(1, 5))
    head_dim = 2 * draw(st.integers(1, 64))
    hidden = heads * head_dim if draw(st.booleans()) else draw(st.integers(8, 5000))
    scaling = draw(st.sampled_from([None, {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}]))
    return {
        "kind": "inline",
        "hidden_size": hidden,
        "ffn_hidden_size": tensor * draw(st.integers(1, 3000)),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": draw(st.integers(1, 200_000)),
        "vocab_pad_multiple": draw(st.sampled_from([1, 7, 128, 1024])),
        "max_position_embeddings": 8192,
        "rope_scaling": scaling,
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def engines(draw: st.DrawFn, *, pipeline: int, virtual: int) -> dict[str, Any]:
    if virtual > 1:
        return {"kind": "megatron", "overlap_p2p": pipeline == 2 or draw(st.booleans())}
    kind = draw(st.sampled_from(["megatron", "deepspeed"]))
    if kind == "megatron":
        distributed = draw(st.booleans())
        return {"kind": kind, "distributed_optimizer": distributed, "overlap_grad_reduce": draw(st.booleans())}
    zero = draw(st.sampled_from([1] if pipeline > 1 else [1, 2, 3]))
    engine: dict[str, Any] = {"kind": kind, "zero": zero}
    if pipeline == 1 and draw(st.booleans()):
        engine["offload_optimizer"] = {"device": "nvme", "nvme_path": "/scratch", "pin_memory": True}
    if zero == 3 and draw(st.booleans()):
        engine["offload_parameters"] = {"device": "cpu"}
    return engine


@st.composite
def adapters(draw: st.DrawFn, *, layers: int) -> list[dict[str, Any]]:
    kind = draw(st.sampled_from([None, "lora", "bottleneck", "ia3", "prefix"]))
    if kind is None:
        return []
    some = st.lists(st.integers(0, layers - 1), min_size=1, max_size=layers, unique=True)
    last = st.integers(1, layers).map(lambda k: {"last": k})
    options: dict[str, Any] = {"layers": draw(st.one_of(st.just("all"), last, some))}
    if kind == "lora":
        options |= {
            "rank": draw(st.integers(1, 300)),
            "targets": ["q_proj", "v_proj"],
            "ranks": {"q_proj": 64},
            "alphas": {"q_proj": 128.0},
        }
    return [{"name": "a", "kind": kind, "options": options}]


@st.composite
def stage_layers(draw: st.DrawFn, *, chunks: int) -> tuple[int, list[int] | None]:
    if draw(st.booleans()):
        return chunks * draw(st.integers(1, 6)), None
    sizes = draw(st.lists(st.integers(1, 9), min_size=chunks, max_size=chunks))
    return sum(sizes), sizes


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    data, tensor, pipeline = draw(DEGREES), draw(DEGREES), draw(DEGREES)
    virtual = draw(st.sampled_from([1, 2, 3])) if pipeline > 1 else 1
    layers, uneven = draw(stage_layers(chunks=pipeline * virtual))
    sequence = tensor > 1 and draw(st.booleans())
    engine = draw(engines(pipeline=pipeline, virtual=virtual))
    if engine["kind"] == "deepspeed":
        sequence = False
    recompute = [{"kind": "none"}, {"kind": "selective"}, {"kind": "full", "method": "block", "layers": 1}]
    smallest = min(uneven) if uneven else layers // (pipeline * virtual)
    recompute.append({"kind": "full", "method": "block", "layers": smallest})
    if uneven is None:
        recompute.append({"kind": "full", "method": "uniform", "layers": smallest})
    return {
        "version": 1,
        "name": "drawn",
        "model": draw(models(tensor=tensor, layers=layers)),
        "data": {
            "kind": "indexed",
            "blend": [{"path": "/data/a"}, {"path": "/data/b", "weight": 3.0}],
            "split": {"train": 99.0, "validation": draw(st.sampled_from([0.0, 0.01])), "test": 1.0},
            "seq_length": tensor * draw(st.integers(1, 900)),
        },
        "train": {"steps": 5000, "from": "scratch"},
        "batch": {
            "micro": draw(st.integers(1, 5)),
            "accumulation": draw(st.integers(1, 4)) * (pipeline if virtual > 1 else 1),
        },
        "parallel": {
            "data": data,
            "tensor": tensor,
            "pipeline": pipeline,
            "virtual_stages": virtual,
            "sequence": sequence,
            "stage_layers": uneven,
        },
        "engine": engine,
        "recompute": draw(st.sampled_from(recompute)),
        "precision": {"compute": draw(st.sampled_from(["fp32", "bf16"]))},
        "schedule": {"kind": "wsd", "warmup_steps": 100, "decay_steps": 50},
        "cluster": {"nodes": data * pipeline, "devices_per_node": tensor, "device": "cuda"},
        "launcher": {"kind": "slurm", "env": {"NCCL_DEBUG": "INFO", "OURS": "1"}},
        "restart": {"max": 3},
        "adapters": draw(adapters(layers=layers)),
        "tracking": {"wandb": {"project": "p"}},
    }


def checked(document: dict[str, Any]) -> RunSpec:
    """Return the spec of a document that has to be valid."""
    loaded = check_text(dump_yaml(document), name="drawn.yaml", folder="/specs", env={})
    assert loaded.spec is not None, [str(problem) for problem in loaded.problems]
    return loaded.spec


specs = documents().map(checked)
