"""Files of a bundle that say how its engine is set, for people and for DeepSpeed's own tools."""

from __future__ import annotations

import json

from llama_scale.engines.deepspeed import deepspeed_config
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.run import RunSpec

DEEPSPEED_CONFIG = "ds_config.json"
"""Name of DeepSpeed's settings in a bundle; workers compute the same ones from spec and plan."""


def engine_files(spec: RunSpec, plan: RunPlan) -> dict[str, str]:
    """Return file name -> content of the spec's engine; most have none."""
    if spec.engine.kind != "deepspeed":
        return {}
    return {DEEPSPEED_CONFIG: json.dumps(deepspeed_config(spec, plan), indent=2) + "\n"}
