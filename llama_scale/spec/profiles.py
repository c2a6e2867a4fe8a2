"""Site profiles: what one host of a cluster has. ``launch/profiles/*.yaml`` holds one file a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from llama_scale.errors import SpecError
from llama_scale.resources import data_dir
from llama_scale.spec.base import PositiveFloat, PositiveInt, Section
from llama_scale.spec.compose import ComposeError, compose
from llama_scale.spec.profile_names import profile_names


class Profile(Section):
    """One kind of host. Rates are peaks without sparsity; G = 1e9, T = 1e12."""

    title: str = Field(description="What the host is, for people.")
    device: Literal["cuda", "cpu"] = Field(description="What its processes compute on.")
    gpu: str | None = Field(None, description="Name in the hardware table of `plan`, e.g. h100; null for CPU.")
    devices_per_node: PositiveInt = Field(description="GPUs of one host, or CPU processes that it runs well.")
    memory_gb: PositiveFloat = Field(description="Memory of one device, GB; for CPU: of one process.")
    bf16_tflops: PositiveFloat | None = Field(None, description="Dense bf16 peak of one device, TFLOP/s.")
    nvlink_gb_per_s: PositiveFloat | None = Field(None, description="NVLink of one GPU, one direction, GB/s.")
    network_gbit_per_s: PositiveFloat | None = Field(None, description="Network of one GPU, one direction, Gbit/s.")
    env: dict[str, str] = Field({}, description="Environment variables that workers on this site need.")


def profiles_dir() -> Path:
    """Return the folder of the shipped profiles."""
    return data_dir("launch") / "profiles"


def load_profile(name: str) -> Profile:
    """Return a profile by name.

    Raises:
        SpecError: no such profile, or its file is damaged.
    """
    path = profiles_dir() / f"{name}.yaml"
    if name not in profile_names():
        raise SpecError(f"{name!r} is not a cluster profile; use one of {', '.join(profile_names())}")
    try:
        root = compose(path.read_text(encoding="utf-8"))
        return Profile.model_validate_json(json.dumps(root.data() if root else None))
    except (ComposeError, ValidationError) as error:
        raise SpecError(f"{path} is not a profile: {error}") from error
