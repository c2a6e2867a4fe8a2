"""Site profiles: what one host of a cluster has. ``launch/profiles/*.yaml`` holds one file a profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from llama_scale.errors import SpecError
from llama_scale.resources import data_dir
from llama_scale.spec.base import PositiveFloat, PositiveInt, Section
from llama_scale.spec.cluster import Cluster
from llama_scale.spec.compose import ComposeError, compose
from llama_scale.spec.profile_names import profile_names
from llama_scale.spec.secret import find_secrets


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
    cpus: PositiveInt | None = Field(None, description="CPU cores of one host.")
    host_memory_gb: PositiveFloat | None = Field(None, description="Memory of one host, GB.")
    nic: str | None = Field(None, description="Kind of network card that GPUs talk through.")
    nics: PositiveInt | None = Field(None, description="Number of these in one host.")
    env: dict[str, str] = Field({}, description="Environment variables that workers on this site need.")


def profiles_dir() -> Path:
    """Return the folder of the shipped profiles."""
    return data_dir("launch") / "profiles"


def load_profile(name: str) -> Profile:
    """Return a profile by name.

    Raises:
        SpecError: no such profile, or its file is damaged.
    """
    if name not in profile_names():
        raise SpecError(f"{name!r} is not a cluster profile; use one of {', '.join(profile_names())}")
    return read_profile(profiles_dir() / f"{name}.yaml")


def read_profile(path: Path) -> Profile:
    """Return a profile from a file.

    Raises:
        SpecError: It cannot be read, is no profile, or holds what looks like a secret.
    """
    try:
        root = compose(path.read_text(encoding="utf-8"))
        if root is not None and (secrets := find_secrets(root)):
            raise SpecError([replace(found, file=str(path)) for found in secrets])
        return Profile.model_validate_json(json.dumps(root.data() if root else None))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SpecError(f"{path} cannot be read: {reason}") from error
    except ComposeError as error:
        raise SpecError(f"{path} is not a profile: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'the file'}: {f['msg']}" for f in error.errors())
        raise SpecError(f"{path} is not a profile: {faults}; see launch/profiles for examples") from error


def site_profile(cluster: Cluster) -> Profile | None:
    """Return the profile that a spec's ``cluster`` names, shipped or the user's own; None if it names none.

    Raises:
        SpecError: The file cannot be read or is no profile.
    """
    if cluster.profile_file is not None:
        return read_profile(Path(cluster.profile_file))
    return load_profile(cluster.profile) if cluster.profile is not None else None
