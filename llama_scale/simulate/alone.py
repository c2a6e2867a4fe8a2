"""The simulation on one process: what its parallel layout must agree with. Pure."""

from __future__ import annotations

from llama_scale.spec.dump import dump_yaml
from llama_scale.spec.load import check_text
from llama_scale.spec.run import RunSpec


def alone(spec: RunSpec) -> RunSpec | None:
    """Return a spec that trains on the same samples in the same steps on one process; None if there is none.

    The replicas' micro-batches of a slot become one: tasks whose loss joins the rows of a slot then see the same rows.

    Args:
        spec: A simulation's spec.
    """
    data = spec.model_dump(mode="json", by_alias=True)
    parallel, batch = data["parallel"], data["batch"]
    batch["micro"] *= parallel["data"]
    parallel |= {"data": 1, "tensor": 1, "pipeline": 1, "virtual_stages": 1, "sequence": False, "stage_layers": None}
    data["cluster"]["devices_per_node"] = 1
    if data["recompute"]["kind"] == "full":
        data["recompute"]["layers"] = 1
    engine = data["engine"]
    if engine["kind"] == "megatron":
        engine["overlap_p2p"] = False
    if engine["kind"] == "deepspeed" and engine["zero"] == 0 and data["precision"]["compute"] == "bf16":
        engine["zero"] = 1  # what the pipeline engine runs with in any case
    data["checkpoint"] |= {"every_steps": data["train"]["steps"], "keep_best": False}
    return check_text(dump_yaml(data), name="alone", folder="/", env={}).spec
