"""Names of the shipped site profiles, without reading them."""

from __future__ import annotations

from llama_scale.resources import data_dir


def profile_names() -> tuple[str, ...]:
    """Return the names of the files under ``launch/profiles``, sorted."""
    return tuple(sorted(path.stem for path in (data_dir("launch") / "profiles").glob("*.yaml")))
