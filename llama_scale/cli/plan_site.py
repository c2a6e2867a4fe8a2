"""Which accelerator a plan is for: named on the command line, or by the spec's cluster profile."""

from __future__ import annotations

from pathlib import Path

from llama_scale.errors import SpecError
from llama_scale.plan.hardware import HARDWARE, Hardware, find_hardware, parse_hardware
from llama_scale.spec.nearby import suggest
from llama_scale.spec.profiles import site_profile
from llama_scale.spec.run import RunSpec


def site_hardware(spec: RunSpec, *, gpu: str | None, file: Path | None) -> Hardware | None:
    """Return the accelerator, None where neither the command line nor the profile names one.

    Args:
        spec: The spec.
        gpu: Name from the command line.
        file: YAML list of the user's own accelerators; the only one in it needs no name.

    Raises:
        SpecError: the name is not known, or the file is no list of hardware.
    """
    own = _read(file) if file is not None else ()
    if gpu is None and len(own) > 1:
        names = " | ".join(row.name for row in own)
        raise SpecError(f"{file} has {len(own)} accelerators; choose one with --gpu {names}")
    profile = site_profile(spec.cluster)
    name = gpu if gpu is not None else (own[0].name if own else None) or (profile.gpu if profile else None)
    if name is None:
        return None
    table = (*own, *HARDWARE)
    found = find_hardware(name, table=table)
    if found is None:
        raise SpecError(f"{name!r} is not a known accelerator; {suggest(name, [row.name for row in table])}")
    if gpu is None and not own and profile is not None and profile.network_gbit_per_s:
        found = found.model_copy(update={"network_gbit_per_s": profile.network_gbit_per_s})
    return found


def _read(file: Path) -> tuple[Hardware, ...]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read --hardware {file}: {getattr(error, 'strerror', None) or error}") from error
    return parse_hardware(text, file=str(file))
