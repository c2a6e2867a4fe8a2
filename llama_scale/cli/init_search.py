"""``llama-scale init --search``: the fastest predicted layout in place of the one that merely fits."""

from __future__ import annotations

from pathlib import Path

from llama_scale.cli.output import say
from llama_scale.cli.plan_search import layout_name
from llama_scale.cli.plan_site import site_hardware
from llama_scale.errors import SpecError
from llama_scale.plan.fit import problems
from llama_scale.plan.hardware import scale_up_domain
from llama_scale.plan.run_plan import make_plan
from llama_scale.plan.search import search
from llama_scale.plan.search_space import describe
from llama_scale.spec.length import any_length
from llama_scale.spec.load import check_text
from llama_scale.spec.run import RunSpec
from llama_scale.spec.section_text import replace_sections


def best_layout(text: str, *, spec: RunSpec) -> tuple[str, bool]:
    """Return the spec's text with the fastest predicted layout that fits, and whether any fits.

    Args:
        text: A spec that validates.
        spec: The same, resolved; its devices, global batch and precision stay.

    Raises:
        SpecError: the profile names no accelerator, so nothing can be predicted.
    """
    hardware = site_hardware(spec, gpu=None, file=None)
    if hardware is None:
        raise SpecError(
            f"--search predicts accelerators, and profile {spec.cluster.site!r} has none; leave --search out, and "
            "let `llama-scale tune SPEC` measure layouts on this machine"
        )
    spec = any_length(spec)
    devices = spec.cluster.world_size
    node = scale_up_domain(hardware, devices=devices, devices_per_node=spec.cluster.devices_per_node)
    result = search(spec, hardware=hardware, devices=devices, devices_per_node=node)
    for one in result.ranked[: result.fitting]:
        changed = replace_sections(text, describe(one.candidate))
        loaded = check_text(changed, name="spec", folder=str(Path.cwd()))
        made = None if loaded.spec is None else any_length(loaded.spec)
        if made is not None and not problems(made, make_plan(made)):
            say(f"the fastest of {len(result.ranked):,} layouts, predicted: {layout_name(one)}")
            return changed, True
    return text, False
